"""From raw videos to clips, on drawn videos: a green square plays the face."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from mrfomm.data import prepare
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.preparing import cutting
from mrfomm.errors import UserError
from mrfomm.media.crop import Box
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.store import locked

SIDE = 24  # of the face
SHAPE = (96, 128, 3)


class FindGreen:
    """Takes the place of the face detector: finds the green square."""

    def __call__(self, frame):
        rows, columns = np.nonzero((frame[..., 1] > 128) & (frame[..., 0] < 128))
        if len(rows) < SIDE**2 // 2:
            return None
        return Box(int(columns.min()), int(rows.min()), int(columns.max() - columns.min() + 1))


@pytest.fixture(autouse=True)
def _green_faces(monkeypatch):
    monkeypatch.setattr(prepare, "FaceFinder", FindGreen)


def draw(x, y=30):
    """A frame with a face at (x, y), with a red spot in its middle; without one for x = None."""
    frame = np.full(SHAPE, 60, np.uint8)
    if x is not None:
        frame[y : y + SIDE, x : x + SIDE] = (0, 255, 0)
        frame[y + 10 : y + 14, x + 10 : x + 14] = (255, 0, 0)
    return frame


def write_video(path, positions, fps=25):
    with open_sink(path, fps) as sink:
        for x in positions:
            sink.write(draw(x))


def run(tmp_path, *options):
    arguments = [str(tmp_path / "raw"), "-o", str(tmp_path / "data"), "--size", "32", "--min-frames", "10"]
    return prepare.main([*arguments, *options])


def clips_of(tmp_path, split):
    folder = tmp_path / "data" / split
    return find_clips(folder) if folder.exists() else []


def names(tmp_path, split):
    return [clip.name for clip in clips_of(tmp_path, split)]


def everything(tmp_path):
    return {f"{split}/{name}" for split in ("train", "test") for name in names(tmp_path, split)}


def test_crops_show_the_face_in_a_fixed_square(tmp_path):
    positions = [40 + i // 8 for i in range(40)]  # to 44 in the last frames
    write_video(tmp_path / "raw" / "ann" / "walk.mp4", positions)
    write_video(tmp_path / "raw" / "bob" / "none.mp4", [None] * 20)
    assert run(tmp_path, "--margin", "0.5", "--test-share", "0", "--lossless") == 0
    assert everything(tmp_path) == {"train/ann#walk#000000#000036"}
    frames = open_clip(clips_of(tmp_path, "train")[0])
    assert frames.length == 36
    # Places 40..44 make a square of 28 around (54, 42); with the margin it has 56, and it is raised by 2.
    shown = frames.read(range(36), 32)
    for i, frame in enumerate(shown):
        square = draw(positions[i])[12:68, 26:82]
        red = np.argwhere((frame[..., 0] > 120) & (frame[..., 1] < 120))
        expected = np.argwhere(square[..., 0] == 255).mean(axis=0) * 32 / 56
        np.testing.assert_allclose(red.mean(axis=0), expected, atol=0.8)
        assert abs(frame[..., 1].mean() - square[..., 1].mean()) < 4


def test_chunks_end_where_the_face_leaves(tmp_path):
    positions = [10] * 30 + [None] * 20 + [10] * 30 + [90] * 30 + [10] * 5
    write_video(tmp_path / "raw" / "ann.mp4", positions)
    assert run(tmp_path, "--test-share", "0") == 0
    assert names(tmp_path, "train") == ["ann#ann#000000#000026", "ann#ann#000050#000076", "ann#ann#000080#000106"]
    for clip in clips_of(tmp_path, "train"):
        frames = open_clip(clip)
        assert frames.length == 26
        assert all(FindGreen()(frame) for frame in frames.read(range(26), 96))


def test_small_faces_and_short_chunks_are_left_out(tmp_path, capsys):
    write_video(tmp_path / "raw" / "ann.mp4", [10] * 30 + [90] * 8)
    assert run(tmp_path, "--test-share", "0") == 0
    assert names(tmp_path, "train") == ["ann#ann#000000#000026"]
    with pytest.raises(UserError, match="no clip came out of it .1 without a usable face.; lower --min-frames"):
        prepare.main([str(tmp_path / "raw"), "-o", str(tmp_path / "big"), "--min-face", "60", "--min-frames", "5"])


def test_identities_are_split_and_broken_videos_reported(tmp_path, capsys):
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1", "c/2"):
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 16)
    (tmp_path / "raw" / "c" / "3.mp4").write_bytes(b"broken")
    (tmp_path / "raw" / "c" / "notes.txt").write_text("no video")
    assert run(tmp_path, "--test-share", "0.34") == 0
    train, test = ({clip.identity for clip in clips_of(tmp_path, split)} for split in ("train", "test"))
    assert train | test == set("abc")
    assert not train & test
    assert len(test) == 1
    output = capsys.readouterr()
    assert output.out == (
        "train: 4 clips of 2 identities\ntest: 2 clips of 1 identity\n"
        "videos: 6 cut; 1 unreadable: c/3.mp4; 1 file left out: .txt\n"
    )
    assert f"skipped: {tmp_path / 'raw' / 'c' / '3.mp4'}: " in output.err


@pytest.mark.parametrize(("share", "later", "split"), [("0.1", "least", "train"), ("0.5", "greatest", "test")])
def test_a_video_added_later_leaves_the_split_as_it_is(tmp_path, share, later, split):
    """Chosen afresh by their hashes, the identities would change places."""
    by_hash = sorted("abc", key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    added = by_hash.pop(0 if later == "least" else -1)
    for name in by_hash:
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 16)
    run(tmp_path, "--test-share", share)
    before = everything(tmp_path)
    assert len(names(tmp_path, "test")) == len(names(tmp_path, "train")) == 1
    write_video(tmp_path / "raw" / f"{added}.mp4", [30] * 16)
    run(tmp_path, "--test-share", share)
    assert everything(tmp_path) == before | {f"{split}/{added}#{added}#000000#000016"}


def test_a_single_identity_is_split_by_time(tmp_path):
    write_video(tmp_path / "raw" / "ann.mp4", [30] * 101)
    run(tmp_path, "--test-share", "0.2")
    assert names(tmp_path, "train") == ["ann#ann#000000#000081"]
    assert names(tmp_path, "test") == ["ann#ann#000081#000101"]
    assert open_clip(clips_of(tmp_path, "test")[0]).length == 20
    write_video(tmp_path / "raw" / "bob.mp4", [30] * 20)
    with pytest.raises(UserError, match="data: made with other settings .split was time.; choose another --output"):
        run(tmp_path, "--test-share", "0.2")


def test_a_second_run_does_nothing_and_other_settings_are_refused(tmp_path, monkeypatch):
    write_video(tmp_path / "raw" / "ann.mp4", [30] * 40)
    run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cutting, "write_cuts", lambda *_: pytest.fail("cut again"))
        assert run(tmp_path) == 0
    with pytest.raises(UserError, match="made with other settings .margin was 0.4."):
        run(tmp_path, "--margin", "0.3")


def test_a_manifest_cut_short_is_mended(tmp_path):
    for name in ("ann", "bob"):
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 16)
    run(tmp_path)
    manifest = tmp_path / "data" / "manifest.jsonl"
    whole = manifest.read_text()
    manifest.write_text(whole[:-15])
    run(tmp_path)
    assert manifest.read_text() == whole
    assert [json.loads(line).get("video") for line in whole.splitlines()] == [None, "ann.mp4", "bob.mp4"]


def test_a_manifest_of_something_else_is_refused(tmp_path):
    write_video(tmp_path / "raw" / "ann.mp4", [30] * 5)
    (tmp_path / "data").mkdir()
    for text in (b"no record\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b'{}\n{"video": "a", "clips": 5}\n'):
        (tmp_path / "data" / "manifest.jsonl").write_bytes(text)
        with pytest.raises(UserError, match="manifest.jsonl: not a record that this command wrote"):
            run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/data: can't write there .*choose another place"):
        prepare.main([str(tmp_path / "raw"), "-o", str(tmp_path / "file" / "data")])


def test_a_second_run_into_the_folder_is_refused(tmp_path):
    write_video(tmp_path / "raw" / "ann.mp4", [30] * 5)
    with locked(tmp_path / "data", make=True), pytest.raises(UserError, match="another run is at work there"):
        run(tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


def test_a_video_that_ends_early_leaves_no_clip(tmp_path):
    write_video(tmp_path / "raw.mp4", [30] * 20)
    box = Box(0, 0, 50)
    cuts = [cutting.Cut(tmp_path / "a.mp4", 0, 10, box), cutting.Cut(tmp_path / "b", 5, 25, box)]
    with pytest.raises(cutting.UnreadableVideo, match=r"raw.mp4: ends before frame 24"):
        cutting.write_cuts(open_frames(tmp_path / "raw.mp4"), cuts, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.mp4"]


def test_overlapping_cuts_are_written_in_one_pass(tmp_path):
    positions = list(range(10, 40))
    write_video(tmp_path / "raw.mp4", positions)
    spans = {"a": (0, 30), "b": (5, 9), "c": (5, 20)}
    cuts = [cutting.Cut(tmp_path / "clips" / name, *span, Box(0, 0, 96)) for name, span in spans.items()]
    cutting.write_cuts(open_frames(tmp_path / "raw.mp4"), cuts, 96)
    for clip in find_clips(tmp_path / "clips"):
        start, end = spans[clip.name]
        frames = open_clip(clip)
        assert [FindGreen()(frame).x for frame in frames.read(range(frames.length), 96)] == positions[start:end]


SCRIPT = """
import sys, test_prepare as t
from mrfomm.data import prepare
from mrfomm.errors import run_command
prepare.FaceFinder = t.FindGreen
run_command(lambda: prepare.main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on(tmp_path):
    for name in "abcde":
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 60)
    arguments = [str(tmp_path / "raw"), "-o", str(tmp_path / "data"), "--size", "32", "--min-frames", "10"]
    tests = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={"PYTHONPATH": f"{tests}:{tests / 'data'}:{tests.parent}"},
        stderr=subprocess.DEVNULL,
    )
    manifest = tmp_path / "data" / "manifest.jsonl"
    end = time.monotonic() + 600
    while time.monotonic() < end and not (manifest.exists() and manifest.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = manifest.read_text().count("\n") - 1
    assert finished >= 1
    assert run(tmp_path) == 0
    assert len(everything(tmp_path)) == 5
    for split in ("train", "test"):
        assert all(open_clip(clip).length == 56 for clip in clips_of(tmp_path, split))
    videos = [json.loads(line).get("video") for line in manifest.read_text().splitlines()[1:]]
    assert videos == [f"{name}.mp4" for name in "abcde"]


def write_utterance(tmp_path, identity, video, rows):
    path = tmp_path / "txt" / identity / video / f"{rows[0][0]:05d}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"Identity  : \t{identity}\nReference : \t{video}\nOffset    : \t0\n"
    header += "FV Conf   : \t18.5\t(1)\nASD Conf  : \t4.7\n\nFRAME \tX \tY \tW \tH \n"
    table = "".join(f"{number:06d} \t" + " \t".join(f"{value:.5f}" for value in box) + "\n" for number, *box in rows)
    path.write_text(header + table)


def box_row(number, x, y=30):
    """A row of the metadata for a face drawn at (x, y)."""
    height, width = SHAPE[:2]
    return number, x / width, y / height, SIDE / width, SIDE / height


@pytest.mark.parametrize("folder", ["", "id10001"])
def test_voxceleb_utterances_are_cut_by_their_boxes(tmp_path, folder):
    positions = [30 + number // 10 for number in range(60)]
    write_video(tmp_path / "raw" / folder / "-a_B.1234567.mp4", positions)
    rows = [box_row(number, positions[number]) for number in range(12, 42)]
    write_utterance(tmp_path, "id10001", "-a_B.1234567", rows)
    write_utterance(tmp_path, "id10002", "missing", rows)
    options = ["--vox-metadata", str(tmp_path / "txt"), "--test-share", "0", "--margin", "0.25", "--lossless"]
    assert run(tmp_path, *options, "--min-face", "8") == 0
    assert names(tmp_path, "train") == ["id10001#-a_B_1234567#000012#000042"]
    frames = open_clip(clips_of(tmp_path, "train")[0]).read(range(30), 32)
    # Places 31..34 make a square of 27 around (44.5, 42); 40 with the margin, alike on all sides.
    for number, frame in zip(range(12, 42), frames):
        square = draw(positions[number])[22:62, 24:64]
        red = np.argwhere((frame[..., 0] > 120) & (frame[..., 1] < 120))
        expected = np.argwhere(square[..., 0] == 255).mean(axis=0) * 32 / 40
        np.testing.assert_allclose(red.mean(axis=0), expected, atol=1.0)


def test_voxceleb_frames_are_counted_at_25_per_second(tmp_path):
    write_video(tmp_path / "raw" / "video.mp4", [30] * 40 + [60] * 40 + [30] * 40, fps=50)
    write_utterance(tmp_path, "id10001", "video", [box_row(number, 60) for number in range(20, 40)])
    assert run(tmp_path, "--vox-metadata", str(tmp_path / "txt"), "--test-share", "0", "--min-face", "8") == 0
    assert names(tmp_path, "train") == ["id10001#video#000040#000080"]
    frames = open_clip(clips_of(tmp_path, "train")[0])
    assert frames.length == 40
    places = [FindGreen()(frame) for frame in frames.read(range(40), 32)]
    assert max(place.x for place in places) - min(place.x for place in places) <= 1


def test_voxcelebs_official_test_speakers_are_the_test_set(tmp_path):
    for identity in ("id10001", "id10270", "id10300", "id10310"):
        write_video(tmp_path / "raw" / f"video-{identity}.mp4", [30] * 20)
        write_utterance(tmp_path, identity, f"video-{identity}", [box_row(number, 30) for number in range(15)])
    assert run(tmp_path, "--vox-metadata", str(tmp_path / "txt"), "--min-face", "8") == 0
    assert {clip.identity for clip in clips_of(tmp_path, "train")} == {"id10001", "id10310"}
    assert {clip.identity for clip in clips_of(tmp_path, "test")} == {"id10270", "id10300"}


@pytest.mark.parametrize("options", [["--min-face", "26"], ["--size", "26"]])
def test_small_faces_of_the_metadata_are_left_out(tmp_path, options):
    write_video(tmp_path / "raw" / "video.mp4", [30] * 40)
    write_utterance(tmp_path, "id10001", "video", [box_row(number, 30) for number in range(20)])
    with pytest.raises(UserError, match="no clip came out of it"):
        run(tmp_path, "--vox-metadata", str(tmp_path / "txt"), "--test-share", "0", *options)


def test_metadata_without_a_video_is_an_error(tmp_path, capsys):
    write_video(tmp_path / "raw" / "other.mp4", [30] * 5)
    write_utterance(tmp_path, "id10001", "video", [box_row(0, 30)])
    with pytest.raises(UserError, match="no video is named as in the metadata"):
        run(tmp_path, "--vox-metadata", str(tmp_path / "txt"))
    assert "0 of 1 utterances have a video" in capsys.readouterr().err


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="raw: no such folder"):
        run(tmp_path)
    (tmp_path / "raw" / ".cache").mkdir(parents=True)
    (tmp_path / "raw" / ".cache" / "hidden.mp4").touch()
    with pytest.raises(UserError, match="raw: holds no video"):
        run(tmp_path)
    for option, value in (("--size", "31"), ("--margin", "-1"), ("--test-share", "1"), ("--min-frames", "0")):
        with pytest.raises(UserError, match=f"{option}: give a"):
            run(tmp_path, option, value)
    with pytest.raises(UserError, match="lies in the folder of the raw videos"):
        prepare.main([str(tmp_path / "raw"), "-o", str(tmp_path / "raw" / "data")])
    for name in ("a.mp4", "a.mov"):
        (tmp_path / "raw" / name).touch()
    with pytest.raises(UserError, match="a.mp4: its clips would be named as those of a.mov"):
        run(tmp_path)


def test_the_command_ends_with_2_when_nothing_succeeded(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"broken")
    command = [sys.executable, "-m", "mrfomm.data.prepare", str(tmp_path / "raw"), "-o", str(tmp_path / "data")]
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    error = f"error: {tmp_path / 'raw'}: no clip came out of it (1 unreadable: a.mp4); "
    assert ended.stderr.splitlines()[-1].startswith(error)


# Which files


def test_links_are_followed_but_not_in_circles(tmp_path, capsys):
    write_video(tmp_path / "raw" / "ann" / "1.mp4", [30] * 16)
    write_video(tmp_path / "drive" / "bob" / "1.mp4", [30] * 16)
    links = (
        ("raw/bob", "drive/bob"),
        ("raw/ann/2.mp4", "drive/bob/1.mp4"),
        ("raw/ann/again", "raw"),
        ("drive/bob/up", "drive"),
    )
    to_nothing = ("raw/ann/lost.mp4", "drive/none.mp4"), ("raw/zoe", "drive/zoe")
    for link, target in (*links, *to_nothing):
        (tmp_path / link).symlink_to(tmp_path / target)
    assert run(tmp_path, "--test-share", "0") == 0
    assert everything(tmp_path) == {f"train/{name}#000000#000016" for name in ("ann#1", "ann#2", "bob#1")}
    assert "videos: 3 cut; 2 unreadable: ann/lost.mp4, zoe\n" in capsys.readouterr().out


def test_clips_are_not_taken_for_raw_videos(tmp_path):
    write_video(tmp_path / "raw" / "ann.mp4", [30] * 40)
    run(tmp_path)
    (tmp_path / "raw" / "more").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="lies in .*data by a link; take the link away or choose another --output"):
        run(tmp_path)
    (tmp_path / "raw" / "more").unlink()
    assert run(tmp_path) == 0


