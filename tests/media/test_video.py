"""Images and clips against numpy, and against what was written."""

import functools
import itertools
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from oracle import describe, ffmpeg
from PIL import Image

from mrfomm.errors import UserError
from mrfomm.media.images import fit, read_image
from mrfomm.media.reading import open_frames, read_comment
from mrfomm.media.writing import _CONTAINERS, open_sink

VIDEOS = ("mp4", "mov", "mkv", "avi")


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@functools.cache
def moving_frames(count=20, height=48, width=64):
    """Smooth frames, each unlike its neighbours: a bright spot travels over a slope of colours."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for n in range(count):
        spot = np.exp(-((x - width * (n + 1) / (count + 1)) ** 2 + (y - height / 2) ** 2) / 60)
        colours = (60 + 100 * x / width, 40 + 100 * y / height, np.full(x.shape, 90))
        frames.append(np.stack([colour + 90 * spot for colour in colours], axis=-1).astype(np.uint8))
    return tuple(frames)


def flicker():
    """40 frames that hardly compress, so that there is much to cut or damage."""
    return [noise(32, 32, 3)[::step] for step in (1, -1) * 20]


def write(path, frames, fps=25.0, **options):
    with open_sink(path, fps, **options) as sink:
        for frame in frames:
            sink.write(frame)
    return path


def psnr(one, other):
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def identify(frames, originals):
    """For each frame the index of the original most like it."""
    return [int(np.argmax([psnr(frame, original) for original in originals])) for frame in frames]


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


@pytest.fixture(scope="module")
def beep(tmp_path_factory):
    """A clip of 20 frames and 2 s of sound: silence, and from 0.4 s on a tone."""
    folder = tmp_path_factory.mktemp("beep")
    silent = write(folder / "silent.mkv", moving_frames())
    tone = "aevalsrc='if(gte(t,0.4),0.5*sin(2*PI*440*t),0)':s=44100:d=2"
    for name, codec in (("beep.mp4", "aac"), ("beep.mkv", "pcm_s16le")):
        ffmpeg("-i", silent, "-f", "lavfi", "-i", tone, "-c:v", "copy", "-c:a", codec, folder / name)
    ffmpeg("-i", folder / "beep.mkv", "-vn", folder / "beep.wav")
    return folder


# Images


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_images_come_back_exactly(tmp_path, suffix):
    image = noise(5, 7, 3)
    Image.fromarray(image).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), image)


def test_jpeg(tmp_path):
    image = moving_frames()[0]
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    assert psnr(read_image(tmp_path / "a.jpg"), image) > 35


def test_grey_palette_and_alpha(tmp_path):
    image, grey, alpha = noise(5, 7, 3), noise(5, 7), noise(5, 7)[::-1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, alpha])).save(tmp_path / "la.png")
    palette = Image.fromarray(image).quantize(256)
    palette.save(tmp_path / "palette.png")
    three = np.repeat(grey[:, :, None], 3, axis=2)
    opacity = alpha[..., None] / 255
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), three)
    for name, colours in (("la", three), ("rgba", image)):  # over white
        assert np.abs(read_image(tmp_path / f"{name}.png") - (colours * opacity + 255 * (1 - opacity))).max() <= 0.5
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), image)  # 35 colours: none is lost


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_sixteen_bits_keep_the_high_byte(tmp_path, suffix, shape):
    image = noise(*shape, dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)
    expected = (image // 256).astype(np.uint8)
    expected = expected if image.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)


ORIENTATIONS = {  # EXIF: how the stored picture must be turned to stand upright
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation(tmp_path, orientation, suffix):
    stored = noise(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), ORIENTATIONS[orientation](stored))


def test_exif_orientation_of_sixteen_bits(tmp_path):
    stored = noise(5, 7, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], np.rot90(stored // 256, -1))


def png_of_size(width, height):
    """A PNG that has no pixels yet, of whatever size."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))
    parts = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow warns of the first and refuses the second
def test_decompression_bomb(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_of_size(side, side))
    with pytest.raises(UserError, match=r"bomb\.png: more than 89 megapixels"):
        read_image(tmp_path / "bomb.png")


def test_image_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match=r"text\.png: not a readable image"):
        read_image(tmp_path / "text.png")
    Image.fromarray(np.ones((5, 7), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff: more than 16 bits"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff"])
def test_truncated_image(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(50, 70, 3)).save(path)
    with pytest.raises(UserError, match=rf"a\.{suffix}: not a readable image"):
        read_image(cut(path, 0.7))


