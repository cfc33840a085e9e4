"""One reader for all: every kind of clip as ffmpeg decodes it, in its own time; and what is written says what it is."""

import ast
import os
import re
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracle import describe, ffmpeg
from PIL import Image

import mrfomm
from mrfomm.data.clips import BrokenClip, Clip, open_clip
from mrfomm.errors import UserError
from mrfomm.media.images import read_image
from mrfomm.media.reading import open_frames
from mrfomm.media.timeline import Clock, constant_rate, on_grid, running_on
from mrfomm.media.writing import open_sink

EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
COLOURS = ((220, 30, 40), (30, 200, 60), (40, 60, 220), (222, 160, 130))  # the last one about that of skin


def pictures(count=12, width=96, height=64):
    """Four quarters of one colour each, and a white bar that grows from frame to frame."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for n, frame in enumerate(frames):
        halves, sides = (
            (slice(None, height // 2), slice(height // 2, None)),
            (slice(None, width // 2), slice(width // 2, None)),
        )
        for colour, (rows, columns) in zip(COLOURS, [(r, c) for r in halves for c in sides]):
            frame[rows, columns] = colour
        frame[height // 2 - 4 : height // 2 + 4, : width * (n + 1) // (count + 1)] = 255
    return frames


def number_of(frame, count=12):
    """Which of the pictures it is."""
    row = frame[len(frame) // 2].astype(int).min(axis=1)
    return round((row > 215).mean() * (count + 1)) - 1


def carry(clip, output):
    """Write a clip's frames and sound, as animating does."""
    frames = open_frames(clip)
    with open_sink(output, frames.fps, audio_from=clip) as sink:
        for frame in frames:
            sink.write(frame)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A lossless clip of the pictures, and a second of sound."""
    folder = tmp_path_factory.mktemp("source")
    for n, frame in enumerate(pictures()):
        Image.fromarray(frame).save(folder / f"{n:03d}.png")
    ffmpeg("-framerate", 25, "-i", folder / "%03d.png", "-c:v", "libx264rgb", "-crf", 0, folder / "rgb.mkv")
    ffmpeg("-f", "lavfi", "-i", "sine=440:d=1:r=48000", folder / "tone.wav")
    return folder


def x264(matrix="bt709", pixels="yuv420p", full=False, *more):
    scale = f"scale=out_color_matrix={matrix}:out_range={'pc' if full else 'tv'}:{EXACT}"
    tags = ["-colorspace", {"bt601": "smpte170m"}.get(matrix, matrix), "-color_range", "pc" if full else "tv"]
    tags += ["-color_primaries", "bt709", "-color_trc", "bt709"]
    return ["-vf", f"{scale},format={pixels}", "-c:v", "libx264", "-crf", 4, "-pix_fmt", pixels, *tags, *more]


# kind: the encoder's options and the suffix
KINDS = {
    "bt601": (x264("bt601"), "mp4"),
    "bt709": (x264(), "mp4"),
    "full range": (x264("bt709", "yuv420p", True), "mp4"),
    "4:4:4": (x264("bt709", "yuv444p"), "mp4"),
    "10 bit": (x264("bt709", "yuv420p10le"), "mov"),
    "b-frames": (x264("bt709", "yuv420p", False, "-bf", 3, "-b_strategy", 0, "-g", 6), "mp4"),
    "anamorphic": (x264("bt709", "yuv420p", False, "-aspect", "3:1"), "mp4"),
    "interlaced": (x264("bt709", "yuv420p", False, "-flags", "+ilme+ildct", "-x264opts", "tff=1"), "mp4"),
    "mpeg-4": (["-c:v", "mpeg4", "-q:v", 2, "-bf", 2], "mp4"),
    "jpeg": (["-c:v", "mjpeg", "-q:v", 2, "-pix_fmt", "yuvj422p"], "mov"),
    "av1": (["-c:v", "libsvtav1", "-crf", 10, "-pix_fmt", "yuv420p", "-svtav1-params", "lp=1"], "mp4"),
}
MATRICES = {  # how a frame is stored: ffmpeg's options for the display matrix
    "turned 90": ("-display_rotation", "90"),
    "turned 180": ("-display_rotation", "180"),
    "turned 270": ("-display_rotation", "270"),
    "mirrored": ("-display_hflip",),
    "upside down": ("-display_vflip",),
    "turned and mirrored": ("-display_rotation", "90", "-display_hflip"),
}


def make(folder, source, kind):
    if kind in KINDS:
        options, suffix = KINDS[kind]
        path = folder / f"a.{suffix}"
        ffmpeg("-i", source / "rgb.mkv", *options, path)
        return path
    ffmpeg("-i", source / "rgb.mkv", *x264(), folder / "plain.mp4")
    ffmpeg(*MATRICES[kind], "-i", folder / "plain.mp4", "-c", "copy", folder / "a.mp4")
    return folder / "a.mp4"


def decoded(path):
    """The frames by the ffmpeg program, whatever their time, upright and with square pixels."""
    size = re.search(r"Video:.* (\d+)x(\d+)", describe(path))
    squared = f"scale=round(iw*if(sar\\,sar\\,1)):ih:{EXACT}"
    raw = ffmpeg("-i", path, "-vf", f"{squared},format=rgb24", "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    count = 12
    assert size
    pixels = len(raw) // count // 3
    shape = probe_shape(path, pixels)
    return np.frombuffer(raw, np.uint8).reshape(count, *shape, 3)


def probe_shape(path, pixels):
    """Height and width of what ffmpeg wrote, from a PNG of the first frame."""
    png = path.with_suffix(".png")
    ffmpeg("-i", path, "-vf", f"scale=round(iw*if(sar\\,sar\\,1)):ih:{EXACT}", "-frames:v", 1, png)
    with Image.open(png) as image:
        width, height = image.size
    assert width * height == pixels
    return height, width


def shown(path):
    """The frames as each part of the project gets them: to animate and prepare, to train and score."""
    clip = open_clip(Clip(path, "a", "a"))
    return list(open_frames(path)), list(clip._decode(range(clip.length)))


@pytest.mark.parametrize("kind", [*KINDS, *MATRICES])
def test_every_part_of_the_project_sees_what_ffmpeg_shows(tmp_path, source, kind):
    path = make(tmp_path, source, kind)
    expected = decoded(path).astype(int)
    for frames in shown(path):
        assert [frame.shape for frame in frames] == [expected[0].shape] * 12
        assert np.abs(np.array(frames) - expected).max() <= 2
        if kind in KINDS:
            assert [number_of(frame) for frame in frames] == list(range(12))


@pytest.mark.parametrize("kind", ["bt601", "bt709", "full range", "4:4:4", "10 bit"])
def test_colours_are_those_that_were_filmed(tmp_path, source, kind):
    """Whatever matrix and range a clip is stored with, it says so, and the same picture comes out."""
    path = make(tmp_path, source, kind)
    for frames in shown(path):
        corners = [frames[0][y, x] for y in (8, 56) for x in (16, 80)]
        assert np.abs(np.array(corners, int) - COLOURS).max() <= 3, corners


def test_only_one_module_opens_clips():
    """Everything else goes through it; the camera is no clip."""
    root = Path(mrfomm.__file__).parent.parent
    openers = set()
    for path in (
        file for folder in ("mrfomm", "eval", "scripts", "benchmarks") for file in (root / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("av.open", "cv2.VideoCapture", "cv2.VideoWriter") or "imageio_ffmpeg" in name:
                openers.add(str(path.relative_to(root)))
    assert openers == {"mrfomm/media/container.py", "mrfomm/media/writing.py", "mrfomm/reenactment/live.py"}


def test_frames_by_number_are_those_of_a_reading_in_order(tmp_path, source):
    """Random access agrees with order wherever key frames lie, also where a picture is renewed without any."""
    for options in (("-g", 5, "-bf", 2), ("-x264-params", "intra-refresh=1:keyint=8:bframes=0"), ("-g", 100)):
        ffmpeg(
            "-stream_loop", 4, "-i", source / "rgb.mkv", *x264("bt709", "yuv420p", False, *options), tmp_path / "a.mp4"
        )
        clip = open_clip(Clip(tmp_path / "a.mp4", "a", "a"))
        everything = list(clip._decode(range(clip.length)))
        for index in (58, 41, 23, 9, 0):
            np.testing.assert_array_equal(next(clip._decode([index])), everything[index])


# HDR, wide gamuts, profiles


def to_hdr(folder, transfer):
    """The four colours, filmed with white at 203 cd/m2 (ITU-R BT.2408), by zscale."""
    Image.fromarray(pictures(1, 256, 256)[0]).save(folder / "one.png")
    srgb = "setparams=color_trc=iec61966-2-1:color_primaries=bt709:colorspace=gbr:range=pc"
    change = f"{srgb},zscale=t=linear:npl=203,format=gbrpf32le"
    change += f",zscale=p=bt2020:t={transfer}:m=bt2020nc:r=limited:npl=203,format=yuv420p10le"
    tags = f"log-level=error:transfer={transfer}:colorprim=bt2020:colormatrix=bt2020nc:range=limited"
    ffmpeg(
        "-i",
        folder / "one.png",
        "-vf",
        change,
        "-frames:v",
        1,
        "-c:v",
        "libx265",
        "-crf",
        4,
        "-x265-params",
        tags,
        "-color_trc",
        transfer,
        "-color_primaries",
        "bt2020",
        "-colorspace",
        "bt2020nc",
        folder / "hdr.mp4",
    )
    return folder / "hdr.mp4"


@pytest.mark.parametrize(("transfer", "tolerance"), [("arib-std-b67", 6), ("smpte2084", 8), ("iec61966-2-1", 4)])
def test_hdr_and_wide_gamuts_become_srgb(tmp_path, transfer, tolerance):
    path = to_hdr(tmp_path, transfer)
    for frames in shown(path):
        corners = [frames[0][y, x] for y in (64, 192) for x in (64, 192)]
        assert np.abs(np.array(corners, int) - COLOURS).max() <= tolerance, corners


def test_lights_above_white_are_rolled_off():
    """They stay apart, in order, and neutral."""
    from mrfomm.media.pixels import _to_srgb

    grey = np.linspace(40000, 65535, 30).astype(np.uint16)[None, :, None].repeat(3, axis=2)
    for transfer in (16, 18):
        row = _to_srgb(grey, transfer, 1)[0].astype(int)
        assert np.all(np.diff(row[:, 1]) >= 0)
        assert np.ptp(row, axis=1).max() <= 1
        assert row[-1, 1] <= 255 > row[0, 1]


def p3_profile():
    """Display P3 with sRGB's curve, made by hand: a matrix profile (ICC.1, 8.3)."""

    def fixed(value):
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(*values):
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    curve = b"para" + bytes(4) + b"\0\3\0\0" + b"".join(map(fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    text = b"desc" + bytes(4) + (3).to_bytes(4, "big") + b"P3\0" + bytes(79)
    tags = {
        b"desc": text,
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
    }
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + (offset + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    size = offset + len(body)
    head = size.to_bytes(4, "big") + bytes(4) + b"\x02\x40\0\0" + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += fixed(0.9642) + fixed(1) + fixed(0.8249)
    return head + bytes(128 - len(head)) + len(tags).to_bytes(4, "big") + table + body


def test_profiles_are_converted(tmp_path):
    """(202, 54, 51) in Display P3 is (220, 30, 40) in sRGB, as every viewer shows it."""
    in_p3 = [(202, 54, 51), (95, 197, 81), (44, 59, 212), (213, 163, 135)]
    expected = [(220, 31, 41), (32, 200, 59), (40, 60, 220), (222, 160, 130)]
    image = Image.fromarray(np.array([in_p3], np.uint8))
    for name, picture in (("rgb", image), ("rgba", image.convert("RGBA")), ("palette", image.quantize(4))):
        picture.save(tmp_path / f"{name}.png", icc_profile=p3_profile())
        assert np.abs(read_image(tmp_path / f"{name}.png")[0].astype(int) - expected).max() <= 3, name
    image.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png")[0], in_p3)


def test_a_profile_that_cannot_be_used_is_told(tmp_path, caplog):
    image = Image.fromarray(pictures(1)[0])
    image.save(tmp_path / "a.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pictures(1)[0])
    assert "a.png: its colour profile can't be used" in caplog.text


def test_cmyk_without_a_profile(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 12


# Time


def steps(*milliseconds):
    return [Fraction(ms, 1000) for ms in milliseconds]


def test_a_pause_lowers_no_rate():
    jitter = [33 + (-1) ** n * (n % 5) for n in range(60)]
    assert float(constant_rate(steps(*jitter, 8000, *jitter), Fraction(1000))) == pytest.approx(30, abs=0.7)


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(120)]
)
def test_steady_rates_are_exact(rate):
    stamps = [round(1000 * n / rate) for n in range(400)]
    assert constant_rate(steps(*np.diff(stamps)), Fraction(1000)) == rate


def test_a_rate_that_is_a_little_off_is_kept():
    """30.06 frames a second on a grid of 30 would lose one every 17 seconds."""
    stamps = [round(1000 * n / 30.06) for n in range(2000)]
    assert float(constant_rate(steps(*np.diff(stamps)), Fraction(30))) == pytest.approx(30.06, abs=0.002)


@pytest.mark.parametrize("phase", np.linspace(0, 1, 9)[:-1])
@pytest.mark.parametrize("jitter", [0, 0.5, 2])
def test_no_frame_is_lost_wherever_the_sound_begins(phase, jitter):
    noise = np.random.default_rng(0).uniform(-jitter, jitter, 200)
    stamps = [Fraction(round(phase * 1000 / 24 + 1000 * n / 24 + noise[n]), 1000) for n in range(200)]
    frames = ((stamp, Fraction(1, 24), n) for n, stamp in enumerate(stamps))
    placed = list(on_grid(frames, Fraction(24)))
    assert sorted(set(placed)) == list(range(200))
    assert len(placed) <= 202
    assert placed == sorted(placed)


def test_a_clock_that_is_set_anew_takes_no_time():
    stamps = [Fraction(n % 10, 25) + 1000 * (n // 10 % 2) for n in range(40)]
    length = Fraction(1, 25)
    spans, ahead = running_on(((stamp, stamp, length) for stamp in stamps), length, 10)
    assert spans == [(n * length, length) for n in range(40)]
    clock = Clock(Fraction(0), ahead)
    assert list(on_grid(((clock(stamp, length), length, n) for n, stamp in enumerate(stamps)), Fraction(25))) == list(
        range(40)
    )


def events(path):
    """When the picture turns white, and when the sound begins."""
    white = [n / open_frames(path).fps for n, frame in enumerate(open_frames(path)) if frame.mean() > 200]
    sound = np.frombuffer(
        ffmpeg("-i", path, "-ac", 1, "-ar", 48000, "-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"),
        np.float32,
    )
    return white[0], np.argmax(np.abs(sound) > 0.1) / 48000


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """Flash and tone come together at 0.8 s, in several containers; in some the sound is 0.43 s ahead."""
    folder = tmp_path_factory.mktemp("clap")
    flash = "color=black:s=64x48:r=25:d=1.6,drawbox=t=fill:color=white:enable='gte(t,0.8)'"
    tone = "aevalsrc='if(gte(t,0.8),0.5*sin(2*PI*440*t),0)':s=48000:d=1.6"
    inputs = ("-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", tone)
    ffmpeg(*inputs, "-c:v", "libx264", "-g", 5, "-bf", 0, "-pix_fmt", "yuv420p", "-c:a", "aac", folder / "whole.mkv")
    for name in ("a.mp4", "a.mkv", "a.ts", "a.flv", "a.mov"):
        ffmpeg("-i", folder / "whole.mkv", "-c", "copy", folder / name)
        ffmpeg(
            "-i",
            folder / "whole.mkv",
            "-itsoffset",
            -0.43,
            "-i",
            folder / "whole.mkv",
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-c",
            "copy",
            folder / f"early-{name}",
        )
    ffmpeg("-i", folder / "whole.mkv", "-c:v", "mpeg4", "-q:v", 2, "-c:a", "pcm_s16le", folder / "a.avi")
    ffmpeg("-ss", 0.3, "-i", folder / "a.mp4", "-c", "copy", folder / "edited.mp4")  # an edit list hides the start
    return folder


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv", "a.mov", "a.avi", "edited.mp4"])
@pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "out.avi", "out.mov"])
def test_picture_and_sound_keep_their_distance(tmp_path, clap, name, out):
    carry(clap / name, tmp_path / out)
    white, sound = events(tmp_path / out)
    assert white == pytest.approx(sound, abs=0.045)  # a frame lasts 0.04 s


@pytest.mark.parametrize("name", ["early-a.mp4", "early-a.mkv", "early-a.ts", "early-a.mov"])
def test_a_distance_between_the_starts_is_kept(tmp_path, clap, name):
    """The sound is 0.43 s ahead of its picture in the clip, and in the result."""
    carry(clap / name, tmp_path / "out.mp4")
    white, sound = events(tmp_path / "out.mp4")
    assert white - sound == pytest.approx(0.43, abs=0.045)


def test_a_size_that_changes_on_the_way(tmp_path, source, caplog):
    """As in calls: no frame is lost, and what is round stays round."""
    for name, size in (("a", "96x64"), ("b", "72x48"), ("c", "64x96")):
        ffmpeg(
            "-i",
            source / "rgb.mkv",
            "-vf",
            f"scale={size},setsar=1",
            "-c:v",
            "libx264",
            "-pix_fmt",
            "yuv420p",
            tmp_path / f"{name}.ts",
        )
    whole = b"".join((tmp_path / f"{name}.ts").read_bytes() for name in "abc")
    (tmp_path / "all.ts").write_bytes(whole)
    frames = list(open_frames(tmp_path / "all.ts"))
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 24 + [(96, 64, 3)] * 12
    assert [number_of(frame) for frame in frames[:24]] == [*range(12), *range(12)]
    assert "the picture's shape changes" in caplog.text


def test_gif_delays_are_those_that_browsers_show(tmp_path):
    """A hundredth of a second or less is shown for a tenth."""
    first, *others = [Image.fromarray(frame) for frame in pictures()]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=10)
    assert open_frames(tmp_path / "a.gif").fps == 10
    with pytest.raises(UserError, match="browsers show no faster gif"), open_sink(tmp_path / "b.gif", 60):
        pytest.fail("must not be entered")


def test_rate_of_a_folder(source, tmp_path):
    assert open_frames(source, 60).fps == 60
    assert open_frames(source, 0).fps == 0  # a sink refuses it: it isn't taken for no rate
    ffmpeg("-i", source / "rgb.mkv", *x264(), tmp_path / "a.mp4")
    with pytest.raises(UserError, match="--fps with a folder"):
        open_frames(tmp_path / "a.mp4", 60)


# Which stream


def test_default_tracks_are_taken(tmp_path, source):
    tones = ("-f", "lavfi", "-i", "sine=300:d=0.48:r=48000", "-f", "lavfi", "-i", "sine=1000:d=0.48:r=48000")
    ffmpeg(
        "-i",
        source / "rgb.mkv",
        *tones,
        "-map",
        "0",
        "-map",
        "1",
        "-map",
        "2",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-c:a",
        "aac",
        "-disposition:a:0",
        "comment",
        "-disposition:a:1",
        "default",
        "-metadata",
        "title=Stream #0:0: Audio: mp3",
        tmp_path / "a.mkv",
    )
    carry(tmp_path / "a.mkv", tmp_path / "out.mp4")
    sound = np.frombuffer(ffmpeg("-i", tmp_path / "out.mp4", "-ac", 1, "-ar", 48000, "-f", "f32le", "-"), np.float32)
    peak = np.abs(np.fft.rfft(sound))[1:].argmax() * 48000 / sound.size
    assert peak == pytest.approx(1000, abs=20)
    assert "Stream #0:0: Audio" not in "".join(
        line for line in describe(tmp_path / "out.mp4").splitlines() if "title" in line
    )


def test_many_channels_are_mixed_down(tmp_path, source):
    layout = "7.1.4"
    ffmpeg(
        "-i",
        source / "rgb.mkv",
        "-f",
        "lavfi",
        "-i",
        f"anoisesrc=d=0.48:r=48000,aformat=channel_layouts=mono,pan={layout}|FL=c0|FR=c0",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-c:a",
        "pcm_s16le",
        tmp_path / "a.mov",
    )
    carry(tmp_path / "a.mov", tmp_path / "out.mp4")
    assert "stereo" in describe(tmp_path / "out.mp4")


def undecodable(path):
    """Rename the AC-3 of the sound in an mp4 to a codec that nobody has."""
    data = path.read_bytes()
    assert data.count(b"ac-3") == 1
    path.write_bytes(data.replace(b"ac-3", b"zzzz"))


def test_sound_that_cannot_be_decoded_is_found_out_before_the_work(tmp_path, source):
    ffmpeg(
        "-i",
        source / "rgb.mkv",
        "-i",
        source / "tone.wav",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-c:a",
        "ac3",
        tmp_path / "a.mp4",
    )
    undecodable(tmp_path / "a.mp4")
    match = r"a\.mp4: its sound can't be decoded.*--no-audio"
    with pytest.raises(UserError, match=match), open_sink(tmp_path / "out.mp4", 25, audio_from=tmp_path / "a.mp4"):
        pytest.fail("must not be entered")


def test_the_next_track_that_can_be_decoded_is_taken(tmp_path, source):
    ffmpeg(
        "-i",
        source / "rgb.mkv",
        "-i",
        source / "tone.wav",
        "-map",
        0,
        "-map",
        1,
        "-map",
        1,
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-c:a:0",
        "ac3",
        "-c:a:1",
        "aac",
        tmp_path / "a.mp4",
    )
    undecodable(tmp_path / "a.mp4")
    carry(tmp_path / "a.mp4", tmp_path / "out.mp4")
    sound = np.frombuffer(ffmpeg("-i", tmp_path / "out.mp4", "-ac", 1, "-ar", 48000, "-f", "f32le", "-"), np.float32)
    assert np.abs(sound).max() > 0.05


def test_animated_avif(tmp_path):
    first, *others = [Image.fromarray(frame) for frame in pictures()]
    first.save(tmp_path / "a.avif", save_all=True, append_images=others, duration=40, quality=90)
    frames = open_frames(tmp_path / "a.avif")
    assert frames.fps == 25
    assert [number_of(frame) for frame in frames] == list(range(12))
    first.save(tmp_path / "still.avif")
    with pytest.raises(UserError, match="a still image"):
        open_frames(tmp_path / "still.avif")


@pytest.mark.parametrize("suffix", ["webp", "png", "gif", "avif"])
def test_animated_images_keep_their_delays(tmp_path, suffix):
    first, *others = [Image.fromarray(frame) for frame in pictures()]
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=others, duration=[40] * 6 + [120] * 6, quality=90)
    frames = open_frames(path)
    assert (frames.fps, frames.count_hint) == (25, 24)
    assert [number_of(frame) for frame in frames] == [*range(6), *np.repeat(range(6, 12), 3)]


# Whole or cut


def test_what_comes_after_the_end_does_not_matter(tmp_path, source):
    ffmpeg("-i", source / "rgb.mkv", *x264(), tmp_path / "a.mp4")
    with open_sink(tmp_path / "b.gif", 25) as sink:
        for frame in pictures():
            sink.write(frame)
    for name, tail in (("a.mp4", b"\x01\x02GPS trailer" * 9), ("b.gif", b"\n"), ("b.gif", b"<!-- served by -->")):
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + tail)
        assert len(list(open_frames(path))) == 12