FORMATS = """
    libsvtav1 mp4 .mp4 | mpeg4 mp4 .m4v | mjpeg mov .mov | libx264 matroska .mkv | libvpx webm .webm | libvpx ogg .ogv
    mpeg4 avi .avi | mpeg1video mpeg .mpg .mpeg | mpeg2video vob .vob | mpeg2video mxf .mxf
    libx264 mpegts .ts .mts .m2ts | h263 3gp .3gp | mpeg4 3g2 .3g2 | flv flv .flv | wmv2 asf .wmv .asf | gif gif .gif
"""
ENCODED = [
    (suffix, codec, muxer)
    for codec, muxer, *suffixes in (
        part.split() for line in FORMATS.splitlines() for part in line.split("|") if part.strip()
    )
    for suffix in suffixes
]


def test_every_suffix_is_tried():
    assert {suffix for suffix, _, _ in ENCODED} == set(prepare.RAW_SUFFIXES)


@pytest.fixture
def ordinary():
    """SVT-AV1 makes whoever encodes by it a real-time process, where root does; nothing else would run on its core."""
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(("suffix", "codec", "muxer"), ENCODED)
def test_every_suffix_is_cut(tmp_path, suffix, codec, muxer):
    (tmp_path / "raw").mkdir()
    with av.open(str(tmp_path / f"raw/ann{suffix.upper()}"), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 176, 144
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for number in range(20):
            picture = np.pad(draw(30), [(0, 48), (0, 48), (0, 0)], mode="edge")
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert run(tmp_path, "--test-share", "0") == 0
    assert names(tmp_path, "train") == ["ann#ann#000000#000016"]


def test_what_may_not_be_read_is_named(tmp_path):
    """Root may read everything: the program runs without its privileges."""
    for name in ("a", "b"):
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 16)
    (tmp_path / "raw" / "a.mp4").chmod(0)
    privileges = "-dac_override,-dac_read_search"
    arguments = [str(tmp_path / "raw"), "-o", str(tmp_path / "data"), "--size", "32", "--min-frames", "10"]
    command = [sys.executable, "-c", SCRIPT, *arguments, "--test-share", "0"]
    if not os.geteuid():
        command = ["setpriv", f"--bounding-set={privileges}", f"--inh-caps={privileges}", *command]
    tests = Path(__file__).parent.parent

    def ended():
        environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests / 'data'}:{tests.parent}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    first = ended()
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "videos: 1 cut; 1 unreadable: a.mp4")
    assert f"skipped: {tmp_path / 'raw' / 'a.mp4'}: can't be opened (Permission denied)" in first.stderr
    (tmp_path / "raw" / "c").mkdir(mode=0)
    second = ended()
    error = f"error: {tmp_path / 'raw' / 'c'}: cannot be listed (Permission denied); check its permissions\n"
    assert (second.returncode, second.stderr) == (2, error)


