"""A little of what models are for, with bundled weights and pictures, for `python -m mrfomm.doctor`."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import nnabla as nn
import numpy as np

from mrfomm import bundled
from mrfomm.config import Config
from mrfomm.data.loader import Batch, Loader
from mrfomm.model import Model, load_model
from mrfomm.model.checkpoint import load_checkpoint
from mrfomm.networks import ops
from mrfomm.reenactment.animator import Animator, images_to_array
from mrfomm.reenactment.backends import open_engine
from mrfomm.runtime.context import choose_context, seed_initialisers
from mrfomm.runtime.processes import Communicator
from mrfomm.training.step import load_perceptual
from mrfomm.training.trainer import Trainer
from mrfomm.training.validation import held_out


class Trial(NamedTuple):
    """pictures float32 [N,3,S,S] in [0,1]; seconds of a frame and a step; of a step the losses and the norm of the
    generator side's gradients, or none."""

    pictures: np.ndarray
    seconds: dict[str, float]
    losses: dict[str, float] = {}
    gradient: float = 0.0


def attempt(name: str) -> Trial:
    """Draw, and train where that can be, by one of the names of ``doctor.REMEDIES``."""
    context = choose_context("cudnn" if name == "cudnn" else "cpu")
    with nn.context_scope(context), ops.implementation(ops.NNABLA if name == "nnabla" else ops.fastest(context)):
        model, config = load_model(bundled.MODEL), load_checkpoint(bundled.MODEL).config
        references, driving = map(images_to_array, held_out(bundled.SAMPLE_DATA / "test", config)[0])
        engine = open_engine(model, backend="onnx" if name == "onnxruntime" else "nnabla")
        animator = Animator(engine.graphs, references)
        pictures = animator.render(animator.keypoints(driving[:2]))
        if not np.isfinite(pictures).all():
            raise ArithmeticError("the picture isn't finite")
        seconds = {"frame": _seconds(lambda: animator.render(animator.keypoints(driving[:1])))}
        if name == "onnxruntime":
            return Trial(pictures, seconds)
        return _train(model, config, Batch(np.stack([references, references[::-1]]), driving[:2]), pictures, seconds)


def _train(model: Model, config: Config, batch: Batch, pictures: np.ndarray, seconds: dict[str, float]) -> Trial:
    """Two steps of stage 2, the first to compare and the second to time."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=2, discriminator=True))
    seed_initialisers(0)  # the discriminator is new
    with tempfile.TemporaryDirectory() as folder:
        loader, network = cast(Loader, None), load_perceptual(config.loss)
        trainer = Trainer(config, model.tree, loader, Path(folder), Communicator(), network)
        losses, gradient = trainer.step(batch), trainer.gradient_norm
        return Trial(pictures, {**seconds, "step": _seconds(lambda: trainer.step(batch))}, losses, gradient)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
