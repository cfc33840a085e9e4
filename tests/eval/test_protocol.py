"""eval.bins for other methods: the exported protocol, frames laid out by its pairs.csv, one size, JSON, bad input."""

import csv
import json
import re
import shutil

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval import bins
from eval.bins import __main__ as command
from eval.lpips import load_lpips
from eval.results import read_rows
from mrfomm import bundled
from mrfomm.errors import UserError

ANGLES = {  # of both patterns: yaw, pitch, roll of each frame
    "yaw": [(-31, 0, 0), (-28.5, 1, 0), (-1, 3, 0), (0.5, 1, 1), (29, 0, 0)],
    "pitch": [(0, -12, 1), (0, 1, 0.5), (0, 11, 0)],
}
PATTERNS = ("ann_lamp", "bob_sun")
PAIRS = [("ann_lamp", "bob_sun"), ("bob_sun", "ann_lamp")]


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i:03d}.png", image)


def recordings(folder, size=32):
    for number, name in enumerate(PATTERNS):
        for i, (kind, angles) in enumerate(ANGLES.items()):
            write_frames(folder / name / kind, tiny.frames(len(angles), size, seed=10 * number + i))
            rows = [f"{i},{yaw},{pitch},{roll}" for i, (yaw, pitch, roll) in enumerate(angles)]
            (folder / name / f"{kind}.csv").write_text("\n".join(["frame,yaw,pitch,roll", *rows]))
    return folder


@pytest.fixture
def data(tmp_path):
    return recordings(tmp_path / "data")


@pytest.fixture(autouse=True)
def _no_plot(monkeypatch):
    """Matplotlib takes longer than all the rest."""
    monkeypatch.setattr(command, "draw_curves", lambda path, *_: path.touch())


def run(data, *options):
    fixed = ["--data", data, "--output", data.parent / "out", "--context", "cpu"]
    return bins.main([str(argument) for argument in (*fixed, *options)])


