"""Degenerate inputs and weights: what comes out is finite, or a message says why it isn't."""

import nnabla as nn
import numpy as np
import pytest
import tiny

from mrfomm.errors import UserError
from mrfomm.model import Model
from mrfomm.networks import ops
from mrfomm.onnx.graphs import cached_graphs
from mrfomm.reenactment.animator import Animator, array_to_images, images_to_array
from mrfomm.reenactment.motion import KeypointArrays, find_start, movement_scale, relative_motion
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs

BACKENDS = ("nnabla", "cpu operators", "onnx")
BLACK = np.zeros((2, 32, 32, 3), np.uint8)
CONSTANT = np.full((2, 32, 32, 3), 200, np.uint8)
MOVING = tiny.frames(2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def animator(backend, references, fusion="patch", tree=None):
    config = tiny.config(model={"fusion": {"mode": fusion}}).model
    model = Model(config, tree or tiny.random_tree(config))
    if backend == "onnx":
        return Animator(OnnxGraphs(cached_graphs(model)), images_to_array(references), 2)
    operators = ops.NNABLA if backend == "nnabla" else ops.fastest(nn.get_current_context())
    with ops.implementation(operators):
        return Animator(NnablaGraphs(*model), images_to_array(references), 2)


def still(count, value=0.0, jacobian=1.0):
    """KeypointArrays of three coincident keypoints, the jacobians a multiple of the identity."""
    matrices = np.broadcast_to(np.float32(jacobian) * np.eye(2, dtype=np.float32), (count, 3, 2, 2))
    return KeypointArrays(np.full((count, 3, 2), value, np.float32), matrices.copy())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("references", [BLACK, CONSTANT, MOVING])
@pytest.mark.parametrize("driving", [BLACK, CONSTANT, MOVING])
def test_pictures_without_content(backend, references, driving):
    one = animator(backend, references)
    images = array_to_images(one.render(one.keypoints(images_to_array(driving))))
    assert images.shape == driving.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fusion", ["patch", "element", "mean", "occlusion"])
def test_thirty_two_references(backend, fusion):
    one = animator(backend, tiny.frames(32), fusion)
    assert array_to_images(one.render(one.keypoints(images_to_array(MOVING)))).shape == MOVING.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
def test_coincident_keypoints(backend, value):
    assert np.isfinite(animator(backend, MOVING).render(still(2, value))).all()


def test_coincident_keypoints_in_relative_motion():
    pose = still(1)
    start = find_start(pose, still(3))
    assert (start.frame, start.anchor) == (0, 0)
    assert movement_scale(pose, pose) == 1
    assert all(np.isfinite(part).all() for part in relative_motion(pose, still(3, 0.5), pose))


def assert_finite_or_told(backend, prediction):
    """nnabla's own warp takes a coordinate that is nan for one outside of the image; the others hand it on."""
    if backend == "nnabla":
        assert np.isfinite(prediction).all()
    else:
        with pytest.raises(UserError, match="not finite"):
            array_to_images(prediction)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("jacobian", [0.0, 1e-30, np.nan])
def test_singular_jacobians(backend, jacobian):
    assert_finite_or_told(backend, animator(backend, MOVING).render(still(2, jacobian=jacobian)))


def test_singular_jacobian_where_relative_motion_starts():
    with pytest.raises(UserError, match="singular jacobian"):
        relative_motion(still(1), still(2), still(1, jacobian=0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_huge_weights(backend):
    config = tiny.config().model
    tree = tiny.random_tree(config)
    for variable in tree.all().values():
        variable.d = np.where(np.abs(variable.d) > 0.1, np.sign(variable.d) * 1e30, variable.d)
    one = animator(backend, MOVING, tree=tree)
    assert_finite_or_told(backend, one.render(one.keypoints(images_to_array(MOVING))))