# Written


def test_streams_say_their_colours(tmp_path):
    """And are written by them: a small picture and a large one, each read by the tags alone."""
    for width, height in ((64, 64), (1280, 720)):
        path = tmp_path / f"{height}.mp4"
        with open_sink(path, 25) as sink:
            for _ in range(3):
                sink.write(np.full((height, width, 3), COLOURS[0], np.uint8))
        assert re.search(r"yuv420p\(tv, (smpte170m|bt470bg)/bt709/bt709", describe(path))
        assert np.abs(next(iter(open_frames(path))).astype(int) - COLOURS[0]).max() <= 2
        frame = cv2.VideoCapture(str(path)).read()[1][..., ::-1]  # a reader that looks at no tag
        assert np.abs(frame.astype(int) - COLOURS[0]).max() <= 3


def test_foreign_frames_are_not_cleared(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "mine" / "000000.png")
    before = (tmp_path / "mine" / "000000.png").read_bytes()
    with (
        pytest.raises(UserError, match=r"holds 000000\.png, which this program didn't write"),
        open_sink(tmp_path / "mine", 25),
    ):
        pytest.fail("must not be entered")
    assert (tmp_path / "mine" / "000000.png").read_bytes() == before


def test_two_runs_into_one_folder(tmp_path):
    """The second is refused before any work, and the first is undisturbed."""
    (tmp_path / "out").mkdir()
    with open_sink(tmp_path / "out", 25) as first:
        first.write(pictures(1)[0])
        with pytest.raises(UserError, match="another run is at work there"), open_sink(tmp_path / "out", 25):
            pytest.fail("must not be entered")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000000.png"]