def table(folder):
    with open(folder / "pairs.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def protocol(data, tmp_path):
    run(data, "--export-protocol", tmp_path / "protocol")
    return tmp_path / "protocol"


def fill(protocol, data):
    """A perfect method: what the reference recorded at the driving frame's angle."""
    for row in table(protocol):
        shutil.copytree(data / row["reference"] / row["sequence"], protocol / row["generated"])


def test_what_is_exported(data, tmp_path, capsys):
    """References at yaw 0, -30, 30 and starts at the frontal frame, as labels say; pictures equal the recordings."""
    protocol = tmp_path / "protocol"
    run(data, "--export-protocol", protocol)
    rows = table(protocol)
    assert [(row["reference"], row["driving"], row["sequence"]) for row in rows] == [
        (*pair, kind) for pair in PAIRS for kind in ANGLES
    ]
    assert [(row["count"], row["start"]) for row in rows[:2]] == [("5", "3"), ("3", "1")]
    for row in rows:
        yaw = tiny.frames(5, seed=10 * PATTERNS.index(row["reference"]))
        for name, frame in {"yaw_0": 3, "yaw_-30": 0, "yaw_30": 4}.items():
            np.testing.assert_array_equal(imageio.imread(protocol / row[name]), yaw[frame])
        frames = sorted((protocol / row["frames"]).iterdir())
        assert [path.name for path in frames] == [f"{i:06d}.png" for i in range(int(row["count"]))]
        seed = 10 * PATTERNS.index(row["driving"]) + list(ANGLES).index(row["sequence"])
        np.testing.assert_array_equal([imageio.imread(path) for path in frames], tiny.frames(len(frames), seed=seed))
    assert not (data.parent / "out").exists()
    out, err = capsys.readouterr()
    assert out.startswith(f"{protocol / 'pairs.csv'}: 4 sequences to generate; then: python -m eval.bins --generated")
    assert "16/16" in err


def test_one_reference_and_absolute_motion(data, tmp_path, capsys):
    options = ["--refs", "frontal", "--motion", "absolute", "--json"]
    run(data, "--export-protocol", tmp_path / "p", *options)
    assert "yaw_-30" not in table(tmp_path / "p")[0]
    assert {row["start"] for row in table(tmp_path / "p")} == {""}
    record = json.loads(capsys.readouterr().out)
    assert [record[key] for key in ("sequences", "patterns", "frames")] == [4, 2, 16]


def test_a_filled_protocol_is_scored(data, protocol):
    """The perfect method scores nothing; one wrong picture shows in its own sequence alone."""
    fill(protocol, data)
    run(data, "--generated", f"perfect={protocol}")
    rows = read_rows(data.parent / "out" / "scores.jsonl")
    assert [(row["method"], row["lpips"]) for row in rows] == [("perfect", 0)] * 4
    row = table(protocol)[1]
    imageio.imwrite(protocol / row["generated"] / "001.png", tiny.frames(1, seed=99)[0])
    run(data, "--generated", protocol)
    wrong = [r for r in read_rows(data.parent / "out" / "scores.jsonl") if r["lpips"]]
    assert [(r["reference"], r["driving"], r["sequence"]) for r in wrong] == [("ann_lamp", "bob_sun", "pitch")]


def test_the_table_says_where_frames_are(data, protocol, tmp_path):
    fill(protocol, data)
    (protocol / "generated").rename(tmp_path / "elsewhere")
    text = (protocol / "pairs.csv").read_text().replace("generated/", "../elsewhere/")
    (protocol / "pairs.csv").write_text(text)
    run(data, "--generated", protocol)
    assert {row["lpips"] for row in read_rows(data.parent / "out" / "scores.jsonl")} == {0}


def change_table(old, new, count=-1):
    def change(protocol):
        path = protocol / "pairs.csv"
        path.write_text(path.read_text().replace(old, new, count))

    return change


def drop_row(protocol):
    lines = (protocol / "pairs.csv").read_text().splitlines()
    (protocol / "pairs.csv").write_text("\n".join(lines[:2] + lines[3:]))


def repeat_row(protocol):
    lines = (protocol / "pairs.csv").read_text().splitlines()
    (protocol / "pairs.csv").write_text("\n".join([*lines, lines[1]]))


def other_recordings(protocol):
    imageio.imwrite(protocol.parent / "data" / "bob_sun" / "pitch" / "000.png", tiny.frames(1, seed=5)[0])


def drop_frames(protocol):
    shutil.rmtree(protocol / "generated" / "ann_lamp" / "bob_sun" / "yaw")


def write_words(protocol):
    (protocol / "generated" / "ann_lamp" / "bob_sun" / "yaw" / "001.png").write_text("not a picture")


BAD = [
    (drop_frames, r"ann_lamp/bob_sun/yaw: no such folder, and no yaw\.mp4; .* of .*pairs\.csv"),
    (drop_row, r"pairs\.csv: no row for ann_lamp bob_sun pitch; a method needs the frames of all pairs"),
    (change_table("ann_lamp,", "ann,"), r"pairs\.csv: no row for ann_lamp bob_sun yaw and 3 more"),
    (repeat_row, r"pairs\.csv: line 6: is there twice"),
    (other_recordings, r"pairs\.csv: line 3: made from other recordings"),
    (change_table("generated", "made", 1), r"pairs\.csv: no column generated; it needs reference, driving"),
    (lambda protocol: (protocol / "pairs.csv").write_bytes(b"\xff\xfe\x00"), r"pairs\.csv: not a readable table"),
    (write_words, r"001\.png: not a readable image"),
]


@pytest.mark.parametrize(("spoil", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_tables_that_do_not_fit(data, protocol, spoil, problem):
    fill(protocol, data)
    spoil(protocol)
    with pytest.raises(UserError, match=problem):
        run(data, "--generated", protocol)


def test_an_export_replaces_nothing(data, protocol):
    before = sorted(protocol.rglob("*"))
    with pytest.raises(UserError, match="protocol: is there already; name a new folder"):
        run(data, "--export-protocol", protocol)
    assert sorted(protocol.rglob("*")) == before


@pytest.mark.parametrize("options", [["--generated", "x"], ["--weights", "x"], ["--size", "31"], ["--fusion", "mean"]])
def test_an_export_scores_nothing(data, tmp_path, options):
    with pytest.raises(
        UserError, match=re.escape(f"--export-protocol: generates and scores nothing; leave out {options[0]}")
    ):
        run(data, "--export-protocol", tmp_path / "p", *options)
    with pytest.raises(UserError, match="--size 0"):
        run(data, "--size", "0")


def test_a_missing_pose_is_told_before_anything_is_written(data, tmp_path):
    rows = (data / "bob_sun" / "yaw.csv").read_text().replace("29,0,0", "20,0,0")
    (data / "bob_sun" / "yaw.csv").write_text(rows)
    with pytest.raises(UserError, match=r"no frame within 5 degrees of yaw \+30"):
        run(data, "--export-protocol", tmp_path / "p")
    assert not (tmp_path / "p").exists()
    run(data, "--export-protocol", tmp_path / "p", "--allow-missing-poses")


def made_at(folder, size):
    """The perfect method, blind to the size it is asked for."""
    source = recordings(folder / "source", size)
    for reference, driving in PAIRS:
        shutil.copytree(source / reference, folder / "frames" / reference / driving)
    return folder / "frames"


def test_one_size_for_all(data, tmp_path, capsys):
    """Two methods of other sizes than the recordings; the oracle averages areas with OpenCV, bin by bin one picture."""
    large, small = made_at(tmp_path / "large", 64), made_at(tmp_path / "small", 40)
    both = ["--generated", f"large={large}", f"small={small}", "--bin-width", "1", "--range", "40"]
    with pytest.raises(UserError, match="40x40 pixels, but .* 64x64; make them alike, or bring all .* with --size"):
        run(data, *both)
    capsys.readouterr()
    run(data, *both, "--size", "31", "--json")
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert "all frames are brought to 31x31 pixels" in err
    assert "checking frames" in err
    assert "32/32" in err
    note = "31x31 pixels (recordings from 32x32, large from 64x64, small from 40x40: areas are averaged to shrink"
    assert any(note in line for line in record["notes"])
    assert (record["size"], record["width"], record["limit"], record["measure"]) == (31, 1, 40, "lpips")
    lpips = load_lpips(bundled.LPIPS_ALEXNET)
    scores = {(row["method"], row["sequence"]): row for row in record["scores"]}
    found = []
    for seed in (0, 10):
        pictures = [tiny.frames(5, size, seed=seed) for size in (32, 64)]
        true, made = ([cv2.resize(p, (31, 31), interpolation=cv2.INTER_AREA) for p in side] for side in pictures)
        found.append(lpips(np.stack(true), np.stack(made)).mean())
    assert scores["large", "yaw"]["mean"] == pytest.approx(np.mean(found), rel=1e-4)
    assert (scores["large", "yaw"]["pairs"], scores["large", "yaw"]["bins"]) == (2, 10)
    assert scores["large", "roll"]["mean"] is None
    difference = next(row for row in record["differences"] if row["sequence"] == "yaw")
    assert difference["mean"] == pytest.approx(scores["large", "yaw"]["mean"] - scores["small", "yaw"]["mean"])
    assert (difference["first"], difference["second"]) == ("large", "small")


def test_sizes_of_other_shapes_are_not_cut_in_silence(data, tmp_path):
    """Brought to one size, each would lose other parts."""
    square, wide = made_at(tmp_path / "square", 40), made_at(tmp_path / "wide", 40)
    for path in wide.rglob("*.png"):
        imageio.imwrite(path, np.pad(imageio.imread(path), ((0, 0), (0, 10), (0, 0))))
    with pytest.raises(UserError, match="50x40 pixels, but .* 40x40; cut them to one shape"):
        run(data, "--generated", square, f"wide={wide}", "--size", "31", "--method", "a", "b")


def test_a_method_has_squares_or_the_shape_of_the_recordings(data, tmp_path, capsys):
    """A wide frame of a square recording isn't what is left of it when its sides are cut off."""
    method = made_at(tmp_path, 40)
    for path in method.rglob("*.png"):
        imageio.imwrite(path, np.pad(imageio.imread(path), ((0, 0), (0, 10), (0, 0))))
    with pytest.raises(UserError, match="50x40 pixels, but .*data/ann_lamp/yaw: 32x32; cut them to one shape"):
        run(data, "--generated", method)
    for path in data.rglob("*.png"):
        imageio.imwrite(path, np.pad(imageio.imread(path), ((4, 4), (9, 9), (0, 0))))
    run(data, "--generated", method)
    assert "at 40x40 pixels (recordings from 50x40, frames from 50x40: " in capsys.readouterr().out
    assert "cut to central squares; LPIPS" in (tmp_path / "out" / "table.md").read_text()