# Known by content


def test_a_video_that_was_replaced_is_cut_anew_and_one_that_was_copied_is_not(tmp_path, monkeypatch, capsys):
    for name, length in (("a", 16), ("b", 16), ("c", 31)):
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * length)
    run(tmp_path, "--test-share", "0")
    raw = tmp_path / "raw"
    before, times = (tmp_path / "data/train/b#b#000000#000016.mp4").read_bytes(), (raw / "a.mp4").stat()
    (raw / "a.mp4").write_bytes((raw / "c.mp4").read_bytes())
    os.utime(raw / "a.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    (raw / "b.mp4").touch()
    capsys.readouterr()
    run(tmp_path, "--test-share", "0")
    assert names(tmp_path, "train") == ["a#a#000000#000031", "b#b#000000#000016", "c#c#000000#000031"]
    assert (tmp_path / "data/train/b#b#000000#000016.mp4").read_bytes() == before
    told = [line for line in capsys.readouterr().err.splitlines() if "cut again" in line]
    assert told == [f"{raw / 'a.mp4'}: not known to be the file that its clips were cut from; cut again"]
    monkeypatch.setattr(cutting, "write_cuts", lambda *_: pytest.fail("cut again"))
    run(tmp_path, "--test-share", "0")


def test_a_video_replaced_by_a_broken_one_keeps_its_clips(tmp_path, capsys):
    for name in "ab":
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 16)
    run(tmp_path, "--test-share", "0")
    (tmp_path / "raw" / "a.mp4").write_bytes(b"broken")
    run(tmp_path, "--test-share", "0")
    assert "1 unreadable: a.mp4" in capsys.readouterr().out
    assert all(open_clip(clip).length == 16 for clip in clips_of(tmp_path, "train"))
    assert len(names(tmp_path, "train")) == 2


