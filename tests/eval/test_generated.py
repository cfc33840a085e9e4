"""Other methods' frames in the table of reconstruction: their layout, pairing with ours, one size, JSON, bad input."""

import json
import re
import shutil

import av
import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval import reconstruction
from mrfomm.commands import reconstruct
from mrfomm.errors import UserError

LENGTHS = {"a#0": 3, "b#0": 5}
BARE = ["--landmarks", "none", "--identity", "none", "--context", "cpu"]


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i}.png", image)


def write_video(path, images):
    """Lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 25)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "bgr0"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


def truth(clip, size=32):
    return tiny.frames(LENGTHS[clip], size, seed=list(LENGTHS).index(clip))


@pytest.fixture
def data(tmp_path):
    for clip in LENGTHS:
        write_frames(tmp_path / "data" / "test" / clip, truth(clip))
    return tmp_path / "data"


@pytest.fixture
def frames(tmp_path):
    """Another method's: the truth five levels brighter, one clip as pictures and one as a video."""
    write_frames(tmp_path / "frames" / "a#0", truth("a#0") + np.uint8(5))
    write_video(tmp_path / "frames" / "b#0.mkv", truth("b#0") + np.uint8(5))
    return tmp_path / "frames"


def score(tmp_path, *arguments):
    return reconstruction.main([*map(str, arguments), "--output", str(tmp_path / "scores"), *BARE])


def printed(capsys):
    """What --json has printed: the object, and what went to stderr."""
    out, err = capsys.readouterr()
    return json.loads(out), err


def by_measure(rows, *names):
    return {tuple(row[name] for name in (*names, "measure")): row for row in rows}


def test_folders_and_videos_named_like_the_clips(tmp_path, data, frames, capsys):
    """L1D and PSNR of a constant offset, nothing clipped."""
    score(tmp_path, "--generated", f"other={frames}", "--data", data, "--json")
    record, err = printed(capsys)
    scores = by_measure(record["scores"], "method")
    assert scores["other", "l1"]["mean"] == pytest.approx(5 / 255, abs=1e-12)
    assert scores["other", "psnr"]["mean"] == pytest.approx(-20 * np.log10(5 / 255), abs=1e-9)
    assert [scores["other", "l1"][key] for key in ("clips", "frames", "dropped", "size")] == [2, 8, 0, 32]
    assert record["differences"] == []
    assert record["command"].startswith("python -m eval.reconstruction --generated other=")
    assert any(f"other: 8 frames of 2 clips in {data / 'test'}, frames in {frames}" in note for note in record["notes"])
    assert "8/8" in err
    assert "frame" in err


def test_ours_beside_the_same_frames_as_another_s(tmp_path, data, capsys):
    """The pictures of a run, laid out as they are, score as the run does; the difference is nothing at all."""
    weights = tiny.checkpoint(tmp_path / "weights")
    rebuild = ["--weights", weights, "--data", data, "--context", "cpu", "--backend", "nnabla"]
    reconstruct.main([*map(str, rebuild), "--output", str(tmp_path / "run")])
    capsys.readouterr()
    score(tmp_path, tmp_path / "run", "--generated", f"again={tmp_path / 'run' / 'frames'}", "--json")
    record, _ = printed(capsys)
    scores = by_measure(record["scores"], "method")
    for measure in ("l1", "psnr", "ssim", "lpips"):
        assert scores["run", measure]["mean"] == pytest.approx(scores["again", measure]["mean"], rel=1e-12)
        difference = by_measure(record["differences"], "first", "second")["run", "again", measure]
        assert [difference[key] for key in ("mean", "low", "high", "clips", "frames")] == [0, 0, 0, 2, 8]


def test_several_methods_and_their_names(tmp_path, data, frames, capsys):
    nearer = tmp_path / "nearer"
    for clip in LENGTHS:
        write_frames(nearer / clip, truth(clip) + np.uint8(2))
    score(tmp_path, "--generated", frames, "--generated", f"two={nearer}", "--data", data)
    text = capsys.readouterr().out
    assert "| frames " in text
    assert "| two " in text
    assert f"| frames - two | {3 / 255:.4f} [{3 / 255:.4f}, {3 / 255:.4f}]" in text
    assert (tmp_path / "scores" / "table.md").read_text() == text
    score(tmp_path, "--generated", frames, "--generated", nearer, "--data", data, "--method", "x", "y")
    assert "| x - y " in capsys.readouterr().out


