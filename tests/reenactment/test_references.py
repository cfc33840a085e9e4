"""References from a clip: the choice against brute force, blur left out, frames as they are in the clip."""

import itertools
import weakref

import cv2
import numpy as np
import pytest
import tiny

from mrfomm import bundled
from mrfomm.errors import UserError
from mrfomm.media.crop import crop, find_clip_box
from mrfomm.media.images import fit
from mrfomm.media.reading import FrameSource, open_frames
from mrfomm.reenactment.backends import open_engine
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.reenactment.references import FromClip, cover, farthest, sharp_frames, sharpness_of, upright


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return open_engine(tiny.checkpoint(tmp_path_factory.mktemp("files") / "weights"), backend="nnabla")


def clip(frames, fps=10):
    return FrameSource("clip.mp4", fps, len(frames), False, lambda: iter(frames))


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.ravel(), b.ravel()))


@pytest.mark.parametrize("seed", range(5))
def test_each_is_the_farthest_from_those_before(seed):
    points = np.random.default_rng(seed).normal(size=(30, 6))
    chosen = farthest(points, 5)
    mean = sum(points) / len(points)
    assert all(distance(points[chosen[0]], mean) <= distance(point, mean) for point in points)
    for count in range(1, 5):
        reach = [min(distance(point, points[number]) for number in chosen[:count]) for point in points]
        assert reach[chosen[count]] == pytest.approx(max(reach))


@pytest.mark.parametrize("seed", range(5))
def test_each_is_in_the_middle_of_the_poses_around_it(seed):
    poses = np.random.default_rng(seed).normal(size=(40, 3, 2))
    chosen = cover(poses, 4)
    groups = {number: [] for number in chosen}
    for pose in poses:
        groups[min(chosen, key=lambda number: distance(pose, poses[number]))].append(pose)
    for number, members in groups.items():
        mean = sum(members) / len(members)
        assert distance(poses[number], mean) == pytest.approx(min(distance(pose, mean) for pose in members))
    rim = farthest(poses.reshape(40, 6), 4)
    spent = [sum(min(distance(pose, poses[n]) for n in numbers) for pose in poses) for numbers in (chosen, rim)]
    assert spent[0] <= spent[1]


def test_turns_in_the_plane_do_not_count():
    """One shape turned by any angle is one pose; two shapes stay as far apart as their best fit leaves them."""
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(1, 8, 2)) + rng.normal(0, 0.3, (2, 8, 2))
    shapes -= shapes.mean(axis=1, keepdims=True)
    angles = rng.uniform(-1, 1, 20)
    turns = np.array([turn_by(angle) for angle in angles])
    poses = upright(np.concatenate([shapes[:1] @ turns, shapes[:1]]))
    np.testing.assert_allclose(poses, np.broadcast_to(poses[:1], poses.shape), atol=1e-9)
    pair = upright(np.stack([shapes[0] @ turn_by(0.7), shapes[1]]))
    fits = [distance(shapes[0] @ turn, shapes[1]) for turn in map(turn_by, np.linspace(-np.pi, np.pi, 4001))]
    assert distance(*pair) == pytest.approx(min(fits), rel=1e-3)


def turn_by(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_one_of_each_cluster():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
    order = rng.permutation(np.repeat(np.arange(4), [50, 3, 8, 20]))
    poses = (centres[order] + rng.normal(0, 0.3, (81, 2)))[:, None]
    assert sorted(order[cover(poses, 4)]) == [0, 1, 2, 3]


def test_a_clip_of_one_pose_gives_different_frames():
    assert len(set(cover(np.zeros((7, 3, 2)), 7))) == 7


def test_blurred_frames_are_known():
    sharp = tiny.frames(6)
    blurred = [cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in tiny.frames(4, seed=1)]
    mixed = [sharp[0], blurred[0], sharp[1], *blurred[1:3], *sharp[2:], blurred[3]]
    assert sharp_frames(np.array([sharpness_of(frame) for frame in mixed])).tolist() == [0, 2, 5, 6, 7, 8]


def test_sharpness_is_the_variance_of_the_laplacian_by_hand():
    """A grey dot of 90 in the middle of black: 1 pixel of -360, 4 of 90 and 59 of 0, in a middle half of 8x8."""
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[7, 8] = 90
    assert sharpness_of(frame) == pytest.approx((360**2 + 4 * 90**2) / 64)


def test_chosen_frames_are_those_that_are_told(engine):
    frames, told = tiny.frames(12, size=48), []
    frames[3] = cv2.GaussianBlur(frames[3], (0, 0), 3)
    one = Reenactor(engine, FromClip(clip(frames), 3), tell=told.append)
    numbers = [int(part.split(" (")[0]) for part in told[0].split("frames ")[1].split("; ")[0].split(", ")]
    assert told[0].startswith("clip.mp4: references are frames")
    assert f"{numbers[1]} ({numbers[1] / 10:.2f} s)" in told[0]
    assert told[0].endswith("; 1 blurred ones were left out")
    assert 3 not in numbers
    np.testing.assert_array_equal([picture.image for picture in one.pictures], frames[numbers])
    assert [picture.box for picture in one.pictures] == [None] * 3
    again = Reenactor(engine, FromClip(clip(frames), 3), batch=5)
    np.testing.assert_array_equal(again.references, one.references)
    given = Reenactor(engine, list(frames[numbers]))
    np.testing.assert_array_equal(given.references, one.references)


def test_a_clip_is_taken_frame_by_frame(engine):
    alive, most = [], 0

    def frames():
        nonlocal most
        for frame in itertools.islice(itertools.cycle(tiny.frames(40)), 200):
            copy = frame.copy()
            alive[:] = [*filter(lambda reference: reference() is not None, alive), weakref.ref(copy)]
            most = max(most, len(alive))
            yield copy

    source = FrameSource("clip.mp4", 25, None, False, frames)
    assert len(Reenactor(engine, FromClip(source, 2)).references) == 2
    assert most < 20


def test_one_square_for_all_and_every_pass_is_watched(engine):
    """As in a driving clip; what takes long says how far it is."""
    told, said = [], []

    def watch(items, total, what):
        said.append((what, total))
        return items

    wanted = FromClip(bundled.SAMPLE_DRIVING, 2)
    one = Reenactor(engine, wanted, crop=True, batch=8, tell=told.append, watch=watch)
    box = find_clip_box(open_frames(bundled.SAMPLE_DRIVING), "clip")
    assert [picture.box for picture in one.pictures] == [box, box]
    np.testing.assert_array_equal(one.references[0], fit(crop(one.pictures[0].image, box), one.size))
    last = max(int(part.split(" (")[0]) for part in told[-1].split("frames ")[1].split("; ")[0].split(", "))
    assert said == [("looking for the face", 75), ("looking for references", 75), ("fetching references", last + 1)]
    said.clear()
    one.fitted(bundled.SAMPLE_DRIVING)
    assert said == [("looking for the face", 75)]


def test_more_than_there_are(engine):
    frames = tiny.frames(5)
    frames[2] = 100
    with pytest.raises(UserError, match=r"--count 5: clip\.mp4 has 5 frames, of which 4 are sharp"):
        Reenactor(engine, FromClip(clip(frames), 5))
    assert len(Reenactor(engine, FromClip(clip(frames), 4)).references) == 4
    with pytest.raises(ValueError, match="at least one reference"):
        Reenactor(engine, FromClip(clip(frames), 0))
    with pytest.raises(UserError, match=r"none\.mp4"):
        Reenactor(engine, FromClip("none.mp4", 2))