def test_fit_cuts_the_centre():
    frame = noise(6, 11, 3)
    np.testing.assert_array_equal(fit(frame, 6), frame[:, 2:8])
    np.testing.assert_array_equal(fit(frame.swapaxes(0, 1), 6), frame.swapaxes(0, 1)[2:8])


def test_fit_averages_areas_when_shrinking():
    frame = noise(24, 30, 3)
    expected = frame[:, 3:27].reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
    assert np.abs(fit(frame, 8) - expected).max() <= 0.5 + 1e-6


def test_fit_interpolates_when_growing():
    frame = np.broadcast_to(np.arange(0, 160, 20, dtype=np.uint8)[None, :, None], (8, 8, 3)).copy()
    expected = np.clip(20 * ((np.arange(16) + 0.5) / 2 - 0.5), 0, 140)  # half-pixel centres, edges repeated
    assert np.abs(fit(frame, 16) - expected[None, :, None]).max() <= 0.5 + 1e-6


def test_fit_is_the_identity_at_the_right_size():
    frame = noise(6, 6, 3)
    assert np.shares_memory(fit(frame, 6), frame)
    np.testing.assert_array_equal(fit(frame, 6), frame)


# Reading folders


def test_folder_in_natural_order(tmp_path):
    frames = {f"frame{n}.png": np.full((4, 4 + n, 3), n, np.uint8) for n in (10, 9, 2, 1)}
    for name, frame in frames.items():
        Image.fromarray(frame).save(tmp_path / name)
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_frames(tmp_path)
    assert (source.fps, source.count_hint, source.has_audio) == (25.0, 4, False)
    for _ in range(2):  # every iter() starts anew
        read = list(source)
        assert [frame[0, 0, 0] for frame in read] == [1, 2, 9, 10]
        assert [frame.shape for frame in read] == [(4, 4 + n, 3) for n in (1, 2, 9, 10)]


def test_folder_reads_images_only_when_asked(tmp_path):
    write(tmp_path / "frames", moving_frames(3))
    (tmp_path / "frames" / "000001.png").write_bytes(b"broken")
    frames = iter(open_frames(tmp_path / "frames"))
    np.testing.assert_array_equal(next(frames), moving_frames(3)[0])
    with pytest.raises(UserError, match=r"000001\.png: not a readable image"):
        next(frames)


