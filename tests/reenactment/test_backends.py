"""`--backend`: both libraries give the same pictures, and `auto` chooses by what is there."""

import nnabla as nn
import numpy as np
import pytest
import tiny

from mrfomm.errors import UserError
from mrfomm.model import load_model
from mrfomm.reenactment import backends
from mrfomm.reenactment.animator import Animator, images_to_array
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load_model(tiny.checkpoint(tmp_path / "weights"))


def test_same_pictures(model):
    frames = images_to_array(tiny.frames(6))
    results = []
    for backend in ("nnabla", "onnx"):
        animator = Animator(backends.open_engine(model, backend=backend).graphs, frames[:3], 2)
        results.append(animator.render(animator.keypoints(frames[3:])))
    np.testing.assert_allclose(*results, atol=1e-4)


def test_onnx_on_a_gpu_is_refused_not_run_elsewhere(model):
    gpu = nn.Context(["cudnn:float"], "CudaCachedArray", "0")
    with nn.context_scope(gpu), pytest.raises(UserError, match="--backend onnx: runs on a CPU"):
        backends.open_engine(model, backend="onnx")


def test_auto(model, monkeypatch):
    assert isinstance(backends.open_engine(model).graphs, OnnxGraphs)
    monkeypatch.setattr(backends, "is_installed", lambda: False)
    assert isinstance(backends.open_engine(model).graphs, NnablaGraphs)
    monkeypatch.setattr(backends, "is_installed", lambda: True)
    with nn.context_scope(nn.Context(["cudnn:float"], "CudaCachedArray", "0")):
        assert isinstance(backends.open_engine(model).graphs, NnablaGraphs)
