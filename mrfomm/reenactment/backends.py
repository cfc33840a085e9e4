"""Which library runs a model: nnabla, or onnxruntime on the exported graphs. It is imported only when it is chosen."""

import os
from typing import TYPE_CHECKING, NamedTuple

from mrfomm.errors import AnyPath, UserError
from mrfomm.reenactment.animator import Graphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs, is_installed

if TYPE_CHECKING:
    from mrfomm.model import Model

BACKENDS = ("auto", "nnabla", "onnx")


class Engine(NamedTuple):
    """A model and what runs it. size: of its pictures, pixels; breakdown: whether it draws references' shares too."""

    size: int
    graphs: Graphs
    breakdown: bool


def open_engine(
    weights: "AnyPath | Model", fusion: str | None = None, backend: str = "auto", breakdown: bool = False
) -> Engine:
    """Make a model ready in the current nnabla context; arguments are those of ``reenactor.Reenactor``.

    ``auto`` takes onnxruntime on a CPU where it is installed, else nnabla. A Model has settled its fusion mode.

    Raises:
        UserError: no such checkpoint or parameters; onnxruntime isn't installed, or the context is a GPU's.
    """
    from mrfomm.model import load_model

    model = load_model(weights, fusion) if isinstance(weights, (str, os.PathLike)) else weights
    size = model.config.image_size
    if backend_name(backend) == "onnx":
        from mrfomm.onnx.graphs import cached_graphs

        return Engine(size, OnnxGraphs(cached_graphs(model, breakdown)), breakdown)
    from mrfomm.reenactment.nnabla_backend import NnablaGraphs

    return Engine(size, NnablaGraphs(*model), breakdown)


def backend_name(backend: str) -> str:
    """What a back end is in the current context: "onnx", or nnabla and its device. Pictures of two differ by rounding.

    Raises:
        UserError: "onnx", and the context is a GPU's.
    """
    import nnabla as nn

    devices = [name.split(":")[0] for name in nn.get_current_context().backend]
    on_cpu = set(devices) == {"cpu"}
    if backend == "onnx" and not on_cpu:
        raise UserError("--backend onnx: runs on a CPU; give --context cpu with it, or --backend nnabla for the GPU")
    return (
        "onnx"
        if on_cpu and (backend == "onnx" or (backend == "auto" and is_installed()))
        else f"nnabla on {devices[0]}"
    )
