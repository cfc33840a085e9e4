"""mrfomm.Reenactor, the library's front door: what it takes, what it gives, and what importing it loads."""

import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

import mrfomm
from mrfomm.errors import UserError
from mrfomm.media.reading import open_frames
from mrfomm.reenactment.backends import open_engine
from mrfomm.reenactment.motion import Transfer, relative_motion
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.reenactment.references import FromClip

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights, references r0.png... and a driving folder."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    (folder / "driving").mkdir()
    for i, image in enumerate(tiny.frames(3)):
        imageio.imwrite(folder / f"r{i}.png", image)
    for i, image in enumerate(tiny.frames(5, seed=3)):
        imageio.imwrite(folder / "driving" / f"{i}.png", image)
    return folder


@pytest.fixture(scope="module")
def reenactor(files):
    return Reenactor(files / "weights", [files / f"r{i}.png" for i in range(3)], backend="nnabla", breakdown=True)


def test_importing_the_package_imports_nothing_heavy():
    code = """
import sys, mrfomm
assert not {"nnabla", "numpy", "cv2"} & set(sys.modules)
from mrfomm import Reenactor
import mrfomm.reenactment.onnx_backend, mrfomm.reenactment.motion, mrfomm.reenactment.backends, mrfomm.reenactment.live
assert not {"nnabla", "onnxruntime", "mrfomm.model"} & set(sys.modules)
from mrfomm import load_model
assert "nnabla" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert mrfomm.Reenactor is Reenactor
    with pytest.raises(AttributeError, match="no attribute 'Animator'"):
        mrfomm.Animator  # noqa: B018


def test_paths_sources_and_arrays_are_the_same(files, reenactor):
    frames = tiny.frames(5, seed=3)
    expected = list(reenactor.animate(files / "driving"))
    assert [frame.shape for frame in expected] == [(32, 32, 3)] * 5
    for driving in (str(files / "driving"), open_frames(files / "driving"), frames, iter(frames)):
        np.testing.assert_array_equal(list(reenactor.animate(driving)), expected)
    other = Reenactor(files / "weights", tiny.frames(3), backend="nnabla", batch=3)
    np.testing.assert_array_equal(list(other.animate(frames)), expected)


def test_relative_motion_in_steps(reenactor):
    frames = tiny.frames(5, seed=3)
    poses = reenactor.keypoints(frames)
    targets = relative_motion(reenactor.reference_keypoints.frame(1), poses, poses.frame(2))
    animated = list(reenactor.animate(frames, Transfer(start=2, anchor=1)))
    np.testing.assert_array_equal(animated, list(reenactor.render(targets)))


def test_shares_come_with_each_frame(reenactor):
    poses = reenactor.keypoints(tiny.frames(4, seed=3))
    images, shares = zip(*reenactor.render_breakdown(poses))
    np.testing.assert_array_equal(images, list(reenactor.render(poses)))
    assert {share.warped.shape for share in shares} == {(3, 3, 32, 32)}
    for share in shares:
        np.testing.assert_allclose(share.mask.sum(axis=0), 1, atol=1e-5)


def test_one_engine_serves_several_reenactors(files):
    engine = open_engine(files / "weights", backend="nnabla")
    groups = [tiny.frames(1), tiny.frames(3), tiny.frames(3, seed=5)]
    driving = tiny.frames(3, seed=3)
    together = [Reenactor(engine, list(group)) for group in groups]
    for _ in range(2):  # by turns: the graphs are shared
        for group, one in zip(groups, together):
            alone = Reenactor(files / "weights", list(group), backend="nnabla")
            np.testing.assert_array_equal(list(one.animate(driving)), list(alone.animate(driving)))


def test_what_was_decided_is_told(files):
    told = []
    Reenactor(files / "weights", tiny.frames(1), backend="nnabla", tell=told.append).animate(tiny.frames(2))
    assert [line.partition(" at ")[0] for line in told] == ["motion starts"]


def test_what_loses_its_edges_is_told_once(files, tmp_path):
    told = []
    wide = [np.pad(image, ((0, 0), (8, 4), (0, 0))) for image in tiny.frames(5)]
    height, width, _ = wide[0].shape
    for i, image in enumerate(wide):
        imageio.imwrite(tmp_path / f"{i}.png", image)
    references = [tmp_path / "0.png", tiny.frames(1)[0], wide[1]]
    made = Reenactor(files / "weights", references, backend="nnabla", tell=told.append)
    for _ in range(2):
        list(made.animate(tmp_path))
        follow = made.follow()
        assert [follow(image).shape for image in wide] == [made.references[0].shape] * 5
    Reenactor(files / "weights", FromClip(tmp_path, 2), backend="nnabla", tell=told.append)
    names = tmp_path / "0.png", "reference 3", tmp_path, "driving", tmp_path
    taken = f"{width}x{height} pixels, of which the middle square is taken"
    remedy = "give --crop to find the face, or crop it to the face by hand"
    assert [line for line in told if "square" in line] == [f"{name}: {taken}; {remedy}" for name in names]


def test_bad_input_is_named(files, reenactor):
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        Reenactor(files / "weights", ["none.png"])
    with pytest.raises(UserError, match="reference 1: no face found"):
        Reenactor(files / "weights", tiny.frames(1), backend="nnabla", crop=True)
    with pytest.raises(UserError, match="5 frames, 0 to 4"):
        reenactor.animate(files / "driving", Transfer(start=5))
    with pytest.raises(ValueError, match="at least one reference"):
        Reenactor(files / "weights", [], backend="nnabla")
    with pytest.raises(ValueError, match="no driving frame"):
        reenactor.keypoints([])
    with pytest.raises(ValueError, match="motion 'relativ'"):
        Transfer("relativ")