def test_folder_without_images(tmp_path):
    with pytest.raises(UserError, match="no image in this folder"):
        open_frames(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no image in this folder"):
        open_frames(tmp_path)


# Reading videos


def test_what_is_no_video(tmp_path, beep):
    with pytest.raises(UserError, match=r"gone\.mp4: no such file"):
        open_frames(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(UserError, match=r"text\.mp4: not a readable video"):
        open_frames(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.mp4: not a readable video"):
        open_frames(tmp_path / "empty.mp4")
    with pytest.raises(UserError, match=r"beep\.wav: not a readable video"):
        open_frames(beep / "beep.wav")
    for suffix in ("png", "jpg"):
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / f"still.{suffix}")
        with pytest.raises(UserError, match=rf"still\.{suffix}: a still image"):
            open_frames(tmp_path / f"still.{suffix}")


@pytest.mark.parametrize("ending", ["#EXT-X-ENDLIST\n", ""], ids=["finite", "endless"])
def test_a_playlist_is_refused(beep, tmp_path, ending):
    """ffmpeg would read the files it names, wherever they are, and wait for more of an endless one."""
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:100000\n#EXTINF:3,\nfile://{beep / 'beep.mp4'}\n"
    for name in ("list.m3u8", "list.mp4"):
        (tmp_path / name).write_text(text + ending)
        with pytest.raises(UserError, match=f"{name}: not a readable video") as error:
            open_frames(tmp_path / name)
        assert "yuv4mpegpipe" not in str(error.value)  # the whole list helps nobody
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{beep / 'beep.mp4'}'\n")
    with pytest.raises(UserError, match="not a readable video"):
        open_frames(tmp_path / "list.ffconcat")


def test_video_can_be_read_twice_and_left_early(beep):
    source = open_frames(beep / "beep.mp4")
    frames = iter(source)
    first = next(frames)
    frames.close()
    whole = list(source)
    assert len(whole) == 20
    np.testing.assert_array_equal(whole[0], first)
    assert first.dtype == np.uint8
    assert first.flags.writeable


def test_video_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    """One black frame of 91 megapixels in half a megabyte."""
    ffmpeg("-f", "lavfi", "-i", "color=black:s=13000x7000", "-frames:v", "1", "-c:v", "mjpeg", tmp_path / "large.avi")
    with pytest.raises(UserError, match=r"large\.avi: not a readable video \(Picture size 13000x7000"):
        open_frames(tmp_path / "large.avi")


def test_odd_file_names(tmp_path, beep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "a:b%03d.mp4"):
        (tmp_path / name).write_bytes((beep / "beep.mp4").read_bytes())
        assert len(list(open_frames(name))) == 20
        write(f"new{name}", moving_frames(), audio_from=name)
        assert open_frames(f"new{name}").has_audio


def test_memory_does_not_grow_with_length(tmp_path):
    frame = np.zeros((256, 256, 3), np.uint8)
    path = write(tmp_path / "long.mp4", (frame for _ in range(300)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_frames(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 300
    assert peak < 6 * frame.nbytes


@pytest.mark.parametrize("share", [0.97, 0.6])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi", "gif"])
def test_cut_video_is_refused_at_once(tmp_path, suffix, share):
    path = cut(write(tmp_path / f"a.{suffix}", flicker()), share)
    with pytest.raises(UserError, match=rf"a\.{suffix}: the file is cut short"):
        open_frames(path)


@pytest.mark.parametrize("share", [0.97, 0.6])
def test_cut_mkv_is_refused_after_its_good_frames(tmp_path, share):
    source = open_frames(cut(write(tmp_path / "a.mkv", flicker()), share))
    with pytest.raises(UserError, match=r"a\.mkv: damaged or cut short"):
        list(source)


def test_mp4_whose_index_is_at_the_end_and_cut(tmp_path, beep):
    ffmpeg("-i", beep / "beep.mp4", "-c", "copy", tmp_path / "late.mp4")
    with pytest.raises(UserError, match=r"late\.mp4: "):
        open_frames(cut(tmp_path / "late.mp4", 0.97))


def test_damage_in_the_middle_ends_the_good_frames(tmp_path):
    path = write(tmp_path / "a.mp4", 4 * flicker())
    good = list(open_frames(path))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = noise(2000).tobytes()
    path.write_bytes(data)
    frames = []
    with pytest.raises(UserError, match=r"a\.mp4: damaged or cut short"):
        frames.extend(iter(open_frames(path)))
    assert 40 < len(frames) < 120
    np.testing.assert_array_equal(frames, good[: len(frames)])


def test_clip_trimmed_without_encoding_is_accepted(tmp_path):
    source, trimmed = tmp_path / "a.mp4", tmp_path / "trimmed.mkv"
    options = ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=20:bframes=3", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=25:d=6", *options, source)
    ffmpeg("-ss", 1.5, "-i", source, "-c", "copy", trimmed)
    assert len(list(open_frames(trimmed))) >= 110  # of 4.5 s


def test_phone_rotation(tmp_path, beep):
    ffmpeg("-display_rotation", "90", "-i", beep / "beep.mp4", "-c", "copy", tmp_path / "turned.mp4")
    turned = list(open_frames(tmp_path / "turned.mp4"))
    assert turned[0].shape == (64, 48, 3)
    assert psnr(turned, [np.rot90(frame) for frame in open_frames(beep / "beep.mp4")]) > 35


def test_oblong_pixels_become_square(tmp_path, beep):
    ffmpeg("-i", beep / "beep.mp4", "-vf", "setsar=2/1", tmp_path / "oblong.mp4")
    frames = list(open_frames(tmp_path / "oblong.mp4"))
    assert frames[0].shape == (48, 128, 3)
    assert psnr(frames, np.repeat(list(open_frames(beep / "beep.mp4")), 2, axis=2)) > 30


def test_variable_rate_becomes_constant(tmp_path, beep):
    """Frames 0-9 last 1/25 s, frames 10-19 twice as long."""
    slowing = "setpts='if(lt(N,10),N,10+(N-10)*2)/25/TB'"
    ffmpeg("-i", beep / "beep.mp4", "-an", "-vf", slowing, "-fps_mode", "vfr", tmp_path / "slowing.mp4")
    source = open_frames(tmp_path / "slowing.mp4")
    shown = identify(source, moving_frames())
    assert source.fps == 25.0
    expected = [*range(10), *np.repeat(range(10, 20), 2)]
    assert shown == expected[: len(shown)]
    assert len(shown) >= 29  # how long the last one is shown is not stored


def test_irregular_gif_is_not_blown_up(tmp_path):
    """Durations of 30, 70 and 50 ms lie on a grid of 10 ms, for which each frame would come five times."""
    images = [Image.fromarray(frame) for frame in moving_frames()]
    durations = [(30, 70, 50)[n % 3] for n in range(20)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=durations)
    source = open_frames(tmp_path / "a.gif")
    assert source.fps == 20.0
    times = np.cumsum([0, *durations[:-1]]) / 1000
    shown = times[identify(source, moving_frames())]
    assert len(shown) == round(sum(durations) / 1000 * 20)
    assert np.abs(shown - np.arange(len(shown)) / 20).max() <= 1 / 20


def test_browsers_recording(tmp_path, beep):
    """Its header knows neither length nor rate, and its time stamps are uneven milliseconds."""
    path = tmp_path / "live.webm"
    uneven = "settb=1/1000,setpts='N*43+mod(N*N*11,37)'"
    codecs = ("-fps_mode", "passthrough", "-enc_time_base", "1/1000", "-c:v", "libvpx", "-b:v", "2M", "-c:a", "libopus")
    ffmpeg("-i", beep / "beep.mp4", "-vf", uneven, *codecs, "-live", "1", path)
    head, default_duration, rest = path.read_bytes().partition(b"\x23\xe3\x83\x84")
    assert default_duration
    path.write_bytes(head + b"\xec\x86" + bytes(6) + rest[4:])  # "void" in its place, as in Chrome's
    source = open_frames(path)
    assert source.has_audio
    stamps = [n * 43 + n * n * 11 % 37 for n in range(20)]
    assert source.fps == pytest.approx(19_000 / (stamps[-1] - stamps[0]), rel=1e-3)
    shown = identify(source, moving_frames())
    late = [stamps[index] - 1000 * n / source.fps for n, index in enumerate(shown)]
    assert sorted(set(shown)) == list(range(20))
    assert len(shown) <= 21
    assert np.abs(late).max() <= np.diff(stamps).max()


def test_picture_that_starts_after_the_sound(tmp_path, beep):
    late = tmp_path / "late.mkv"
    inputs = ("-itsoffset", "0.4", "-i", beep / "beep.mp4", "-i", beep / "beep.wav")
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    assert identify(open_frames(late), moving_frames()) == [0] * 10 + list(range(20))


# Writing


def test_folder_round_trip_is_exact(tmp_path):
    frames = noise(3, 9, 7, 3)
    write(tmp_path / "new" / "frames", frames)
    assert sorted(p.name for p in (tmp_path / "new" / "frames").iterdir()) == [f"00000{n}.png" for n in range(3)]
    np.testing.assert_array_equal(list(open_frames(tmp_path / "new" / "frames")), frames)


def test_folder_replaces_its_old_frames_and_nothing_else(tmp_path):
    folder = write(tmp_path / "frames", noise(5, 8, 8, 3))
    write(folder, 255 - noise(2, 8, 8, 3))
    assert sorted(p.name for p in folder.iterdir()) == ["000000.png", "000001.png"]
    np.testing.assert_array_equal(list(open_frames(folder)), 255 - noise(2, 8, 8, 3))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        write(folder, noise(1, 8, 8, 3))
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("fps", [25.0, 24000 / 1001])
@pytest.mark.parametrize("suffix", VIDEOS)
def test_video_round_trip(tmp_path, suffix, fps):
    source = open_frames(write(tmp_path / f"a.{suffix}", moving_frames(), fps))
    frames = list(source)
    assert source.fps == fps
    assert source.count_hint == pytest.approx(20, abs=1)
    assert identify(frames, moving_frames()) == list(range(20))
    assert psnr(frames, moving_frames()) > 35
    assert "yuv420p" in describe(tmp_path / f"a.{suffix}")


def test_colours_are_not_darkened(tmp_path):
    """ffmpeg's fast conversion loses a level here, on average."""
    frames = list(open_frames(write(tmp_path / "a.mp4", moving_frames())))
    assert np.abs(np.mean(np.asarray(frames, float) - moving_frames(), axis=(0, 1, 2))).max() < 0.5


def test_odd_sizes_repeat_the_edge(tmp_path):
    frames = moving_frames(20, 47, 63)
    read = list(open_frames(write(tmp_path / "a.mp4", frames)))
    assert psnr(read, np.pad(frames, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")) > 35


@pytest.mark.parametrize("fps", [25.0, 24.0])
def test_gif_round_trip(tmp_path, fps):
    source = open_frames(write(tmp_path / "a.gif", moving_frames(20, 47, 63), fps))
    frames = list(source)
    assert source.fps == pytest.approx(fps, rel=2e-3)  # delays are stored in 1/100 s
    assert identify(frames, moving_frames(20, 47, 63)) == list(range(20))
    assert psnr(frames, moving_frames(20, 47, 63)) > 30


@pytest.mark.parametrize("origin", ["beep.mp4", "beep.mkv", "beep.wav"])
@pytest.mark.parametrize("suffix", VIDEOS)
def test_sound_is_in_step_and_as_long_as_the_pictures(tmp_path, beep, suffix, origin):
    path = write(tmp_path / f"a.{suffix}", moving_frames(), audio_from=beep / origin)
    source = open_frames(path)
    assert source.has_audio
    assert identify(source, moving_frames()) == list(range(20))
    sound = np.frombuffer(ffmpeg("-i", path, "-ac", "1", "-ar", "44100", "-f", "f32le", "-"), np.float32)
    assert sound.size / 44100 == pytest.approx(20 / 25, abs=1 / 25)
    assert np.argmax(np.abs(sound) > 0.1) / 44100 == pytest.approx(0.4, abs=0.01)


def test_known_sound_is_copied(tmp_path, beep):
    path = write(tmp_path / "a.mp4", moving_frames(), audio_from=beep / "beep.mp4")
    packets = [ffmpeg("-i", p, "-map", "0:a", "-c", "copy", "-f", "adts", "-") for p in (path, beep / "beep.mp4")]
    assert packets[0] == packets[1][: len(packets[0])]


def test_clips_without_sound(tmp_path, beep):
    folder = write(tmp_path / "frames", moving_frames())
    for silent in (beep / "silent.mkv", folder):
        assert not open_frames(write(tmp_path / "a.mp4", moving_frames(), audio_from=silent)).has_audio
    write(tmp_path / "a.gif", moving_frames(), audio_from=beep / "beep.mp4")
    assert len(list(open_frames(tmp_path / "a.gif"))) == 20


@pytest.mark.parametrize("suffix", [*VIDEOS, "gif"])
def test_comment(tmp_path, suffix, beep):
    comment = "made by a test = true; #1 \\ " + 60 * "long "  # a block of a gif's comment ends at 255 bytes
    path = write(tmp_path / f"a.{suffix}", moving_frames(), comment=comment, audio_from=beep / "beep.mp4")
    assert re.search(r"(?i)comment\s*: made by a test = true; #1", describe(path))
    assert read_comment(path) == comment
    assert read_comment(write(tmp_path / f"b.{suffix}", moving_frames())) is None


def test_comment_of_frames(tmp_path):
    folder = write(tmp_path / "frames", moving_frames(), comment="made by a test = true")
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            assert image.text == {"Comment": "made by a test = true"}
    assert read_comment(folder) == "made by a test = true"


def test_gif_with_a_comment_is_read_by_others(tmp_path):
    with Image.open(write(tmp_path / "a.gif", moving_frames(), comment="made by a test")) as image:
        assert (image.info["comment"], image.n_frames) == (b"made by a test", 20)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_interrupted_writing_leaves_the_old_output(tmp_path, name):
    def broken_frames():
        yield from moving_frames()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, broken_frames())
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / name, moving_frames())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, broken_frames())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["a.mp4", "a"])
def test_no_frame(tmp_path, name):
    with pytest.raises(UserError, match="there was no frame"):
        write(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


def test_failing_encoder(tmp_path, monkeypatch):
    broken = _CONTAINERS[".mp4"]._replace(codec="nonsense")
    monkeypatch.setitem(_CONTAINERS, ".mp4", broken)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be written \(.*nonsense"):
        write(tmp_path / "a.mp4", itertools.cycle(moving_frames()))
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path, beep):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "text.mp4").write_text("hello")
    cases = {
        tmp_path / "file" / "a.mp4": "cannot be written",
        tmp_path / "file": "is a file",
        tmp_path / "a.txt": "unknown suffix",
        "": "holds",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message), open_sink(path, 25):
            pytest.fail("must not be entered")
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="frames per second"), open_sink(tmp_path / "a.mp4", fps):
            pytest.fail("must not be entered")
    for sound in (tmp_path / "gone.mp4", tmp_path / "text.mp4"):
        with pytest.raises(UserError, match=sound.name), open_sink(tmp_path / "a.mp4", 25, sound):
            pytest.fail("must not be entered")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "text.mp4"]


def test_frames_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"frame 1 is \[48, 62, 3\], the first is \[48, 64, 3\]"):
        write(tmp_path / "a.mp4", [moving_frames()[0], moving_frames()[0][:, :62]])
    with pytest.raises(ValueError, match="float64"):
        write(tmp_path / "a", [moving_frames()[0] / 255])
    with pytest.raises(ValueError, match=r"\[48, 64\]"):
        write(tmp_path / "a", [moving_frames()[0][..., 0]])
    assert list(tmp_path.iterdir()) == []


def test_import_without_nnabla():
    code = (
        "import sys, mrfomm.media.reading, mrfomm.media.writing, mrfomm.media.crop; sys.exit('nnabla' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
