"""What scripts draw: sheets, films, and how docs call them."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eval.generation import Poses
from mrfomm import bundled
from mrfomm.errors import UserError
from mrfomm.media import provenance
from mrfomm.media.reading import open_frames
from scripts import heads_study, make_film, sheets

ROOT = Path(__file__).parent.parent.parent
FOMM = f"FOMM={bundled.MODELS['fomm']}"
OURS = f"ours={bundled.MODELS['patch']}"


def flat(value, side=sheets.CELL):
    return np.full((side, side, 3), value, np.uint8)


def cells(sheet, down, across):
    """The pictures of a sheet, from its lower right corner, by the layout that the docstring promises."""
    step = sheets.CELL + sheets.GAP
    top, left = sheet.shape[0] + sheets.GAP - down * step, sheet.shape[1] + sheets.GAP - across * step
    picture = sheet[top:, left:]
    return [[picture[step * i :, step * j :][: sheets.CELL, : sheets.CELL] for j in range(across)] for i in range(down)]


def test_a_sheet_without_labels_is_its_pictures():
    sheet = sheets.sheet([[flat(10), flat(20)], [flat(30)]])
    assert sheet.shape == (2 * 128 + 2, 2 * 128 + 2, 3)
    assert [[cell.mean() for cell in row] for row in cells(sheet, 2, 2)] == [[10, 20], [30, 255]]


def test_labels_stand_above_and_to_the_left():
    """White and black outside the pictures, which stay as they are; a text has ink in its own column or row alone."""
    sheet = sheets.sheet([[flat(10), flat(20)], [flat(30), flat(40)]], ["", "one"], ["", "two\nlines"])
    assert [[set(cell.ravel()) for cell in row] for row in cells(sheet, 2, 2)] == [[{10}, {20}], [{30}, {40}]]
    top, left = sheet.shape[0] - 258, sheet.shape[1] - 258
    above, beside = sheet[:top], sheet[top:, :left]
    assert above[:, left + 130 :].min() < 64
    assert above[:, : left + 130].min() == 255
    assert beside[130:].min() < 64
    assert beside[:130].min() == 255


def test_small_pictures_are_enlarged_and_large_ones_kept():
    ramp = np.repeat(np.linspace(0, 255, 64).round().astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    small = sheets.sheet([[ramp]])
    assert small.shape == (128, 128, 3)
    assert np.abs(small[::2, 1:-1:2].astype(int) - ramp[:, :-1]).max() <= 4  # a step of the ramp
    assert sheets.sheet([[flat(1, 200), flat(2, 64)]]).shape == (200, 402, 3)


def test_sheets_below_each_other_line_up_on_the_right():
    stack = sheets.stacked([np.zeros((2, 5, 3), np.uint8), np.zeros((3, 7, 3), np.uint8)])
    assert stack.shape == (5, 7, 3)
    assert (stack[:2, :2].min(), stack[:2, 2:].max(), stack[2:].max()) == (255, 0, 0)


def test_yaws_have_signs():
    assert [sheets.degrees(yaw, "yaw") for yaw in (-30, 0, 30.0)] == ["yaw -30°", "yaw 0°", "yaw +30°"]


def test_a_turn_of_the_head_ends_where_it_starts():
    """A sweep of 1 degree a frame: to one side, the other and back, no step above the sine's steepest."""
    angles = np.arange(-60.0, 61)
    way = angles[make_film.turn(angles, 60, 120)]
    assert (way[0], way[30], way[60], way[90]) == (0, 60, 0, -60)
    steps = np.abs(np.diff([*way, way[0]]))  # the film loops
    assert steps.max() <= 60 * 2 * np.pi / 120 + 1


def test_a_turn_stays_within_what_was_recorded():
    assert set(make_film.turn(np.array([-10.0, 0, 10]), 60, 40)) == {0, 1, 2}


FOLDERS = [Path(name) for name in ("a_side", "a_soft", "b_side", "b_soft")]


@pytest.mark.parametrize(
    ("subject", "driver", "expected"),
    [
        (None, None, ["a_side", "b_side"]),
        ("b_soft", None, ["b_soft", "a_side"]),
        ("a_soft", "b_soft", ["a_soft", "b_soft"]),
    ],
)
def test_another_person_drives(subject, driver, expected):
    assert [folder.name for folder in make_film.chosen_folders(FOLDERS, subject, driver)] == expected


@pytest.mark.parametrize(
    ("folders", "subject", "driver", "message"),
    [
        (FOLDERS, "c", None, "--subject c: no such pattern; there are a_side"),
        (FOLDERS, "a_side", "a_soft", "--driver a_soft: needs a pattern of another person; there are b_side, b_soft"),
        (FOLDERS[:2], None, None, "all patterns are of a"),
    ],
)
def test_wrong_people_are_refused(folders, subject, driver, message):
    with pytest.raises(UserError, match=message):
        make_film.chosen_folders(folders, subject, driver)


