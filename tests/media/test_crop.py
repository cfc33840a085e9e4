"""The geometry of crops, exactly; the detector where its answer is certain."""

import itertools
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest

import mrfomm
from mrfomm.errors import UserError
from mrfomm.media.crop import (
    MARGIN,
    Box,
    FaceFinder,
    Framed,
    Paste,
    crop,
    find_clip_box,
    find_image_box,
    resized,
    square_box,
)
from mrfomm.media.images import fit, read_image


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


def smooth_picture(height=150, width=180):
    y, x = np.mgrid[:height, :width] / 25
    return np.stack([128 + 100 * np.sin(x + y), 128 + 100 * np.cos(x - y), 60 + x + y], -1).astype(np.uint8)


@pytest.mark.parametrize("box", [Box(40, 30, 64), Box(0, 0, 150), Box(116, 86, 64), Box(11, 0, 33)])
def test_outside_of_what_is_put_back_nothing_changes(box):
    image = smooth_picture()
    before = image.copy()
    result = Paste(Framed(image, box))(np.full((64, 64, 3), 255, np.uint8))
    inside = np.zeros(image.shape, bool)
    inside[box.y : box.y + box.size, box.x : box.x + box.size] = True
    np.testing.assert_array_equal(result[~inside], before[~inside])
    np.testing.assert_array_equal(image, before)
    middle = crop(result, box)[box.size // 4 : -box.size // 4, box.size // 4 : -box.size // 4]
    assert (middle == 255).all()


@pytest.mark.parametrize(("size", "tolerance"), [(64, 0), (32, 3), (128, 3)])
def test_what_was_cut_out_fits_back(size, tolerance):
    """A square shrunk to half, or enlarged, and put back gives the smooth picture again."""
    image, box = smooth_picture(), Box(40, 30, 64)
    result = Paste(Framed(image, box))(resized(crop(image, box), size))
    assert np.abs(result.astype(int) - image).max() <= tolerance


def test_edges_are_soft_but_at_the_edges_of_the_picture():
    image = np.zeros((100, 100, 3), np.uint8)
    result = Paste(Framed(image, Box(0, 20, 80)))(np.full((8, 8, 3), 200, np.uint8))[..., 0]
    assert (result[60, :70] == 200).all()  # the left side is the picture's
    right, top = result[60, 68:82].astype(int), result[18:32, 40].astype(int)
    for profile in (right[::-1], top):
        assert (np.diff(profile) >= 0).all()
        assert np.diff(profile).max() < 40
        assert profile[0] == 0
        assert profile[-1] == 200


def test_pictures_without_a_box_are_replaced_by_the_square_that_the_model_was_given():
    face = smooth_picture(20, 20)
    np.testing.assert_array_equal(Paste(Framed(np.zeros((20, 20, 3), np.uint8)))(face), face)
    for shape in ((64, 101, 3), (101, 64, 3)):
        wide = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(Paste(Framed(wide))(fit(wide, 64)), wide)


@pytest.mark.parametrize("height", [16, 64, 200])
def test_resized_keeps_proportions_and_grey_values(height):
    image = smooth_picture(64, 128)
    other = resized(image, height)
    assert other.shape == (height, 2 * height, 3)
    assert abs(other.mean() - image.mean()) < 1
    np.testing.assert_allclose(resized(other, 64).astype(int), image, atol=255 if height < 64 else 4)


def test_clip_box_is_that_of_the_median_face():
    """Rounded halves are even; the false detection at (90, 90) is no place of that face."""
    found = [Box(30, 40, 20), None, Box(32, 44, 22), Box(90, 90, 10), Box(31, 41, 21), None, Box(33, 43, 23)]
    box, _ = search([face and [face] or [] for face in found])
    assert box == square_box(Box(32, 42, 22), (100, 120))


def search(found, height=100, width=120):
    """The box for a clip with these faces in its frames, and the lines told after the one that says where it is."""
    answers, told = iter(found), []
    frames = blank(len(found), height, width)
    box = find_clip_box(frames, "clip.mp4", lambda frame: next(answers), told.append)
    assert told[0] == f"clip.mp4: cropped to {box.size}x{box.size} pixels at ({box.x}, {box.y})"
    return box, [line.removeprefix("clip.mp4: ").split(";")[0] for line in told[1:]]


LEFT, RIGHT, FALSE = Box(10, 30, 30), Box(75, 40, 32), Box(50, 0, 44)
LEFT_SMALL, RIGHT_SMALL, POSTER = Box(13, 33, 24), Box(78, 43, 26), Box(80, 50, 23)
SWAY = [Box(10 + round(25 * (1 - np.cos(n / 5))), 30, 30) for n in range(30)]  # by 1.7 faces, in small steps


@pytest.mark.parametrize(
    ("found", "face", "told"),
    [
        (
            [[LEFT]] * 8 + [[RIGHT]] * 8,
            RIGHT,
            ["faces in 2 places", "no face inside the box in 8 of 16 frames searched"],
        ),
        (
            [[LEFT]] * 10 + [[RIGHT]] * 6,
            LEFT,
            ["faces in 2 places", "no face inside the box in 6 of 16 frames searched"],
        ),
        (
            [[LEFT]] * 8 + [[RIGHT]] * 8 + [[LEFT]] * 8,
            LEFT,
            ["faces in 2 places", "no face inside the box in 8 of 24 frames searched"],
        ),
        ([[LEFT], [RIGHT]], RIGHT, ["faces in 2 places", "no face inside the box in 1 of 2 frames searched"]),
        ([[LEFT, RIGHT_SMALL]] * 8 + [[RIGHT, LEFT_SMALL]] * 8, Box(76, 42, 29), ["faces in 2 places"]),
        ([[LEFT, POSTER]] * 12 + [[POSTER]] * 2 + [[POSTER, Box(12, 32, 22)]] * 2, LEFT, ["faces in 2 places"]),
        ([[LEFT]] * 6 + [[]] * 10, LEFT, ["no face inside the box in 10 of 16 frames searched"]),
        ([[]] * 3 + [[LEFT]] * 13, LEFT, []),
        ([[LEFT]] * 9 + [[FALSE, LEFT]] + [[FALSE]] + [[LEFT]] * 9, LEFT, []),
        ([[LEFT]], LEFT, []),
        ([[face] for face in SWAY], Box(int(np.median([face.x for face in SWAY])), 30, 30), None),
    ],
    ids=[
        "cut",
        "uneven cut",
        "there and back",
        "two frames",
        "swapped sizes",
        "poster",
        "left",
        "late",
        "false",
        "one frame",
        "sway",
    ],
)
def test_one_face_is_followed(found, face, told):
    """The median of each coordinate over all faces would lie between two of them."""
    box, lines = search(found)
    if told is not None:
        assert lines == told
    assert box == square_box(face, (100, 120))


def test_cutting_the_clip_helps_where_the_face_was_missing():
    assert search([[LEFT]] * 8 + [[RIGHT]] * 8)[1]
    assert search([[RIGHT]] * 8) == (square_box(RIGHT, (100, 120)), [])


@pytest.mark.parametrize("length", [1, 31, 32, 33, 1000, 5000])
def test_long_clips_are_searched_evenly(length):
    """The median over the frames searched is near the clip's, and few frames are searched. The face moves a pixel a
    frame."""
    current, searched = [0], []

    def frames():
        for n in range(length):
            current[0] = n
            yield np.broadcast_to(np.uint8(0), (20_000, 30_000, 3))

    def find_faces(frame):
        searched.append(current[0])
        return [Box(10_000 + current[0], 5_000, 10_000)]

    box = find_clip_box(frames(), "clip.mp4", find_faces)
    assert len(searched) <= 32 + 16 * max(0, np.ceil(np.log2(length / 32)))
    assert abs(box.x - (10_000 - MARGIN * 10_000) - (length - 1) / 2) <= max(1, length / 16)
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

    find_clip_box(frames(), "clip.mp4", lambda frame: [Box(1, 1, 9)])
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
        find_clip_box(sizes, "frames", lambda frame: [Box(1, 1, 9)])


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


def test_finder_tells_each_face_once(monkeypatch):
    """The bundled frontal face looks like two profiles, at places a third of a face apart."""
    finder = FaceFinder()
    image = read_image(Path(mrfomm.__file__).parent / "assets/samples/reference_front.png")
    both = finder._profiles(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    assert len(both) == 2
    monkeypatch.setattr("mrfomm.media.crop._detect", lambda cascade, grey: [])  # no frontal one
    monkeypatch.setattr(finder, "_profiles", lambda grey: both)
    assert finder.faces(image) == [max(both, key=lambda face: face.size)]


def test_a_picture_of_two_faces_says_which_is_taken_and_a_hand_made_crop_takes_the_other():
    pair, told = np.concatenate([drawn_face(size=80), drawn_face(size=110)], axis=1), []
    assert find_image_box(pair, "pair.png", told.append).x > 320
    assert told[1:] == ["pair.png: faces in 2 places; the one seen most and largest is taken; crop by hand for another"]
    assert find_image_box(pair[:, :320], "left.png", told.append) == square_box(
        FaceFinder()(drawn_face(size=80)), (240, 320)
    )
    assert len(told) == 3


def test_a_clip_cut_between_two_drawn_speakers():
    """All coordinates' medians together show neither; the box holds the face of the larger one."""
    speakers = [drawn_face(240, 640, x, 120, size) for x, size in ((130, 100), (480, 110))]
    told = []
    box = find_clip_box(np.repeat(speakers, 4, axis=0), "interview.mp4", tell=told.append)
    assert box.holds(FaceFinder()(speakers[1]))
    assert "no face inside the box in 4 of 8 frames searched" in told[2]


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