def test_a_single_person_whose_video_was_replaced_keeps_a_test_set(tmp_path):
    for length in (51, 61):
        write_video(tmp_path / "raw" / "me.mp4", [30] * length)
        run(tmp_path)
        assert frames_of(tmp_path, "test") == [(length - 10, length)]


def test_records_of_earlier_versions_have_no_digest(tmp_path, capsys):
    write_video(tmp_path / "raw" / "me.mp4", [30] * 51)
    run(tmp_path)
    manifest = tmp_path / "data" / "manifest.jsonl"
    settings, record = map(json.loads, manifest.read_text().splitlines())
    del record["digest"]
    manifest.write_text(f"{json.dumps(settings)}\n{json.dumps(record)}\n")
    before = everything(tmp_path)
    run(tmp_path)
    assert "not known to be the file that its clips were cut from; cut again" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_utterances_that_changed_are_cut_anew(tmp_path):
    write_video(tmp_path / "raw" / "video.mp4", [30] * 60)
    options = ["--vox-metadata", str(tmp_path / "txt"), "--test-share", "0", "--min-face", "8"]
    for last in (39, 29):
        write_utterance(tmp_path, "id10001", "video", [box_row(number, 30) for number in range(last + 1)])
        run(tmp_path, *options)
        assert names(tmp_path, "train") == [f"id10001#video#000000#{last + 1:06d}"]


