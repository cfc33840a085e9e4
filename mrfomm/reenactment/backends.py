"""Which library runs a model: nnabla, or onnxruntime on the exported graphs."""

from functools import partial

import nnabla as nn

from mrfomm.errors import UserError
from mrfomm.onnx.graphs import cached_graphs
from mrfomm.reenactment.animator import Animator
from mrfomm.reenactment.onnx_backend import OnnxAnimator, OnnxGraphs, is_installed

BACKENDS = ("auto", "nnabla", "onnx")


def backend_name(backend):
    """What a back end is in the current context: "onnx", or nnabla and its device. Pictures of two differ by rounding.

    Raises:
        UserError: as ``animator_maker``.
    """
    devices = [name.split(":")[0] for name in nn.get_current_context().backend]
    on_cpu = set(devices) == {"cpu"}
    if backend == "onnx" and not on_cpu:
        raise UserError("--backend onnx: runs on a CPU; give --context cpu with it, or --backend nnabla for the GPU")
    if backend == "onnx" or (backend == "auto" and on_cpu and is_installed()):
        return "onnx"
    return f"nnabla on {devices[0]}"


def animator_maker(model, backend, breakdown=False):
    """A function of (references, batch) that gives an Animator, or an OnnxAnimator with the same methods.

    Args:
        model: Model.
        backend: one of BACKENDS; ``auto`` takes onnxruntime on a CPU where it is installed, else nnabla.
        breakdown: the animators can also ``render_breakdown``.

    Raises:
        UserError: onnxruntime was asked for and isn't installed, or the context is a GPU's.
    """
    if backend_name(backend) == "onnx":
        return partial(OnnxAnimator, OnnxGraphs(cached_graphs(model, breakdown)), breakdown=breakdown)
    return partial(Animator, model.config, model.tree, breakdown=breakdown)