@pytest.mark.parametrize("name", ["a" * 252 + ".mp4", "ä" * 126 + ".mp4", "a" * 300, "a/" + "b" * 300 + ".gif"])
def test_long_names_are_one_line(tmp_path, name):
    with pytest.raises(UserError, match="File name too long"), open_sink(tmp_path / name, 25):
        pytest.fail("must not be entered")


def test_nothing_of_the_clip_but_its_sound_goes_along(tmp_path, source):
    chapters = tmp_path / "chapters.txt"
    chapters.write_text(
        ";FFMETADATA1\ntitle=secret\nartist=secret\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=400\ntitle=secret\n"
    )
    ffmpeg(
        "-i",
        source / "rgb.mkv",
        "-i",
        source / "tone.wav",
        "-i",
        chapters,
        "-map_metadata",
        2,
        "-map_chapters",
        2,
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-c:a",
        "aac",
        "-metadata:s:a",
        "title=secret",
        "-metadata:s:a",
        "handler_name=secret",
        tmp_path / "a.mkv",
    )
    for name in ("out.mp4", "out.mkv", "out.avi"):
        carry(tmp_path / "a.mkv", tmp_path / name)
        assert "secret" not in describe(tmp_path / name)
        assert "Audio" in describe(tmp_path / name)


# Broadcasts, joined and cut