def test_clips_of_a_video_that_was_removed_are_named_and_can_be_removed(tmp_path, capsys):
    for name in "ab":
        write_video(tmp_path / "raw" / f"{name}.mp4", [30] * 16)
    run(tmp_path, "--test-share", "0")
    (tmp_path / "raw" / "a.mp4").unlink()
    capsys.readouterr()
    run(tmp_path, "--test-share", "0")
    output = capsys.readouterr()
    assert f"no longer in {tmp_path / 'raw'}: a.mp4; the clips cut from them earlier stay" in output.err
    assert output.out.startswith("train: 2 clips of 2 identities")
    (tmp_path / "data/train/a#a#000000#000016.mp4").unlink()
    run(tmp_path, "--test-share", "0")
    assert capsys.readouterr().out.startswith("train: 1 clip of 1 identity")


# A set to test on


def frames_of(tmp_path, split):
    return [tuple(map(int, name.split("#")[2:])) for name in names(tmp_path, split)]


def test_fifteen_seconds_of_one_person_have_a_test_set(tmp_path):
    write_video(tmp_path / "raw" / "me.mp4", [30] * 376)
    assert run(tmp_path, "--min-frames", "64") == 0
    assert (frames_of(tmp_path, "train"), frames_of(tmp_path, "test")) == ([(0, 312)], [(312, 376)])


