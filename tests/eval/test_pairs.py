"""python -m eval.pairs: two folders of pictures or two videos, numbers by hand and by a slow loop, bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny
from reference.ssim import ssim as slow_ssim

from eval import pairs
from eval.lpips import load_lpips
from eval.results import bootstrap_interval
from mrfomm import bundled
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink

ROOT = Path(__file__).parent.parent.parent
PICTURES = tiny.frames(3, 36)[:, :, :32]  # [3,36,32,3]: no squares
OTHERS = PICTURES + np.array([2, 5, 9], np.uint8)[:, None, None, None]


def write(folder, pictures):
    folder.mkdir()
    for name, picture in zip(("front.png", "2.png", "10.png"), pictures):
        imageio.imwrite(folder / name, picture)
    return folder


@pytest.fixture
def folders(tmp_path):
    return write(tmp_path / "a", PICTURES), write(tmp_path / "b", OTHERS)


def compare(capsys, *arguments):
    assert pairs.main([*map(str, arguments), "--context", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "scoring: 100%" in err
    record = json.loads(out)
    return {row["measure"]: row for row in record["scores"]}, record


def test_folders(folders, capsys):
    """L1 and PSNR of offsets by hand, SSIM by the loop over windows, LPIPS as eval.lpips has it."""
    scores, record = compare(capsys, *folders)
    by_name = {row["name"]: row for row in record["pictures"]}
    assert list(by_name) == ["2.png", "10.png", "front.png"]
    perceptual = load_lpips(bundled.LPIPS_ALEXNET)(PICTURES, OTHERS)
    for i, (name, offset) in enumerate((("front.png", 2), ("2.png", 5), ("10.png", 9))):
        row = by_name[name]
        assert row["l1"] == pytest.approx(offset / 255, abs=1e-12)
        assert row["psnr"] == pytest.approx(-20 * np.log10(offset / 255), abs=1e-9)
        assert row["ssim"] == pytest.approx(slow_ssim(PICTURES[i] / 255, OTHERS[i] / 255), abs=1e-9)
        assert row["lpips"] == pytest.approx(perceptual[i], rel=1e-4)
    for measure, row in scores.items():
        expected = bootstrap_interval([by_name[name][measure] for name in ("10.png", "2.png", "front.png")])
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(expected)
        assert row["units"] == 3


def test_the_table(folders, capsys):
    assert pairs.main([*map(str, folders), "--context", "cpu"]) == 0
    out = capsys.readouterr().out
    header, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[:3])
    assert header == ["pictures", "L1", "PSNR", "SSIM", "LPIPS"]
    assert row[0] == "3"
    assert row[1].startswith(f"{16 / 3 / 255:.4f} [")
    assert "Command: `python -m eval.pairs" in out


def test_equal_pictures_have_no_psnr(folders, capsys):
    shutil.copy(folders[0] / "2.png", folders[1] / "2.png")
    scores, record = compare(capsys, *folders)
    assert (scores["psnr"]["units"], scores["ssim"]["units"]) == (2, 3)
    assert any("PSNR: 1 of them left out" in note for note in record["notes"])
    scores, _ = compare(capsys, folders[0], folders[0])
    assert (scores["psnr"]["mean"], scores["l1"]["mean"], scores["lpips"]["mean"]) == (None, 0, 0)


def write_video(path, pictures, rate=25):
    with open_sink(path, rate) as sink:
        for picture in pictures:
            sink.write(picture)
    return path


def test_videos_meet_by_frame_number(tmp_path, capsys):
    a, b = write_video(tmp_path / "a.mp4", PICTURES), write_video(tmp_path / "b.mkv", OTHERS)
    scores, record = compare(capsys, a, b)
    decoded = [np.stack(list(open_frames(path))).astype(float) for path in (a, b)]
    assert scores["l1"]["mean"] == pytest.approx(np.abs(decoded[0] - decoded[1]).mean() / 255, rel=1e-9)
    assert [row["name"] for row in record["pictures"]] == ["0", "1", "2"]


def test_videos_of_two_rates_are_told_of(tmp_path, capsys):
    places = [str(write_video(tmp_path / f"{rate}.mp4", PICTURES, rate)) for rate in (25, 50)]
    assert pairs.main([*places, "--context", "cpu"]) == 0
    line = f"{places[0]}: 25 frames per second, {places[1]}: 50; frames are compared by their number"
    assert line in capsys.readouterr().err
    pairs.main([places[0], places[0], "--context", "cpu"])
    assert "frames per second" not in capsys.readouterr().err


def rename(a, b):
    (b / "2.png").rename(b / "3.png")


def resize(a, b):
    imageio.imwrite(b / "10.png", np.zeros((40, 32, 3), np.uint8))


def empty(a, b):
    shutil.rmtree(b)
    b.mkdir()


def shrink(a, b):
    for folder in (a, b):
        imageio.imwrite(folder / "2.png", np.zeros((12, 40, 3), np.uint8))


def into_videos(count):
    def replace(a, b):
        for folder, pictures in ((a, PICTURES), (b, OTHERS[:count])):
            shutil.rmtree(folder)
            write_video(folder.with_suffix(".mp4"), pictures).rename(folder)

    return replace


BAD = [
    (rename, r"/b: no 2\.png, unlike the other folder; give folders of the same names"),
    (lambda a, b: (b / "x.png").write_bytes((a / "2.png").read_bytes()), r"/a: no x\.png, unlike the other folder"),
    (lambda a, b: [path.unlink() for path in list(b.iterdir())[:2]], r"/b: no \S+\.png and 1 more, unlike"),
    (resize, r"/a/10\.png: 32x36 pixels, but \S+/b/10\.png: 32x40 pixels; make them alike"),
    (shrink, r"/a/2\.png: 40x12 pixels; LPIPS needs 31 on a side"),
    (empty, r"/b: no image in this folder"),
    (lambda a, b: (b / "2.png").write_text("words"), r"/b/2\.png: not a readable image"),
    (lambda a, b: shutil.rmtree(b), r"/b: cannot be listed \(No such file"),
    (lambda a, b: shutil.rmtree(a), r"/a: no such file"),
    (lambda a, b: (shutil.rmtree(b), b.write_text("x")), r"a folder and a file; give two folders of pictures"),
    (into_videos(2), r"/a: 3 frames, but \S+/b: 2; give clips of one length"),
]


@pytest.mark.parametrize(("spoil", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_bad_input(folders, capsys, spoil, problem):
    spoil(*folders)
    with pytest.raises(pairs.UserError, match=problem):
        pairs.main([*map(str, folders), "--context", "cpu"])
    assert capsys.readouterr().out == ""


def test_the_process_says_one_line_and_exits_with_2(folders):
    rename(*folders)
    command = [sys.executable, "-m", "eval.pairs", *map(str, folders)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {folders[1]}: no 2.png")