def flashes_and_clicks(path):
    """When each flash and each click of a clip begin, in seconds."""
    frames = open_frames(path)
    white = np.array([frame.mean() > 200 for frame in frames]).astype(int)
    filters = ("-ac", 1, "-ar", 48000, "-af", "aresample=async=1:first_pts=0")
    loud = np.abs(np.frombuffer(ffmpeg("-i", path, *filters, "-f", "f32le", "-"), np.float32)) > 0.1
    loud = loud[: len(loud) // 480 * 480].reshape(-1, 480).any(axis=1).astype(int)
    return [np.flatnonzero(np.diff(on) > 0) / rate for on, rate in ((white, frames.fps), (loud, 100))]


@pytest.fixture(scope="module")
def broadcast(tmp_path_factory):
    """Two seconds with a flash and a click at 0.8 s, as a recorder writes them; once more with a clock 5000 s ahead,
    and with sound of another kind."""
    folder = tmp_path_factory.mktemp("broadcast")
    flash = "color=black:s=64x48:r=25:d=2,drawbox=t=fill:color=white:enable='between(t,0.8,1)'"
    tone = "aevalsrc='if(between(t,0.8,1),0.5*sin(2*PI*440*t),0)':s=48000:d=2"
    inputs = ("-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", tone)
    video = ("-c:v", "libx264", "-g", 10, "-bf", 2, "-pix_fmt", "yuv420p")
    ffmpeg(*inputs, *video, "-c:a", "mp2", "-ac", 2, folder / "a.ts")
    ffmpeg("-i", folder / "a.ts", "-c", "copy", "-output_ts_offset", 5000, folder / "later.ts")
    ffmpeg(*inputs, *video, "-c:a", "mp2", "-ac", 1, "-ar", 44100, "-output_ts_offset", 2, folder / "other.ts")
    ffmpeg(*inputs, "-c:v", "mpeg2video", "-q:v", 2, "-bf", 2, "-c:a", "mp2", folder / "b.mpg")
    return {name: (folder / name).read_bytes() for name in ("a.ts", "later.ts", "other.ts", "b.mpg")}


@pytest.mark.parametrize(
    "joined",
    [("a.ts", "a.ts"), ("a.ts", "later.ts"), ("later.ts", "a.ts"), ("a.ts", "other.ts"), ("b.mpg", "b.mpg")],
)
@pytest.mark.parametrize("out", ["out.mp4", "out.avi"])
def test_sound_stays_with_its_pictures_where_the_clock_is_set_anew(tmp_path, broadcast, joined, out):
    path = tmp_path / f"joined.{joined[0][-3:]}"
    path.write_bytes(b"".join(broadcast[name] for name in joined))
    frames = open_frames(path)
    assert frames.count_hint == pytest.approx(100, abs=3)
    carry(path, tmp_path / out)
    flashes, clicks = flashes_and_clicks(tmp_path / out)
    assert len(flashes) == len(clicks) == 2
    assert np.abs(flashes - clicks).max() <= 0.06
    assert np.diff(flashes)[0] == pytest.approx(2, abs=0.05)


def test_a_stream_that_comes_in_late(tmp_path, broadcast):
    """Its pictures are all there; PyAV fails at the end of such a file."""
    (tmp_path / "a.ts").write_bytes(broadcast["a.ts"])
    ffmpeg("-i", tmp_path / "a.ts", "-an", "-c", "copy", tmp_path / "mute.ts")
    nothing = (b"G\x1f\xff\x10" + bytes(184)) * 30000  # more than FFmpeg looks through for streams
    mute = (tmp_path / "mute.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(mute + nothing + broadcast["a.ts"] + nothing + mute)
    assert len(list(open_frames(tmp_path / "a.ts"))) == 150


@pytest.mark.parametrize("share", [0.04, 0.08, 0.12])
def test_a_recording_may_begin_anywhere(tmp_path, broadcast, share, capfd):
    path = tmp_path / "cut.ts"
    path.write_bytes(broadcast["a.ts"][int(len(broadcast["a.ts"]) * share) :])
    carry(path, tmp_path / "out.mp4")
    flashes, clicks = flashes_and_clicks(tmp_path / "out.mp4")
    assert np.abs(flashes - clicks).max() <= 0.045
    assert capfd.readouterr().err == ""


def test_a_packet_that_was_not_received_is_told(tmp_path, broadcast, caplog):
    rows = np.frombuffer(broadcast["a.ts"], np.uint8).reshape(-1, 188)
    pictures_begin = np.flatnonzero((rows[:, 1] & 0x5F == 0x41) & (rows[:, 2] == 0))  # PID 256, start of a unit
    (tmp_path / "a.ts").write_bytes(np.delete(rows, pictures_begin[20], axis=0).tobytes())
    open_frames(tmp_path / "a.ts")
    assert "a.ts: parts are missing on the way" in caplog.text


def test_pixels_that_change_their_shape_on_the_way(tmp_path, source):
    for name, aspect in (("a", "1/1"), ("b", "2/1")):
        ffmpeg("-i", source / "rgb.mkv", "-vf", f"setsar={aspect}", *x264()[2:], tmp_path / f"{name}.ts")
    (tmp_path / "all.ts").write_bytes(b"".join((tmp_path / f"{name}.ts").read_bytes() for name in "ab"))
    assert [frame.shape for frame in open_frames(tmp_path / "all.ts")] == [(64, 96, 3)] * 12 + [(64, 192, 3)] * 12


def test_frames_that_are_empty_repeat_the_one_before(tmp_path, source):
    """Theora's encoder stores a still picture so."""
    ffmpeg("-loop", 1, "-i", source / "000.png", "-frames:v", 7, "-c:v", "libtheora", "-q:v", 9, tmp_path / "a.ogv")
    frames = open_frames(tmp_path / "a.ogv")
    assert (frames.count_hint, len(list(frames))) == (7, 7)


# What isn't shown, and colours that can't be


def test_cropping_is_that_of_ffmpeg(tmp_path, source):
    """By the codec, whose left edge isn't cut to a multiple of 32, and by the container."""
    ffmpeg("-i", source / "rgb.mkv", *x264(), tmp_path / "plain.mp4")
    crop = "h264_metadata=crop_left=8:crop_right=4:crop_top=6:crop_bottom=2"
    ffmpeg("-i", tmp_path / "plain.mp4", "-c", "copy", "-bsf:v", crop, tmp_path / "codec.mp4")
    data = (tmp_path / "plain.mp4").read_bytes()
    clean = b"".join(value.to_bytes(4, "big") for value in (80, 1, 40, 1, 4, 1, 2, 1))  # width, height, offsets
    box = (8 + len(clean)).to_bytes(4, "big") + b"clap" + clean
    at = data.index(b"avcC") - 4
    at += int.from_bytes(data[at : at + 4], "big")
    data = data[:at] + box + data[at:]
    for name in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        start = data.rindex(name, 0, at) - 4
        data = (
            data[:start]
            + (int.from_bytes(data[start : start + 4], "big") + len(box)).to_bytes(4, "big")
            + data[start + 4 :]
        )
    (tmp_path / "clap.mp4").write_bytes(data)
    ffmpeg("-i", tmp_path / "clap.mp4", "-c", "copy", tmp_path / "clap.mkv")
    for name, shape in (("codec.mp4", (56, 84, 3)), ("clap.mp4", (40, 80, 3)), ("clap.mkv", (40, 80, 3))):
        expected = decoded(tmp_path / name).astype(int)
        for frames in shown(tmp_path / name):
            assert frames[0].shape == expected[0].shape == shape
            assert np.abs(np.array(frames) - expected).max() <= 2


def test_orientation_in_exif_of_a_motion_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for n, frame in enumerate(pictures(12)):
        Image.fromarray(frame).save(tmp_path / f"{n:02d}.jpg", quality=95, exif=exif)
    path = tmp_path / "a.mov"
    (tmp_path / "a.mjpeg").write_bytes(b"".join(file.read_bytes() for file in sorted(tmp_path.glob("*.jpg"))))
    ffmpeg("-i", tmp_path / "a.mjpeg", "-c", "copy", path)
    for frames in shown(path):
        assert [frame.shape for frame in frames] == [(96, 64, 3)] * 12
        assert [number_of(np.rot90(frame)) for frame in frames] == list(range(12))


def test_colours_that_cannot_be_converted_are_refused(tmp_path, source, capfd):
    """ICtCp, by the number of H.273."""
    ffmpeg("-i", source / "rgb.mkv", *x264(), tmp_path / "plain.mp4")
    ffmpeg(
        "-i", tmp_path / "plain.mp4", "-c", "copy", "-bsf:v", "h264_metadata=matrix_coefficients=14", tmp_path / "a.mp4"
    )
    with pytest.raises(UserError, match=r"a\.mp4: not a readable video \(its colours can't be converted.*matrix 14"):
        open_frames(tmp_path / "a.mp4")
    with pytest.raises(BrokenClip, match="matrix 14"):
        open_clip(Clip(tmp_path / "a.mp4", "a", "a"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["png", "avif"])
def test_animations_with_a_profile_or_transparency(tmp_path, kind):
    """As viewers show them: the first of test_profiles_are_converted's colours; over white."""
    images = [Image.new("RGBA", (16, 16), (202, 54, 51, alpha)) for alpha in (255, 254, 128)]
    profile = {"icc_profile": p3_profile()} if kind == "png" else {"quality": 100}
    images[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=images[1:], duration=40, **profile)
    frames = list(open_frames(tmp_path / f"a.{kind}"))
    colour = np.array((220, 31, 41) if kind == "png" else (202, 54, 51))
    assert np.abs(frames[0][8, 8] - colour).max() <= 3
    assert np.abs(frames[2][8, 8] - (colour + 255) / 2).max() <= 3


def test_a_gamma_without_a_profile_is_told(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for gamma, told in ((45455, ""), (100000, "a.png: a gamma or primaries of its own")):
        chunk = b"gAMA" + gamma.to_bytes(4, "big")
        head = data[:33] + (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(head + data[33:])
        read_image(tmp_path / "a.png")
        assert (told in caplog.text) if told else not caplog.text


# Rates


def lateness(stamps, rate):
    """The most by which a frame comes late on the grid, in seconds."""
    placed = list(on_grid(((stamp, Fraction(0), n) for n, stamp in enumerate(stamps)), rate))
    return max(placed.index(n) / float(rate) - float(stamp) for n, stamp in enumerate(stamps))


@pytest.mark.parametrize("first", [30, 60])
def test_a_rate_that_changes_does_not_leave_the_sound_behind(first):
    """30 frames a second, then 15: on the grid of their mean they would come up to three seconds late."""
    stamps = [Fraction(round(1000 * n / first), 1000) for n in range(10 * first)]
    stamps += [10 + Fraction(round(1000 * n / 15), 1000) for n in range(150)]
    rate = constant_rate([after - before for before, after in zip(stamps, stamps[1:])], Fraction(1000))
    assert lateness(stamps, rate) <= 0.06
    assert rate <= first


def test_two_frames_of_one_time_do_not_halve_the_rate():
    assert constant_rate(steps(*[0, 80] * 50), Fraction(1000)) == 25


def test_a_rate_that_the_header_invents_is_not_taken():
    stamps = [round(1000 * n * 1001 / 24000) for n in range(300)]
    assert constant_rate(steps(*np.diff(stamps).tolist()), Fraction(25)) == Fraction(24000, 1001)


# Sound that can't be copied


@pytest.mark.parametrize("codec", [("libmp3lame", "-ar", 8000), ("wmav2",)])
@pytest.mark.parametrize("out", ["out.mp4", "out.avi"])
def test_sound_of_an_odd_kind_is_encoded_anew(tmp_path, clap, codec, out):
    path = tmp_path / ("a.wmv" if codec[0] == "wmav2" else "a.mkv")
    video = ("-c:v", "wmv2", "-b:v", "1M") if codec[0] == "wmav2" else ("-c:v", "copy")
    ffmpeg("-i", clap / "whole.mkv", *video, "-c:a", *codec, path)
    carry(path, tmp_path / out)
    white, sound = events(tmp_path / out)
    assert white == pytest.approx(sound, abs=0.045)


# Cut


def test_a_movie_cut_in_its_index_or_its_fragments_is_refused(tmp_path, clap):
    """FFmpeg reads on, without the sound or without some of the frames, and says nothing."""
    whole = (clap / "a.mp4").read_bytes()
    start = whole.index(b"trak", whole.index(b"trak") + 4)
    cuts = {"index.mp4": whole[: start + 4]}
    ffmpeg("-i", clap / "a.mp4", "-c", "copy", "-movflags", "frag_keyframe+empty_moov", tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    second = whole.index(b"moof", whole.index(b"moof") + 4)
    cuts["fragments.mp4"] = whole[: second - 20] + whole[second + 4 :]
    for name, data in cuts.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: "):
            list(open_frames(tmp_path / name))


TESTS = Path(__file__).parent.parent
SAME_BYTES = """
import hashlib, sys
import tiny
from mrfomm.media.writing import open_sink
with open_sink(sys.argv[1], 25) as sink:
    for frame in tiny.frames(40):
        sink.write(frame)
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
def test_the_same_frames_give_the_same_bytes_whatever_memory_held(suffix, tmp_path):
    """MALLOC_PERTURB_ fills memory that nobody has set with a byte."""
    digests = set()
    for fill in ("0", "85", "170"):
        command = [sys.executable, "-c", SAME_BYTES, str(tmp_path / f"{fill}{suffix}")]
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        environment = {**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": paths}
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1