def test_short_videos_of_one_person_are_used_whole(tmp_path):
    """A tenth of each would be too short for a clip; together they make a test set, and no frame is lost."""
    for number in range(12):
        write_video(tmp_path / "raw" / "me" / f"{number:02d}.mp4", [30] * 26)
    run(tmp_path, "--min-frames", "16")
    train, test = ([end - start for start, end in frames_of(tmp_path, split)] for split in ("train", "test"))
    assert sum(train) + sum(test) == 12 * 26
    assert abs(sum(test) - 0.1 * 12 * 26) <= 16
    assert min(train + test) >= 16


def test_a_missing_test_set_is_explained_and_its_remedies_help(tmp_path, capsys):
    write_video(tmp_path / "raw" / "me" / "1.mp4", [30] * 31)
    told = "no test set: there aren't twice --min-frames 20 frames; give a longer video or another one, or start over"
    run(tmp_path, "--min-frames", "20")
    assert told in capsys.readouterr().err
    assert (frames_of(tmp_path, "train"), frames_of(tmp_path, "test")) == ([(0, 31)], [])
    run(tmp_path, "--min-frames", "10", "--output", str(tmp_path / "anew"))
    assert "no test set" not in capsys.readouterr().err
    write_video(tmp_path / "raw" / "me" / "2.mp4", [30] * 31)
    run(tmp_path, "--min-frames", "20")
    assert len(frames_of(tmp_path, "train")) == len(frames_of(tmp_path, "test")) == 1
    (tmp_path / "raw" / "me" / "2.mp4").unlink()
    write_video(tmp_path / "raw" / "me" / "1.mp4", [30] * 51)
    run(tmp_path, "--min-frames", "20", "--output", str(tmp_path / "longer"))
    assert "no test set" not in capsys.readouterr().err


