"""Clips: what is found, and that every frame read is the frame asked for, whatever the encoding."""

import os
import struct
import subprocess
import zlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from mrfomm.data.clips import BrokenClip, Clip, find_clips, open_clip
from mrfomm.errors import UserError

SIDE = 64
BITS = 9  # of a frame's number, drawn as a 3x3 board of black and white squares


def numbered_frame(number, side=SIDE):
    """uint8 [side,side,3] whose squares spell a number; it survives lossy encoding."""
    board = np.array([number >> bit & 1 for bit in range(BITS)], dtype=np.uint8).reshape(3, 3) * 255
    cell = -(-side // 3)
    return np.repeat(np.kron(board, np.ones((cell, cell), np.uint8))[:side, :side, None], 3, axis=2)


def number_of(frame):
    """The number that a decoded frame spells."""
    cell = -(-len(frame) // 3)
    bits = frame[cell // 3 :: cell, cell // 3 :: cell, 1].ravel() > 127
    return int(bits @ (1 << np.arange(BITS)))


def numbers_of(frames):
    return [number_of(frame) for frame in frames]


def encode(path, frames, *options, fps=25):
    """Encode frames with ffmpeg options."""
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames[0].shape[1]}x{frames[0].shape[0]}"]
    source += ["-r", str(fps), "-i", "-"]
    ffmpeg(*source, *options, str(path), data=b"".join(frame.tobytes() for frame in frames))


def ffmpeg(*arguments, data=b""):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *arguments]
    subprocess.run(command, input=data, check=True)


def only_clip(folder):
    (clip,) = find_clips(folder)
    return clip


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast")
LONG_GOP = (*H264, "-bf", "8", "-g", "600", "-b_strategy", "0")
SHORT_GOP = (*H264, "-bf", "3", "-g", "12")
OPEN_GOP = (*H264, "-bf", "3", "-g", "30", "-x264-params", "open-gop=1:scenecut=0")
MPEG4 = ("-c:v", "mpeg4", "-bf", "2")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("long.mp4", LONG_GOP),
        ("short.mp4", SHORT_GOP),
        ("open.mov", OPEN_GOP),
        ("late.mp4", (*SHORT_GOP, "-output_ts_offset", "5")),
        ("mpeg4.mp4", MPEG4),
    ],
)
def test_video_frames_are_exact(tmp_path, name, options):
    count = 300
    encode(tmp_path / name, [numbered_frame(i) for i in range(count)], *options)
    frames = open_clip(only_clip(tmp_path))
    assert frames.length == count
    generator = np.random.default_rng(0)
    for _ in range(6):
        indices = generator.integers(count, size=4)
        assert numbers_of(frames.read(indices, SIDE)) == indices.tolist()
    assert numbers_of(frames.read([count - 1, 0, count - 1, 150], SIDE)) == [299, 0, 299, 150]


def test_video_of_variable_rate_is_exact_although_seeking_is_not(tmp_path):
    numbers = [i for i in range(300) if i % 3 == 0 or i % 7 == 0]
    select = r"select='not(mod(n\,3))+not(mod(n\,7))'"
    options = (*H264, "-g", "20", "-vf", select, "-fps_mode", "vfr")
    encode(tmp_path / "variable.mp4", [numbered_frame(i) for i in range(300)], *options)
    frames = open_clip(only_clip(tmp_path))
    assert frames.length == len(numbers)
    for index in (len(numbers) - 1, 100, 63, 40, 17, 0):
        assert number_of(frames.read([index], SIDE)[0]) == numbers[index]


def test_video_cut_without_encoding_has_fewer_frames_than_it_says(tmp_path):
    encode(tmp_path / "whole.mp4", [numbered_frame(i) for i in range(100)], *LONG_GOP)
    ffmpeg("-ss", "2.8", "-i", str(tmp_path / "whole.mp4"), "-c", "copy", str(tmp_path / "cut.mp4"))
    cut, _ = find_clips(tmp_path)
    frames = open_clip(cut)
    assert frames.length == 30
    assert numbers_of(frames.read([0, 29], SIDE)) == [70, 99]


def test_read_matches_a_full_decoding_bit_by_bit(tmp_path):
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(120)]
    encode(tmp_path / "noise.mp4", noise, *OPEN_GOP)
    frames = open_clip(only_clip(tmp_path))
    everything = frames.read(range(120), SIDE)
    for index in (119, 77, 45, 31, 30, 29, 1):
        np.testing.assert_array_equal(frames.read([index], SIDE)[0], everything[index])


def test_lossless_video_keeps_channel_order_and_values(tmp_path):
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(3)]
    encode(tmp_path / "noise.mp4", noise, "-c:v", "libx264rgb", "-crf", "0")
    np.testing.assert_array_equal(open_clip(only_clip(tmp_path)).read(range(3), SIDE), noise)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PNG"])
def test_a_still_that_is_called_gif(tmp_path, kind):
    """Not every format of Pillow's tells how many frames there are."""
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "a.gif", format=kind)
    frames = open_clip(Clip(tmp_path / "a.gif", "a", "a"))
    assert frames.length == 1
    np.testing.assert_allclose(frames.read([0], 16), np.broadcast_to([255, 0, 0], (1, 16, 16, 3)), atol=2)


