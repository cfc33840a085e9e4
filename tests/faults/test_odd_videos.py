"""Videos as phones, cameras and editors make them: every frame is there, upright and of the right colour."""

import functools
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import tiny
from oracle import ffmpeg
from PIL import Image

from mrfomm.commands import animate
from mrfomm.errors import UserError
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (40, 40, 220), (230, 230, 230)
CORNERS = (RED, GREEN, BLUE, WHITE)  # top left, top right, bottom left, bottom right


def picture(width, height, number=0, count=1):
    """Four coloured quarters; the grey bar at the bottom grows with the number of the frame."""
    frame = np.empty((height, width, 3), np.uint8)
    halves = slice(None, height // 2), slice(height // 2, None)
    sides = slice(None, width // 2), slice(width // 2, None)
    for colour, (rows, columns) in zip(CORNERS, [(r, c) for r in halves for c in sides]):
        frame[rows, columns] = colour
    frame[-height // 6 :, : width * (number + 1) // (count + 1)] = 128
    return frame


@pytest.fixture
def frames(tmp_path):
    """A function that writes numbered pictures for ffmpeg; returns its input pattern."""

    def write(count, width=64, height=48):
        (tmp_path / "source").mkdir()
        for i in range(count):
            Image.fromarray(picture(width, height, i, count)).save(tmp_path / "source" / f"{i:03d}.png")
        return tmp_path / "source" / "%03d.png"

    return write


def corners(frame):
    """The colours in the middles of the upper parts of the four quarters."""
    height, width = frame.shape[:2]
    return np.array([frame[y, x] for y in (height // 8, height * 5 // 8) for x in (width // 4, width * 3 // 4)], int)


def assert_colours(frame, expected=CORNERS, tolerance=12):
    assert np.abs(corners(frame) - expected).max() <= tolerance, corners(frame)


def number_of(frame, count):
    """Which of ``count`` pictures this is, by its bar."""
    row = frame[-frame.shape[0] // 12].astype(int)
    length = (np.abs(row - 128).max(axis=1) < 40).sum()
    return round(length / frame.shape[1] * (count + 1)) - 1


# Turned


def turn_matrix(path, degrees):
    """Write a rotation into the track header of an mp4, as phones do: clockwise, when it is displayed."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    values = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    data = path.read_bytes()
    start = data.index(b"tkhd") + 4 + 40
    path.write_bytes(data[:start] + matrix + data[start + 36 :])


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(90, (BLUE, RED, WHITE, GREEN)), (180, (WHITE, BLUE, GREEN, RED)), (270, (GREEN, WHITE, RED, BLUE))],
)
def test_turned_by_metadata(tmp_path, degrees, expected):
    with open_sink(tmp_path / "a.mp4", 25) as sink:
        for _ in range(3):
            frame = picture(64, 48)
            frame[-8:] = np.repeat(frame[:1] * 0 + frame[-9:-8], 8, axis=0)  # no bar: it would cover a quarter
            sink.write(frame)
    turn_matrix(tmp_path / "a.mp4", degrees)
    shown = list(open_frames(tmp_path / "a.mp4"))
    assert len(shown) == 3
    assert shown[0].shape == ((64, 48, 3) if degrees != 180 else (48, 64, 3))
    assert_colours(shown[0], expected)


# Sizes, depths and codecs

H264, HEVC, VP9 = "libx264", "libx265", "libvpx-vp9"
QUALITY = {
    H264: ["-crf", "12"],
    HEVC: ["-crf", "12", "-x265-params", "log-level=error"],
    VP9: ["-crf", "12", "-b:v", "0"],
}


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [
        (H264, "yuv420p10le", "mp4"),
        (H264, "yuv422p10le", "mov"),
        (HEVC, "yuv420p10le", "mp4"),
        (VP9, "yuv420p10le", "webm"),
        (VP9, "yuv444p10le", "webm"),
        ("prores_ks", "yuv422p10le", "mov"),
        (H264, "yuvj420p", "mp4"),
        (H264, "gray", "mp4"),
    ],
)
def test_depths_and_codecs(tmp_path, frames, codec, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-framerate", 25, "-i", frames(6), "-c:v", codec, "-pix_fmt", pixels, *QUALITY.get(codec, []), path)
    shown = list(open_frames(path))
    assert [number_of(frame, 6) for frame in shown] == list(range(6))
    grey = np.array(CORNERS) @ (0.299, 0.587, 0.114)
    assert_colours(shown[0], np.repeat(grey[:, None], 3, axis=1) if pixels == "gray" else CORNERS)


@pytest.mark.parametrize(("width", "height"), [(63, 49), (49, 63), (17, 2), (2, 2), (641, 16)])
def test_odd_sizes(tmp_path, frames, width, height):
    ffmpeg("-framerate", 25, "-i", frames(4, width, height), "-c:v", H264, "-pix_fmt", "yuv444p", tmp_path / "a.mp4")
    shown = list(open_frames(tmp_path / "a.mp4"))
    assert [frame.shape for frame in shown] == [(height, width, 3)] * 4
    if min(width, height) > 10:
        assert_colours(shown[0])


def test_flag_of_interlacing(tmp_path, frames):
    ffmpeg(
        "-framerate",
        25,
        "-i",
        frames(6),
        "-c:v",
        H264,
        "-flags",
        "+ilme+ildct",
        "-x264opts",
        "tff=1",
        tmp_path / "a.mp4",
    )
    shown = list(open_frames(tmp_path / "a.mp4"))
    assert [number_of(frame, 6) for frame in shown] == list(range(6))


# Transparency: over white, as a viewer shows it


@functools.cache
def half_transparent():
    """uint8 [48,64,4]: the picture, its right half transparent."""
    frame = picture(64, 48)
    return np.dstack([frame, np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(48, axis=0)])


def test_transparent_webm(tmp_path):
    (tmp_path / "source").mkdir()
    for i in range(4):
        Image.fromarray(half_transparent()).save(tmp_path / "source" / f"{i}.png")
    pattern = tmp_path / "source" / "%d.png"
    ffmpeg("-framerate", 25, "-i", pattern, "-c:v", VP9, "-pix_fmt", "yuva420p", *QUALITY[VP9], tmp_path / "a.webm")
    shown = list(open_frames(tmp_path / "a.webm"))
    assert len(shown) == 4
    assert_colours(shown[0])


def test_transparent_frames_and_references(tmp_path):
    (tmp_path / "frames").mkdir()
    Image.fromarray(half_transparent()).save(tmp_path / "frames" / "0.png")
    (shown,) = open_frames(tmp_path / "frames")
    expected = half_transparent()[..., :3].copy()
    expected[:, 32:] = 255
    assert np.array_equal(shown, expected)


def test_transparent_gif(tmp_path):
    """A later frame shows the earlier one through its transparent pixels, as a browser has it."""
    first = Image.fromarray(picture(64, 48)).quantize(8)
    second = Image.new("P", (64, 48), 0)
    second.putpalette(first.getpalette())
    second.paste(first.getpixel((2, 2)), (0, 40, 64, 48))
    first.save(
        tmp_path / "a.gif",
        save_all=True,
        append_images=[second],
        transparency=0,
        duration=100,
        disposal=1,
        optimize=False,
    )
    shown = list(open_frames(tmp_path / "a.gif"))
    assert len(shown) == 2
    assert all(frame.shape == (48, 64, 3) for frame in shown)
    assert np.abs(shown[1][44].astype(int) - shown[1][44, 0]).max() <= 2  # the strip is of one colour


# Times


def test_one_frame(tmp_path, frames):
    ffmpeg("-framerate", 25, "-i", frames(1), "-c:v", H264, "-pix_fmt", "yuv420p", tmp_path / "a.mp4")
    (shown,) = open_frames(tmp_path / "a.mp4")
    assert_colours(shown)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_pauses(tmp_path, frames, suffix):
    """Frames shown for 1, 3, 1, 5, 2 and 1 25ths of a second are doubled, and none is left out."""
    lengths = (1, 3, 1, 5, 2, 1)
    frames(6)
    lines = [f"file 'source/{i:03d}.png'\nduration {length / 25}" for i, length in enumerate(lengths)]
    (tmp_path / "list.txt").write_text("\n".join(["ffconcat version 1.0", *lines, ""]))
    codec = VP9 if suffix == "webm" else H264
    options = ["-c:v", codec, *QUALITY[codec], "-pix_fmt", "yuv420p", "-fps_mode", "passthrough", "-bf", "0"]
    ffmpeg("-safe", "0", "-i", tmp_path / "list.txt", *options, tmp_path / f"a.{suffix}")
    source = open_frames(tmp_path / f"a.{suffix}")
    numbers = [number_of(frame, 6) for frame in source]
    assert source.fps == 25
    expected = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert numbers[: len(expected) - 1] == expected[:-1]
    assert numbers[len(expected) - 1 :] in ([5], [5] * 2)  # how long the last one is shown isn't in every file


# Sound and pictures that don't go together


def tone(seconds):
    return ["-f", "lavfi", "-t", str(seconds), "-i", "sine=440:sample_rate=48000"]


def test_cover_art_is_no_video(tmp_path, frames):
    frames(1)
    cover = [
        "-i",
        tmp_path / "source" / "000.png",
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "mjpeg",
        "-disposition:v",
        "attached_pic",
    ]
    ffmpeg(*tone(1), *cover, "-c:a", "aac", tmp_path / "song.m4a")
    with pytest.raises(UserError, match=r"song\.m4a: not a readable video"):
        open_frames(tmp_path / "song.m4a")


def test_cover_art_beside_a_video(tmp_path, frames):
    pattern = frames(5)
    Image.new("RGB", (64, 48), (128, 0, 128)).save(tmp_path / "cover.png")
    maps = ["-map", "1", "-map", "0", "-c:v:0", "mjpeg", "-disposition:v:0", "attached_pic", "-c:v:1", H264]
    ffmpeg(
        "-framerate",
        25,
        "-i",
        pattern,
        "-i",
        tmp_path / "cover.png",
        *maps,
        "-pix_fmt:v:1",
        "yuv420p",
        tmp_path / "a.mp4",
    )
    shown = list(open_frames(tmp_path / "a.mp4"))
    assert [number_of(frame, 5) for frame in shown] == list(range(5))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.checkpoint(folder / "weights")
    Image.fromarray(tiny.frames(1)[0]).save(folder / "reference.png")
    return folder


def animated(model, driving, output):
    arguments = ["--refs", model / "reference.png", "--weights", model / "weights", "--driving", driving]
    arguments += ["--output", output, "--context", "cpu", "--backend", "nnabla"]
    assert animate.main(list(map(str, arguments))) == 0
    return output


def test_sound_file_alone_is_no_driving_clip(model, tmp_path):
    ffmpeg(*tone(1), tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"a\.wav: not a readable video"):
        animated(model, tmp_path / "a.wav", tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("seconds", [0.1, 3])
def test_sound_shorter_or_longer_than_the_pictures(model, tmp_path, frames, seconds):
    encoding = ["-c:v", H264, "-pix_fmt", "yuv420p", "-c:a", "aac"]
    ffmpeg("-framerate", 10, "-i", frames(8), *tone(seconds), *encoding, tmp_path / "a.mp4")
    out = animated(model, tmp_path / "a.mp4", tmp_path / "out.mp4")
    source = open_frames(out)
    assert (len(list(source)), source.fps, source.has_audio) == (8, 10, True)
    sound = ffmpeg("-i", out, "-f", "s16le", "-ac", 1, "-ar", 48000, "-")
    assert len(sound) / 2 / 48000 == pytest.approx(min(seconds, 0.8), abs=0.06)  # AAC comes in 1024 samples


def test_a_phones_clip_from_end_to_end(model, tmp_path, frames):
    """Turned, 10 bits, with pauses and sound: the result is playable and has a frame for every one that was shown."""
    encoding = ["-c:v", HEVC, "-pix_fmt", "yuv420p10le", *QUALITY[HEVC], "-tag:v", "hvc1", "-c:a", "aac"]
    ffmpeg("-framerate", 30, "-i", frames(9, 63, 49), *tone(0.3), *encoding, "-vf", "scale=64:50", tmp_path / "a.mov")
    turn_matrix(tmp_path / "a.mov", 90)
    shown = list(open_frames(tmp_path / "a.mov"))
    assert [frame.shape for frame in shown] == [(64, 50, 3)] * 9
    out = animated(model, tmp_path / "a.mov", tmp_path / "out.mp4")
    described = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", out], capture_output=True, text=True).stderr
    assert re.search(r"Video: h264.*yuv420p\(?.*, 32x32.*30 fps", described), described
    assert len(list(open_frames(out))) == 9
    ffmpeg("-xerror", "-i", out, "-f", "null", "-")
