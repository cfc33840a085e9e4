"""reconstruct.py and reenactment/reconstruction.py: what is rebuilt, manifest, baseline, resuming, bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from mrfomm.commands import reconstruct
from mrfomm.errors import UserError
from mrfomm.model import load_model
from mrfomm.reenactment import reconstruction
from mrfomm.reenactment.animator import Animator, array_to_images, images_to_array
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.store import locked

ROOT = Path(__file__).parent.parent.parent
LENGTHS = {"a#0": 5, "b.b#1": 6, "c#0": 3}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights and data/test: three clips as folders of frames, one with a dot in its name."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    tiny.checkpoint(folder / "other", model={"fusion": {"mode": "element"}})
    for seed, (name, length) in enumerate(LENGTHS.items()):
        (folder / "data" / "test" / name).mkdir(parents=True)
        for i, image in enumerate(tiny.frames(length, seed=seed)):
            imageio.imwrite(folder / "data" / "test" / name / f"{i}.png", image)
    return folder


def run(files, output, *options, weights="weights", data="data"):
    inputs = ["--data", str(files / data), "--weights", str(files / weights), "--context", "cpu", "--backend", "nnabla"]
    return reconstruct.main([*inputs, "--output", str(output), *options])


def manifest(output):
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def truth(files, clip):
    paths = sorted((files / "data" / "test" / clip).glob("*.png"))
    return np.stack([imageio.imread(path) for path in paths])


def pictures(output, row):
    return np.stack([imageio.imread(output / frame["file"]) for frame in row["frames"]])


def rebuilt(files, clip, references):
    """The pictures that the model makes of a clip, apart from the code under test and with nnabla's own operators.

    The command's operators sum in another order: a value may be rounded to the next grey level.
    """
    model = load_model(files / "weights")
    frames = images_to_array(truth(files, clip))
    animator = Animator(NnablaGraphs(*model), frames[list(references)], batch=2)
    return array_to_images(animator.render(animator.keypoints(frames)))


def assert_alike(ours, expected):
    difference = np.abs(ours.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_manifest_tells_what_every_picture_is(files, tmp_path, capsys):
    run(files, tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [(row["clip"], len(row["frames"])) for row in rows] == list(LENGTHS.items())
    for row in rows:
        length = LENGTHS[row["clip"]]
        assert row["references"] == [0, length - 1, (length - 1) // 2]
        assert row["source"] == str((files / "data" / "test" / row["clip"]).resolve())
        made = pictures(tmp_path / "out", row)
        assert_alike(made, rebuilt(files, row["clip"], row["references"]))
        distances = np.abs(made / 255 - truth(files, row["clip"]) / 255).mean(axis=(1, 2, 3))
        np.testing.assert_allclose([frame["l1"] for frame in row["frames"]], distances, atol=1e-12)
        assert row["l1"] == pytest.approx(distances.mean(), abs=1e-12)
        assert [frame["frame"] for frame in row["frames"]] == list(range(length))
    everything = np.mean([frame["l1"] for row in rows for frame in row["frames"]])
    assert f"L1D {everything:.4f} over 14 frames of 3 clips, from 3 references" in capsys.readouterr().out


def test_pseudo_takes_the_best_single_reference_frame_by_frame(files, tmp_path):
    run(files, tmp_path / "out", "--pseudo")
    chosen = set()
    for row in manifest(tmp_path / "out"):
        singles = {index: rebuilt(files, row["clip"], [index]) for index in row["references"]}
        true = truth(files, row["clip"]).astype(float)
        for frame, made in zip(row["frames"], pictures(tmp_path / "out", row)):
            i = frame["frame"]
            distances = {index: np.abs(single[i] - true[i]).mean() for index, single in singles.items()}
            best = min(distances, key=distances.get)
            assert frame["references"] == [best]
            assert_alike(made, singles[best][i])
            chosen.add(row["references"].index(best))
    assert len(chosen) > 1, "the clips don't show a choice"


def test_pseudo_is_never_worse_than_its_references_alone(files, tmp_path):
    run(files, tmp_path / "pseudo", "--pseudo")
    run(files, tmp_path / "first", "--refs", "first")
    for best, first in zip(manifest(tmp_path / "pseudo"), manifest(tmp_path / "first")):
        assert all(b["l1"] <= f["l1"] for b, f in zip(best["frames"], first["frames"]))


def test_batch_changes_nothing(files, tmp_path):
    run(files, tmp_path / "one", "--batch", "1", "--pseudo")
    run(files, tmp_path / "four", "--batch", "4", "--pseudo")
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def interrupt(monkeypatch, after):
    """Let rebuilding fail after some clips."""
    rebuild, calls = reconstruct.rebuild_clip, []

    def failing(clip, *rest):
        calls.append(clip.name)
        if len(calls) > after:
            raise KeyboardInterrupt
        return rebuild(clip, *rest)

    monkeypatch.setattr(reconstruct, "rebuild_clip", failing)
    return calls


@pytest.fixture
def broken_off(files, tmp_path, monkeypatch):
    """A run of which two clips are done."""
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            run(files, tmp_path / "out")
    assert len(manifest(tmp_path / "out")) == 2
    return tmp_path / "out"


def test_interrupted_run_is_continued_where_it_stopped(files, tmp_path, broken_off, monkeypatch, capsys):
    calls = interrupt(monkeypatch, after=9)
    run(files, broken_off)
    assert calls == ["c#0"]
    assert "2 of 3 clips are there already" in capsys.readouterr().err
    run(files, tmp_path / "whole")
    assert contents(broken_off) == contents(tmp_path / "whole")


def test_a_clip_that_two_runs_have_entered_counts_once(files, broken_off):
    lines = (broken_off / "manifest.jsonl").read_text()
    (broken_off / "manifest.jsonl").write_text(lines + lines)
    run(files, broken_off)
    assert [row["clip"] for row in manifest(broken_off)] == list(LENGTHS)


def test_a_second_run_in_the_folder_is_refused(files, broken_off):
    before = contents(broken_off)
    with locked(broken_off), pytest.raises(UserError, match="another run is at work there"):
        run(files, broken_off)
    assert contents(broken_off) == before


@pytest.mark.parametrize("damage", ["torn line", "missing frame", "staging left by a kill"])
def test_a_damaged_clip_is_made_again(files, tmp_path, broken_off, damage):
    frames = broken_off / "frames"
    if damage == "torn line":
        text = (broken_off / "manifest.jsonl").read_text()
        (broken_off / "manifest.jsonl").write_text(text[:-20])
    elif damage == "missing frame":
        (frames / "a#0" / "000003.png").unlink()
    else:
        (frames / "c#0" / ".mrfomm-x").mkdir(parents=True)
        (frames / "c#0" / ".mrfomm-x" / "000000.png").write_text("half")
    run(files, broken_off)
    run(files, tmp_path / "whole")
    ours, whole = contents(broken_off), contents(tmp_path / "whole")
    for found in (ours, whole):  # the order of the lines may differ
        found[Path("manifest.jsonl")] = sorted(found[Path("manifest.jsonl")].splitlines())
    assert ours == whole


def test_finished_run_is_left_alone(files, tmp_path, monkeypatch):
    run(files, tmp_path / "out")
    before = contents(tmp_path / "out")
    calls = interrupt(monkeypatch, after=0)
    run(files, tmp_path / "out")
    assert calls == []
    assert contents(tmp_path / "out") == before


@pytest.fixture
def changing(files, tmp_path):
    """Data that a test may change, as a folder for ``run``, and a finished run of it in out."""
    shutil.copytree(files / "data", tmp_path / "data")
    (tmp_path / "weights").symlink_to(files / "weights")
    run(tmp_path, tmp_path / "out")
    return tmp_path


def assert_as_if_made_now(folder):
    run(folder, folder / "now")
    ours, whole = contents(folder / "out"), contents(folder / "now")
    for found in (ours, whole):  # the order of the lines may differ
        found[Path("manifest.jsonl")] = sorted(found[Path("manifest.jsonl")].splitlines())
    assert ours == whole


def test_a_clip_that_was_replaced_is_rebuilt(changing, capsys):
    capsys.readouterr()
    kept = stamps(changing / "out", "a#0", "c#0")
    imageio.imwrite(changing / "data" / "test" / "b.b#1" / "4.png", tiny.frames(1, seed=9)[0])
    run(changing, changing / "out")
    printed = capsys.readouterr()
    assert "out: clips were replaced and are rebuilt: b.b#1\n" in printed.err
    assert "2 of 3 clips are there already" in printed.err
    assert stamps(changing / "out", "a#0", "c#0") == kept
    assert_as_if_made_now(changing)


def stamps(output, *clips):
    return [path.stat().st_mtime_ns for clip in clips for path in sorted((output / "frames" / clip).iterdir())]


def test_a_clip_of_which_only_the_name_stayed_is_rebuilt(changing, capsys):
    """A folder of frames in the place of another of as many frames, all of the same age."""
    shutil.rmtree(changing / "data" / "test" / "a#0")
    (changing / "data" / "test" / "a#0").mkdir()
    for i, image in enumerate(tiny.frames(LENGTHS["a#0"], seed=9)):
        imageio.imwrite(changing / "data" / "test" / "a#0" / f"{i}.png", image)
    run(changing, changing / "out")
    assert "clips were replaced and are rebuilt: a#0\n" in capsys.readouterr().err
    assert_as_if_made_now(changing)


def test_a_clip_that_left_the_data_leaves_the_result(changing, capsys):
    shutil.rmtree(changing / "data" / "test" / "c#0")
    run(changing, changing / "out")
    assert "clips left the data and are removed: c#0\n" in capsys.readouterr().err
    assert_as_if_made_now(changing)


def test_results_from_before_truths_were_known_are_rebuilt(changing):
    rows = manifest(changing / "out")
    for row in rows:
        del row["truth"]
    (changing / "out" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imageio.imwrite(changing / "data" / "test" / "a#0" / "0.png", tiny.frames(1, seed=9)[0])
    run(changing, changing / "out")
    assert_as_if_made_now(changing)


def test_frames_of_another_back_end_are_not_gone_on_with(files, broken_off):
    before = contents(broken_off)
    with pytest.raises(UserError, match="backend was nnabla on cpu, is onnx"):
        run(files, broken_off, "--backend", "onnx")
    record = json.loads((broken_off / "settings.json").read_text())
    del record["settings"]["backend"]
    (broken_off / "settings.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="backend was unknown, is nnabla on cpu"):
        run(files, broken_off)
    assert contents(broken_off).keys() == before.keys()


def test_frames_of_older_code_are_not_gone_on_with(files, broken_off, monkeypatch):
    before = contents(broken_off)
    monkeypatch.setattr(reconstruct, "fingerprint", lambda model: "of newer code")
    with pytest.raises(UserError, match="weights was [0-9a-f]+, is of newer code"):
        run(files, broken_off)
    assert contents(broken_off) == before


OTHER = [
    (["--refs", "2"], {}, "references was 3, is 2"),
    (["--pseudo"], {}, "pseudo was False, is True"),
    (["--fusion", "mean"], {}, "fusion was patch, is mean"),
    ([], {"weights": "other"}, "weights was [0-9a-f]+, is [0-9a-f]+; fusion was patch, is element"),
    ([], {"data": "copy"}, "data was .*, is .*copy"),
]


@pytest.mark.parametrize(("options", "changes", "named"), OTHER, ids=["refs", "pseudo", "fusion", "weights", "data"])
def test_other_settings_are_refused_and_named(files, broken_off, options, changes, named):
    if "data" in changes and not (files / "copy").exists():
        (files / "copy").symlink_to(files / "data")
        # a link resolves to the same data, which is no difference
        run(files, broken_off, **changes)
        (files / "copy").unlink()
        (files / "copy" / "test" / "a#0").mkdir(parents=True)
        imageio.imwrite(files / "copy" / "test" / "a#0" / "0.png", tiny.frames(1)[0])
    before = contents(broken_off)
    with pytest.raises(UserError, match=named):
        run(files, broken_off, *options, **changes)
    assert contents(broken_off) == before


def test_broken_clip_is_named_and_earlier_clips_stay(files, tmp_path):
    data = tmp_path / "data" / "test"
    data.mkdir(parents=True)
    (data / "a#0").symlink_to(files / "data" / "test" / "a#0")
    (data / "b#0.mp4").write_text("no video")
    arguments = ["--data", str(tmp_path / "data"), "--weights", str(files / "weights"), "--backend", "nnabla"]
    with pytest.raises(UserError, match="b#0.mp4"):
        reconstruct.main([*arguments, "--context", "cpu", "--output", str(tmp_path / "out")])
    assert [row["clip"] for row in manifest(tmp_path / "out")] == ["a#0"]


BAD = [
    (["--refs", "0"], {}, "--refs 0"),
    (["--refs", "some"], {}, "--refs some"),
    (["--batch", "0"], {}, "--batch 0"),
    (["--fusion", "element"], {}, "--fusion element"),
    ([], {"data": "weights"}, "test: no such folder"),
    ([], {"weights": "none"}, "none"),
]


@pytest.mark.parametrize(("options", "changes", "named"), BAD, ids=[named for *_, named in BAD])
def test_bad_input_is_named_and_nothing_is_left(files, tmp_path, options, changes, named):
    with pytest.raises(UserError, match=named):
        run(files, tmp_path / "out", *options, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_refused(files, tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(UserError, match="holds something other"):
        run(files, tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="holds something other"):
        run(files, tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "text"), [("settings.json", "{}"), ("settings.json", "no"), ("manifest.jsonl", '{"clip": "a#0"}\n')]
)
def test_damaged_records_are_named(files, broken_off, name, text):
    (broken_off / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: line 1"):
        run(files, broken_off)


def test_a_torn_line_is_an_error_for_readers(broken_off):
    text = (broken_off / "manifest.jsonl").read_text()
    (broken_off / "manifest.jsonl").write_text(text[:-20])
    with pytest.raises(UserError, match="half a line"):
        reconstruction.read_run(broken_off)
    assert len(reconstruction.read_run(broken_off, torn_line=True).rows) == 1


def test_process_prints_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, str(ROOT / "reconstruct.py"), "--data", "none"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[0].startswith("error: none/test")
    assert len(result.stderr.splitlines()) == 1