@pytest.mark.parametrize("options", [["-o", "film.avi"], ["-o", "film.webp", "--quality", "101"]])
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=r"\.webp|0 to 100"):
        make_film.main(options)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(make_film, "TURNS", {"yaw": (60, 5), "pitch": (20, 5)})


@pytest.mark.slow
def test_the_film(short, tmp_path):
    """Columns as promised: still references, the driver's own frames, two models' pictures that move and differ."""
    film = tmp_path / "film.webp"
    assert make_film.main([FOMM, OURS, "--quality", "100", "-o", str(film)]) == 0
    first = film.read_bytes()
    make_film.main([FOMM, OURS, "--quality", "100", "-o", str(film)])
    assert film.read_bytes() == first
    with Image.open(film) as image:
        assert (image.n_frames, image.info["loop"]) == (10, 0)
        frames = []
        for number in range(10):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
    rows = [cells(frame, 1, 6)[0] for frame in frames]
    changes = [max(np.abs(row[column] - rows[0][column]).mean() for row in rows) for column in range(6)]
    assert max(changes[:3]) < 2 < 5 < min(changes[3:])
    differing = [np.abs(row[4] - row[5]).mean() for row in rows]
    assert min(differing) > 0.5
    driver = list(open_frames(bundled.BENCHMARK / "s2_side" / "yaw.mp4"))
    assert np.abs(rows[0][3] - sheets.enlarged(driver[60], 128)).mean() < 4  # yaw 0; the codec's loss


@pytest.mark.slow
def test_a_film_as_a_clip_says_that_it_is_synthetic(short, tmp_path):
    make_film.main([OURS, "--subject", "s1_soft", "--driver", "s2_soft", "-o", str(tmp_path / "film.mp4")])
    assert len(list(open_frames(tmp_path / "film.mp4"))) == 10
    record = provenance.read(tmp_path / "film.mp4")
    assert record["synthetic"]
    assert record["driving"] == provenance.clip_digest(bundled.BENCHMARK / "s2_soft" / "yaw.mp4")


def test_another_person_is_the_next_one():
    patterns = [SimpleNamespace(name=folder.name) for folder in FOLDERS]
    assert [heads_study.another(one, patterns).name for one in patterns] == ["b_side", "b_side", "a_side", "a_side"]


@pytest.mark.slow
def test_the_sheet_of_angles(tmp_path, monkeypatch):
    """A block for each pattern, its labels and a row for the driver and each model."""
    monkeypatch.setattr(heads_study, "STEPS", (-60, 0))
    heads_study.main(["angles", FOMM, OURS, "-o", str(tmp_path / "angles.webp")])
    with Image.open(tmp_path / "angles.webp") as image:
        assert image.height == 9 * (2 * sheets.TEXT + 3 * 130 - 2)
        assert image.width - 3 * 130 > 50


@pytest.mark.parametrize("draw", [heads_study, make_film], ids=["sheet", "film"])
def test_nothing_is_chosen_by_a_truth_where_others_drive(draw, tmp_path):
    """All references, fused, would have been drawn under its name."""
    question = ["angles"] if draw is heads_study else []
    with pytest.raises(UserError, match="^FOMM: pseudo chooses by a truth"):
        draw.main([*question, f"{FOMM}:pseudo", "-o", str(tmp_path / "picture.webp")])


def test_a_column_is_of_its_yaw_or_refused():
    """Where a recording ends at 30 degrees, its last frame isn't shown as 60."""
    content = SimpleNamespace(frames=SimpleNamespace(read=None))
    recording = SimpleNamespace(own_angles=np.arange(-30.0, 31), path="yaw.mp4", content=content)
    with pytest.raises(
        UserError, match=r"yaw.mp4: no frame within 5 degrees of yaw \+60; the nearest, frame 60, is 30"
    ):
        heads_study.frames_at(recording, (0, 60), 64)


def test_poses_of_the_film_are_those_of_the_metric():
    assert make_film.POSES == heads_study.POSES == Poses(5, False)


def imported(script):
    """The first names of what a script imports."""
    nodes = list(ast.walk(ast.parse(script.read_text(encoding="utf-8"))))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_called_as_they_can_be(script):
    """`python scripts/NAME.py` finds what is installed alone: no eval, no other script. Those are called with -m."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), ROOT / "mrfomm/assets/README.md", ROOT / "Makefile", script]
    called = [
        page.name
        for page in pages
        if re.search(rf"(python|PY\)) scripts/{script.name}", page.read_text(encoding="utf-8"))
    ]
    assert not (called and imported(script) & {"eval", "scripts"}), called