def test_one_size_for_all(tmp_path, data, frames, capsys):
    """Methods of 32 and 64 pixels are refused side by side; --size brings both and the truth there: OpenCV's average of
    areas is the oracle, and what has the size already stays as it is."""
    large = tmp_path / "large"
    for clip in LENGTHS:
        write_frames(large / clip, truth(clip, 64))
    both = ["--generated", frames, "--generated", large, "--data", data]
    with pytest.raises(UserError, match="results of 32 and 64 pixels.*--size"):
        score(tmp_path, *both)
    score(tmp_path, *both, "--size", "31", "--json")
    record, err = printed(capsys)
    assert record["size"] == 31
    said = "Images of 31 pixels (frames from 32, large from 64: areas are averaged"
    assert said in err
    assert any(said in note for note in record["notes"])
    scores = by_measure(record["scores"], "method")
    true, made = (
        np.concatenate([[cv2.resize(image, (31, 31), interpolation=cv2.INTER_AREA) for image in f] for f in source])
        for source in ([truth(clip) for clip in LENGTHS], [truth(clip, 64) for clip in LENGTHS])
    )
    expected = np.abs(true.astype(float) - made).mean() / 255
    assert scores["large", "l1"]["mean"] == pytest.approx(expected, rel=1e-9)
    assert scores["frames", "l1"]["mean"] == pytest.approx(5 / 255, rel=0.02)
    score(tmp_path, *both, "--size", "32", "--json")
    record, err = printed(capsys)
    assert "are replaced" in err
    assert by_measure(record["scores"], "method")["frames", "l1"]["mean"] == pytest.approx(5 / 255, abs=1e-12)


def drop_clips(frames):
    (frames / "b#0.mkv").unlink()
    shutil.rmtree(frames / "a#0")


def shorten(frames):
    (frames / "a#0" / "2.png").unlink()


def widen(frames):
    for path in (frames / "a#0").iterdir():
        imageio.imwrite(path, np.zeros((32, 40, 3), np.uint8))


def write_words(frames):
    (frames / "a#0" / "1.png").write_text("not a picture")


def empty(frames):
    shutil.rmtree(frames / "a#0")
    (frames / "a#0").mkdir()


def double(frames):
    write_video(frames / "a#0.mkv", truth("a#0"))


BAD = [
    (lambda frames: shutil.rmtree(frames / "a#0"), "frames: no folder or video of the test clip a#0; a method needs"),
    (drop_clips, "no folder or video of the test clip a#0 (nor of 1 more)"),
    (shutil.rmtree, "frames: no such folder; give one with a folder of frames or a video"),
    (shorten, "a#0: 2 frames, but the true clip"),
    (widen, "a#0: 40x32 pixels; cut out the central square"),
    (write_words, "1.png: not a readable image"),
    (empty, "a#0: no image in this folder"),
    (double, "a#0.mkv: there is a folder a#0 too"),
]


@pytest.mark.parametrize(("spoil", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_bad_frames(tmp_path, data, frames, spoil, problem):
    spoil(frames)
    with pytest.raises(UserError, match=re.escape(problem)):
        score(tmp_path, "--generated", frames, "--data", data)
    assert not (tmp_path / "scores").exists()


def test_bad_options(tmp_path, data, frames):
    with pytest.raises(UserError, match="--generated: .* with --data"):
        score(tmp_path, "--generated", frames)
    with pytest.raises(UserError, match="frames/test: no such folder"):
        score(tmp_path, "--generated", frames, "--data", frames)
    with pytest.raises(UserError, match="--size 0"):
        score(tmp_path, "--generated", frames, "--data", data, "--size", "0")
    with pytest.raises(UserError, match="images of 20x20 pixels: LPIPS"):
        score(tmp_path, "--generated", frames, "--data", data, "--size", "20")
    with pytest.raises(UserError, match="two methods are called frames"):
        score(tmp_path, "--generated", frames, "--generated", frames, "--data", data)
