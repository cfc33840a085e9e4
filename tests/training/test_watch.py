"""The log of a run: rows, rewinding after a kill, curves, event files."""

import imageio.v2 as imageio
import numpy as np
import pytest

from mrfomm.training import watch
from mrfomm.training.watch import RunLog, draw_curves, read_log


def test_rows_come_back(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, 0, {"pixel": 0.5})
    log.write(2, 0, {"pixel": 0.25, "gradient_norm": 3.0})
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["gradient_norm"] == 3.0


def test_rewind_drops_what_a_resumed_run_writes_again(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.write(step, 0, {"pixel": step / 10})
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 6, "pi')  # killed while writing
    log.rewind(3)
    log.write(4, 0, {"pixel": 9.0})
    assert [(row["step"], row["pixel"]) for row in read_log(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 9.0)]


def test_no_log_yet(tmp_path):
    assert read_log(tmp_path) == []
    draw_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_curves_show_the_values(tmp_path):
    """A falling loss is drawn from the upper left to the lower right of its panel."""
    draw_curves([{"step": i, "time": 0, "pixel": 100.0 - i} for i in range(100)], tmp_path / "curves.png")
    image = imageio.imread(tmp_path / "curves.png")[..., :3].astype(int)
    rows, columns = np.nonzero((image[..., 2] - image[..., 0]) > 80)  # matplotlib's first colour is blue
    assert rows[columns < np.median(columns)].mean() < rows[columns > np.median(columns)].mean() - 20


def test_pictures_and_event_files(tmp_path):
    log = RunLog(tmp_path, tensorboard=True)
    log.write(1, 0, {"pixel": 0.5})
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    log.picture(1, picture)
    log.close()
    np.testing.assert_array_equal(imageio.imread(tmp_path / "pictures" / "00000001.png"), picture)
    assert (tmp_path / "curves.png").exists()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"pixel" in events.read_bytes()


def test_missing_writer_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(Exception, match=r"pip install -c constraints.txt -e .\[tensorboard\]"):
        RunLog(tmp_path, tensorboard=True)


def test_loss_and_validation_share_the_first_panel_and_constants_have_none(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(watch, "_draw_panel", lambda axes, series: drawn.append(series))
    rows = [{"step": i, "learning_rate": 2e-4, "pixel": 3.0 - i, "loss": 5.0 - i} for i in (1, 2)]
    draw_curves([*rows, {"step": 2, "learning_rate": 2e-4, "validation_l1": 0.5}], tmp_path / "curves.png")
    assert drawn == [{"loss": [(1, 4.0), (2, 3.0)], "validation_l1": [(2, 0.5)]}, {"pixel": [(1, 2.0), (2, 1.0)]}]


def test_two_lines_of_a_panel_have_an_axis_each(tmp_path):
    """Numbers a hundred times as small are still seen to fall: orange, on the right, from upper left to lower right."""
    rows = [{"step": i, "loss": 100.0 + i, "validation_l1": (100 - i) / 1000} for i in range(100)]
    draw_curves(rows, tmp_path / "curves.png")
    image = imageio.imread(tmp_path / "curves.png")[..., :3].astype(int)
    rows, columns = np.nonzero((image[..., 0] - image[..., 2]) > 150)
    inside = columns < 0.75 * image.shape[1]  # the axis' name is of this colour too
    rows, columns = rows[inside], columns[inside]
    assert rows[columns < np.median(columns)].mean() < rows[columns > np.median(columns)].mean() - 20
