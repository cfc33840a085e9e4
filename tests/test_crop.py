"""The geometry of crops, exactly; the detector where its answer is certain."""

import itertools
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest

import mrfomm
from mrfomm.crop import MARGIN, Box, FaceFinder, crop, find_clip_box, find_image_box, square_box
from mrfomm.errors import UserError
from mrfomm.video import read_image


def blank(count, height=100, width=120):
    return itertools.repeat(np.zeros((height, width, 3), np.uint8), count)


def test_square_box_by_hand():
    """A face of 50 at (200, 300): 50 + 2 * 20 = 90 pixels, centred across, raised by 4."""
    assert square_box(Box(200, 300, 50), (1000, 1000, 3), margin=0.4) == Box(180, 276, 90)


@pytest.mark.parametrize("seed", range(50))
def test_square_box_lies_inside_and_holds_the_face(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 400, 2)
    size = int(rng.integers(5, min(height, width) + 1))
    face = Box(int(rng.integers(0, width - size + 1)), int(rng.integers(0, height - size + 1)), size)
    box = square_box(face, (height, width, 3))
    assert 0 <= box.x <= width - box.size
    assert 0 <= box.y <= height - box.size
    assert box.size == min(round(size * (1 + 2 * MARGIN)), height, width)
    assert box.x <= face.x
    assert box.y <= face.y
    assert face.x + size <= box.x + box.size
    assert face.y + size <= box.y + box.size


def test_square_box_at_the_edges_is_moved_not_shrunk():
    middle = square_box(Box(100, 100, 20), (220, 220))
    assert square_box(Box(0, 0, 20), (220, 220)) == Box(0, 0, middle.size)
    assert square_box(Box(200, 200, 20), (220, 220)) == Box(220 - middle.size, 220 - middle.size, middle.size)


def test_square_box_moves_with_the_face():
    boxes = [square_box(Box(100 + dx, 90 + dy, 40), (300, 300)) for dx, dy in ((0, 0), (7, -5))]
    assert boxes[1] == (boxes[0].x + 7, boxes[0].y - 5, boxes[0].size)


def test_crop():
    frame = np.arange(10 * 12 * 3).reshape(10, 12, 3)
    part = crop(frame, Box(x=3, y=2, size=4))
    assert part.shape == (4, 4, 3)
    np.testing.assert_array_equal(part[0, 0], frame[2, 3])
    np.testing.assert_array_equal(part[3, 3], frame[5, 6])


def test_clip_box_is_that_of_the_median_face():
    found = [Box(30, 40, 20), None, Box(32, 44, 22), Box(90, 90, 10), Box(31, 41, 21), None, Box(33, 43, 23)]
    answers = iter(found)
    box = find_clip_box(blank(len(found)), "clip.mp4", lambda frame: next(answers))
    assert box == square_box(Box(32, 43, 21), (100, 120))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 1000, 5000])
def test_long_clips_are_searched_evenly(length):
    """The median over the frames searched is near the clip's, and few frames are searched."""
    current, searched = [0], []

    def frames():
        for n in range(length):
            current[0] = n
            yield np.zeros((10, 20_000, 3), np.uint8)

    def find_face(frame):
        searched.append(current[0])
        return Box(current[0], 5, 1)

    box = find_clip_box(frames(), "clip.mp4", find_face)
    assert len(searched) <= 32 + 16 * max(0, np.ceil(np.log2(length / 32)))
    assert abs(box.x - (length - 1) / 2) <= max(1, length / 16)
    assert searched == sorted(set(searched))


def test_clip_is_taken_frame_by_frame():
    """No frame is kept: hardly any is alive when the next ones are made."""
    alive, counts = set(), []

    def frames():
        for number in range(100):
            frame = np.zeros((50, 60, 3), np.uint8)
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            counts.append(len(alive))
            yield frame

    find_clip_box(frames(), "clip.mp4", lambda frame: Box(1, 1, 9))
    assert len(counts) == 100
    assert max(counts) <= 3


def test_errors_name_the_source():
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"me\.png: no face found"):
        find_image_box(noise, "me.png")
    with pytest.raises(UserError, match=r"clip\.mp4: no face found"):
        find_clip_box([], "clip.mp4")
    sizes = itertools.chain(blank(2), blank(1, 50))
    with pytest.raises(UserError, match="frames differ in size"):
        find_clip_box(sizes, "frames", lambda frame: Box(1, 1, 9))


def drawn_face(height=240, width=320, x=160, y=120, size=110):
    """A cartoon with the contrasts that the frontal cascade asks for: dark eyes and mouth, bright nose."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    u, v = (columns - x) / (size / 2), (rows - y) / (size / 2)

    def blob(at_x, at_y, wide, tall):
        return np.exp(-(((u - at_x) / wide) ** 2 + ((v - at_y) / tall) ** 2))

    grey = 90 + 110 / (1 + np.exp(12 * (np.hypot(u / 0.95, v / 1.2) - 1)))
    grey -= 120 * (blob(-0.42, -0.25, 0.22, 0.1) + blob(0.42, -0.25, 0.22, 0.1))
    grey -= 60 * (blob(-0.42, -0.48, 0.3, 0.07) + blob(0.42, -0.48, 0.3, 0.07))
    grey += 30 * blob(0, 0, 0.12, 0.35) - 80 * blob(0, 0.55, 0.35, 0.09) - 50 * blob(0, 0.22, 0.2, 0.06)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("height", "width", "x", "y", "size"),
    [(240, 320, 160, 120, 110), (240, 320, 80, 100, 80), (480, 640, 400, 200, 200), (1080, 1920, 600, 500, 400)],
)
def test_finder_in_small_and_large_frames(height, width, x, y, size):
    face = FaceFinder()(drawn_face(height, width, x, y, size))
    assert face.x + face.size / 2 == pytest.approx(x, abs=0.05 * size)
    assert face.y + face.size / 2 == pytest.approx(y, abs=0.05 * size)
    assert face.size == pytest.approx(1.19 * size, rel=0.05)


def test_finder_takes_the_largest_face():
    pair = np.concatenate([drawn_face(size=80), drawn_face(size=110)], axis=1)
    face = FaceFinder()(pair)
    assert face.x + face.size / 2 == pytest.approx(320 + 160, abs=6)


def test_image_box_around_a_drawn_face():
    image = drawn_face()
    box = find_image_box(image, "drawn.png")
    assert box == square_box(FaceFinder()(image), image.shape)
    assert crop(image, box).shape == (box.size, box.size, 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_profiles_of_both_sides(side):
    """Turned heads are found, and the mirrored frame gives the mirrored boxes."""
    image = read_image(Path(mrfomm.__file__).parent / f"assets/samples/reference_{side}.png")
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    finder = FaceFinder()
    boxes = finder._profiles(grey)
    mirrored = finder._profiles(np.ascontiguousarray(grey[:, ::-1]))
    assert boxes
    assert sorted(boxes) == sorted(Box(grey.shape[1] - b.x - b.size, b.y, b.size) for b in mirrored)