def test_gif(tmp_path):
    images = [Image.fromarray(numbered_frame(i)) for i in range(7)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    frames = open_clip(only_clip(tmp_path))
    assert frames.length == 7
    assert numbers_of(frames.read([6, 0, 3, 3], SIDE)) == [6, 0, 3, 3]


def test_folder_of_frames_in_natural_order(tmp_path):
    (tmp_path / "a.b").mkdir()
    for i in range(12):
        Image.fromarray(numbered_frame(i)).save(tmp_path / "a.b" / f"{i}.png")
    (tmp_path / "a.b" / "notes.txt").write_text("no frame")
    (tmp_path / "a.b" / ".99.png").write_text("hidden")
    clip = only_clip(tmp_path)
    assert clip.name == "a.b"
    np.testing.assert_array_equal(open_clip(clip).read([11, 2], SIDE), [numbered_frame(11), numbered_frame(2)])
    assert open_clip(clip).length == 12


def test_stacked_image(tmp_path):
    grey = np.concatenate([numbered_frame(i)[..., 0] for i in range(5)], axis=1)
    Image.fromarray(grey).save(tmp_path / "a.png")
    frames = open_clip(only_clip(tmp_path))
    assert frames.length == 5
    np.testing.assert_array_equal(frames.read([4, 1], SIDE), [numbered_frame(4), numbered_frame(1)])


def test_other_sizes_are_cut_to_the_centre_and_resized(tmp_path):
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, 20:80, 1] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    (frame,) = open_clip(only_clip(tmp_path)).read([0], 20)
    np.testing.assert_array_equal(frame, np.broadcast_to(np.uint8([0, 200, 0]), (20, 20, 3)))


def test_find_clips_sorts_and_names(tmp_path):
    for name in ("id2#b#1#2.mp4", "id10#a.MP4", "id1.gif", ".hidden", "plain.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "id2#a").mkdir()
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["id1", "id10#a", "id2#a", "id2#b#1#2", "plain"]
    assert [clip.identity for clip in clips] == ["id1", "id10", "id2", "id2", "plain"]
    assert clips[1].path == tmp_path / "id10#a.MP4"


def test_find_clips_names_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no clip"):
        find_clips(tmp_path)
    (tmp_path / "a.gif").touch()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match="a.mp4: has the same name as a.gif"):
        find_clips(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="notes.txt: not a clip"):
        find_clips(tmp_path)


def test_broken_clips_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("gif.gif", "video.mp4", "image.png"):
        (tmp_path / name).write_bytes(b"not what the name says")
    encode(tmp_path / "short.mp4", [numbered_frame(i) for i in range(5)], *H264)
    (tmp_path / "short.mp4").write_bytes((tmp_path / "short.mp4").read_bytes()[:-500])
    Image.fromarray(np.zeros((10, 15, 3), np.uint8)).save(tmp_path / "ragged.png")
    clips = find_clips(tmp_path)
    assert len(clips) == 6
    for clip in clips:
        with pytest.raises(BrokenClip, match=f"{clip.path.name}.*; replace the clip or move it away") as caught:
            open_clip(clip)
        assert caught.value.clip == clip


def test_damaged_frames_are_broken_clips(tmp_path):
    (tmp_path / "folder").mkdir()
    Image.fromarray(numbered_frame(0)).save(tmp_path / "folder" / "0.png")
    (tmp_path / "folder" / "1.png").write_bytes((tmp_path / "folder" / "0.png").read_bytes()[:60])
    frames = open_clip(only_clip(tmp_path))
    assert number_of(frames.read([0], SIDE)[0]) == 0
    with pytest.raises(BrokenClip, match="1.png"):
        frames.read([0, 1], SIDE)


def test_video_that_vanishes_is_broken(tmp_path):
    encode(tmp_path / "a.mp4", [numbered_frame(i) for i in range(5)], *H264)
    frames = open_clip(only_clip(tmp_path))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(BrokenClip, match="a.mp4"):
        frames.read([0], SIDE)


def test_stacked_image_that_shrinks_is_broken(tmp_path):
    """Replaced by another while a loader has it open."""
    path = tmp_path / "a.png"
    Image.fromarray(np.concatenate([numbered_frame(i) for i in range(4)], axis=1)).save(path)
    frames = open_clip(only_clip(tmp_path))
    Image.fromarray(numbered_frame(0)).save(path)
    assert numbers_of(frames.read([0], SIDE)) == [0]
    with pytest.raises(BrokenClip, match="frame 2 of 4 isn't there any more"):
        frames.read([0, 2], SIDE)


def test_images_of_no_or_of_absurd_size_are_broken(tmp_path):
    def png(width, height):
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
        return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))

    for name, size in (("flat", (100, 0)), ("huge", (1 << 20, 1 << 20))):
        (tmp_path / f"{name}.png").write_bytes(png(*size))
    for clip in find_clips(tmp_path):
        with pytest.raises(BrokenClip):
            open_clip(clip)


def test_numbers_outside_the_clip_are_refused(tmp_path):
    encode(tmp_path / "a.mp4", [numbered_frame(i) for i in range(5)], *H264)
    frames = open_clip(only_clip(tmp_path))
    for indices in ([5], [-1], [0, 5]):
        with pytest.raises(IndexError, match="it has 5"):
            frames.read(indices, SIDE)


def test_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.mp4"))
    encode(tmp_path / "a.mp4", [numbered_frame(i) for i in range(5)], *H264)
    (tmp_path / "a.mp4").rename(path)
    assert numbers_of(open_clip(Clip(path, "e", "e")).read([3, 1], SIDE)) == [3, 1]
