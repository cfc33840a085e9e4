"""Which library runs a model: nnabla, or onnxruntime on exported graphs. Each is imported only when it is chosen."""

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mrfomm import bundled
from mrfomm.config.knowledge import Knowledge, knowledge_of
from mrfomm.errors import AnyPath, UserError
from mrfomm.onnx.exported import Exported, is_exported, load_exported
from mrfomm.reenactment.animator import Graphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs, is_installed

if TYPE_CHECKING:
    from mrfomm.model import Model

BACKENDS = ("auto", "nnabla", "onnx")
PUBLISHED = "python -m mrfomm.convert --download vox"


@dataclass(frozen=True)
class Weights:
    """What a path of weights holds. fusion_modes: those that can be asked for, the one in use first."""

    model: "Model | Exported"
    fusion_modes: tuple[str, ...]
    knowledge: Knowledge

    @property
    def digest(self) -> str:
        """What the pictures depend on: configuration and parameters."""
        if isinstance(self.model, Exported):
            return self.model.digest
        from mrfomm.model import model_digest

        return model_digest(self.model)

    def context(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Context manager: ``runtime.context.use_context`` where nnabla is at work. An exported model is the CPU's: a
        UserError if a GPU is asked for."""
        if not isinstance(self.model, Exported):
            from mrfomm.runtime.context import use_context

            return use_context(name)
        if name == "cudnn":
            raise UserError("--context cudnn: an exported model runs on a CPU; give a checkpoint, or --context cpu")
        return contextlib.nullcontext()

    def expectation(self, files: Iterable[AnyPath]) -> str | None:
        """A line on what to expect of the user's own files; None where there is nothing to say, or none is theirs."""
        assets = os.path.join(os.path.realpath(bundled.ASSETS), "")
        if not self.knowledge.expect or all(os.path.realpath(file).startswith(assets) for file in files):
            return None
        trained_on, expect = self.knowledge
        return f"the model was trained on {trained_on}; {expect}; published weights for photographs: {PUBLISHED}"


class Engine(NamedTuple):
    """A model and what runs it. size: of its pictures, pixels; breakdown: whether it draws references' shares too;
    digest: gives ``Weights.digest``."""

    size: int
    graphs: Graphs
    breakdown: bool
    digest: Callable[[], str] = lambda: ""


def load_weights(path: AnyPath, fusion: str | None = None) -> Weights:
    """Read a checkpoint, a run folder's best one, or an exported model; ``fusion``: another mode than its own.

    Raises:
        UserError: there is none, it is damaged, or can't fuse in that way.
    """
    if is_exported(path):
        exported = load_exported(path, fusion)
        return Weights(exported, (exported.fusion,), exported.knowledge)
    from mrfomm.model import load_model
    from mrfomm.model.checkpoint import find_checkpoint, read_manifest
    from mrfomm.networks.fusion import modes_of

    model = load_model(path, fusion)
    modes = modes_of(model.config.fusion.mode)
    return Weights(model, modes, knowledge_of(read_manifest(find_checkpoint(path))["state"]))


def open_engine(
    weights: "AnyPath | Model | Weights", fusion: str | None = None, backend: str = "auto", breakdown: bool = False
) -> Engine:
    """Make a model ready in the current nnabla context; arguments are those of ``reenactor.Reenactor``.

    ``auto`` takes onnxruntime on a CPU where it is installed, else nnabla. Exported models are onnxruntime's. A Model,
    like Weights, has settled its fusion mode.

    Raises:
        UserError: no such checkpoint or parameters; onnxruntime isn't installed, or the context is a GPU's; nnabla is
            asked for, or shares that weren't exported, and the model is an exported one.
    """
    if isinstance(weights, (str, os.PathLike)):
        weights = load_weights(weights, fusion)
    model = weights.model if isinstance(weights, Weights) else weights
    if isinstance(model, Exported):
        return _exported_engine(model, backend, breakdown)
    from mrfomm.model import model_digest

    size, digest = model.config.image_size, partial(model_digest, model)
    if backend_name(backend) == "onnx":
        from mrfomm.onnx.graphs import cached_graphs

        return Engine(size, OnnxGraphs(cached_graphs(model, breakdown)), breakdown, digest)
    from mrfomm.reenactment.nnabla_backend import NnablaGraphs

    return Engine(size, NnablaGraphs(*model), breakdown, digest)


def _exported_engine(model: Exported, backend: str, breakdown: bool) -> Engine:
    if backend == "nnabla":
        raise UserError(f"--backend nnabla: {model.folder} is an exported model; leave it out, or give the checkpoint")
    for name in ("reference", "keypoints", "breakdown" if breakdown else "frame"):
        model.check(name)
    return Engine(model.size, OnnxGraphs(model.folder), breakdown, lambda: model.digest)


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