@pytest.mark.parametrize("remedy", ["other videos", "without"])
def test_a_test_identity_that_gives_nothing_is_named_and_the_remedies_help(tmp_path, capsys, remedy):
    chosen, *others = sorted("abc", key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    write_video(tmp_path / "raw" / chosen / "1.mp4", [None] * 16)
    for name in others:
        write_video(tmp_path / "raw" / name / "1.mp4", [30] * 16)
    run(tmp_path)
    told = f"no test set: nothing could be cut of {chosen}; give other videos of them, or start over with other options"
    assert told in capsys.readouterr().err
    if remedy == "other videos":
        write_video(tmp_path / "raw" / chosen / "2.mp4", [30] * 16)
        run(tmp_path)
        assert len(names(tmp_path, "test")) == 1
    else:
        (tmp_path / "raw" / chosen / "1.mp4").unlink()
        run(tmp_path, "--output", str(tmp_path / "anew"))
        assert len(find_clips(tmp_path / "anew" / "test")) == 1
    assert "no test set" not in capsys.readouterr().err


# Advice


@pytest.mark.parametrize(
    ("frames", "options", "other_frames", "other_options"),
    [
        ([30] * 6, [], [30] * 6, ["--min-frames", "5"]),
        ([30] * 16, ["--min-face", "60"], [30] * 16, ["--min-face", "20"]),
        ([None] * 16, [], [30] * 16, []),
    ],
)
def test_what_helps_where_no_clip_came_out(tmp_path, frames, options, other_frames, other_options):
    """The folder takes other settings as long as it holds no clip."""
    write_video(tmp_path / "raw" / "ann.mp4", frames)
    advice = "no clip came out of it .1 without a usable face.; lower --min-frames or --min-face, or give other videos"
    with pytest.raises(UserError, match=advice):
        run(tmp_path, "--test-share", "0", *options)
    write_video(tmp_path / "raw" / "ann.mp4", other_frames)
    assert run(tmp_path, "--test-share", "0", *other_options) == 0
    assert len(names(tmp_path, "train")) == 1


def test_another_output_and_other_names_help_where_they_are_advised(tmp_path):
    write_video(tmp_path / "raw" / "ann.mp4", [30] * 40)
    run(tmp_path)
    with pytest.raises(UserError, match="choose another --output"):
        run(tmp_path, "--size", "64")
    assert run(tmp_path, "--size", "64", "--output", str(tmp_path / "other")) == 0
    write_video(tmp_path / "raw" / "ann.mkv", [30] * 40)
    with pytest.raises(UserError, match="ann.mp4: its clips would be named as those of ann.mkv; rename one"):
        run(tmp_path)
    (tmp_path / "raw" / "ann.mkv").rename(tmp_path / "raw" / "bob.mkv")
    assert run(tmp_path, "--output", str(tmp_path / "both")) == 0
