"""The graphs of one step: the generator side's with its losses, and in stage 2 the discriminator's.

As in FOMM the generator side (generator, fusion, motion, keypoint detector) is updated first; the discriminator then
learns from the same prediction, detached, so that the generator runs once.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np

from mrfomm import bundled
from mrfomm.config import Config, LossConfig, needs_perceptual
from mrfomm.data.loader import Batch
from mrfomm.errors import UserError
from mrfomm.model import encode_references, judge, kept, keypoints_of, repeat_each, synthesise
from mrfomm.model.checkpoint import check_arrays, read_h5
from mrfomm.networks.geometry import downsample, inverse_2x2, matmul_2x2
from mrfomm.networks.keypoints import Keypoints
from mrfomm.networks.ops import warp
from mrfomm.networks.perceptual import load_frozen, vgg19_shapes
from mrfomm.networks.sums import sum_of_squares
from mrfomm.reenactment.pictures import tile, training_row
from mrfomm.training import losses
from mrfomm.training.equivariance import Deformation, deform_grid, equivariance_losses, mirrored

GENERATOR_SIDE = ("generator/", "fusion/", "motion/", "keypoints/")
DISCRIMINATOR_SIDE = ("discriminator/",)
PICTURED = 4  # samples of a batch that are shown

Losses = Iterator[tuple[str, nn.Variable]]  # by name, weighted
Frozen = Mapping[str, nn.Variable]  # parameters of the perceptual network


class GeneratorStep:
    """The generator side's graph for batches of a fixed size, in the current parameter scope.

    references [B,K,3,S,S], driving [B,3,S,S] in [0,1] -> keypoints -> motion, warp, fusion, decoder -> losses.
    ``perceptual``: None where no perceptual network is asked for.
    """

    def __init__(self, config: Config, batch: int, perceptual: Frozen | None) -> None:
        size, count = config.model.image_size, config.data.num_references
        self.references = nn.Variable((batch, count, 3, size, size))
        self.driving = nn.Variable((batch, 3, size, size))
        self.theta = nn.Variable((batch, 2, 3))
        self.control = nn.Variable((batch, config.loss.tps_points**2))

        self.movers = nn.Variable((batch, 2, 3, size, size)) if config.data.twins else None

        self._encoded = encode_references(self.references, config.model, training=True)
        self.driving_keypoints = keypoints_of(self.driving, config.model, training=True)
        pose = self.driving_keypoints if self.movers is None else self._moved(config)
        self.synthesis = synthesise(self._encoded, pose, config.model, training=True)
        self.losses = dict(self._all_losses(config, perceptual))
        self.total = sum(self.losses.values())

        for variable in self.losses.values():
            variable.persistent = True
        self.prediction = kept(self.synthesis.prediction)
        self.driving_points = kept(self.driving_keypoints.value)
        others = (self.synthesis.occlusion, self.synthesis.mask, self._encoded.keypoints.value)
        self._shown = (self.prediction, self.driving_points, *map(kept, others))

    def _moved(self, config: Config) -> Keypoints:
        """The first reference's keypoints with the movers' motion, ``reenactment.motion.relative_motion``, [B,n,...].

        Of a person's own movers they are those of the driving frame, but for batch norm, as movers are a batch apart.
        """
        size = config.model.image_size
        movers = keypoints_of(F.reshape(self.movers, (-1, 3, size, size)), config.model, training=True)  # [B*2,n,...]
        (start, now), (anchor, *_) = unfolded(movers, 2), unfolded(self._encoded.keypoints, config.data.num_references)
        jacobian = matmul_2x2(matmul_2x2(now.jacobian, inverse_2x2(start.jacobian)), anchor.jacobian)
        return Keypoints(anchor.value + now.value - start.value, jacobian)

    def _all_losses(self, config: Config, perceptual: Frozen | None) -> Losses:
        yield from self._image_losses(config.loss, perceptual)
        if config.loss.equivariance_value or config.loss.equivariance_jacobian:
            yield from self._equivariance_losses(config)
        if config.loss.separation:
            apart = losses.separation_loss(self.driving_keypoints.value, config.loss.separation_distance)
            yield "separation", config.loss.separation * apart
        if config.loss.warp:
            yield "warp", config.loss.warp * self._warp_loss(config)
        if config.train.discriminator:
            yield from self._adversarial_losses(config)

    def _image_losses(self, loss: LossConfig, perceptual: Frozen | None) -> Losses:
        predictions = losses.image_pyramid(self.synthesis.prediction, loss.scales)
        targets = losses.image_pyramid(self.driving, loss.scales)
        if perceptual is not None:
            seen = losses.perceptual_loss(predictions, targets, loss.perceptual_network, perceptual)
            yield "perceptual", loss.perceptual * seen
        if loss.pixel:
            yield "pixel", loss.pixel * losses.pixel_loss(predictions, targets)

    def _equivariance_losses(self, config: Config) -> Losses:
        grid = mirrored(deform_grid(self.theta, self.control, *self.driving.shape[2:]))
        transformed = keypoints_of(warp(self.driving, grid), config.model, training=True)
        value, jacobian = equivariance_losses(self.driving_keypoints, transformed, self.theta, self.control)
        yield "equivariance_value", config.loss.equivariance_value * value
        yield "equivariance_jacobian", config.loss.equivariance_jacobian * jacobian

    def _warp_loss(self, config: Config) -> nn.Variable:
        driving = repeat_each(downsample(self.driving, config.model.motion.scale), config.data.num_references)
        return losses.warp_loss(self._encoded.image, self.synthesis.motion.deformation, driving)

    def _adversarial_losses(self, config: Config) -> Losses:
        points = self.driving_keypoints.value.get_unlinked_variable(need_grad=False)
        generated = judge(self.synthesis.prediction, points, config.model, fixed=True)
        real = judge(self.driving, points, config.model, fixed=True)
        yield "adversarial", config.loss.adversarial * losses.generator_adversarial_loss(generated.score)
        matching = losses.feature_matching_loss(generated.features, real.features)
        yield "feature_matching", config.loss.feature_matching * matching

    def run(self, batch: Batch, deformation: Deformation) -> None:
        """Compute the losses and the gradients."""
        self.references.d, self.driving.d = batch.references, batch.driving
        if self.movers is not None:
            self.movers.d = batch.movers
        self.theta.d, self.control.d = deformation
        differentiate(self.total, *self._shown)

    def picture(self) -> np.ndarray:
        """A picture of the last batch, uint8 [H,W,3]: one row per sample (see ``pictures.training_row``)."""
        prediction, driving_points, occlusion, mask, points = (variable.d for variable in self._shown)
        points = points.reshape(*self.references.shape[:2], -1, 2)  # [B,K,n,2]
        arrays = (self.references.d, self.driving.d, prediction, occlusion, mask, points, driving_points)
        return tile([training_row(*sample) for sample in itertools.islice(zip(*arrays), PICTURED)])


class DiscriminatorStep:
    """The discriminator's graph on the prediction and keypoints of a GeneratorStep, both detached."""

    def __init__(self, config: Config, generator: GeneratorStep) -> None:
        prediction = generator.prediction.get_unlinked_variable(need_grad=False)
        points = generator.driving_points.get_unlinked_variable(need_grad=False)
        real = judge(generator.driving, points, config.model)
        generated = judge(prediction, points, config.model)
        self.loss = config.loss.adversarial * losses.discriminator_loss(real.score, generated.score)
        self.loss.persistent = True

    def run(self) -> None:
        """Compute the loss and the gradients, after the generator's step."""
        differentiate(self.loss)


def unfolded(keypoints: Keypoints, count: int) -> list[Keypoints]:
    """Keypoints [B*count,...] as ``count`` Keypoints [B,...]: the first of every sample, the second ..."""
    if count == 1:  # which nnabla's split refuses
        return [keypoints]
    parts = (F.reshape(part, (-1, count, *part.shape[1:])) for part in keypoints)
    return [Keypoints(*each) for each in zip(*(F.split(part, axis=1) for part in parts))]


def differentiate(loss: nn.Variable, *shown: nn.Variable) -> None:
    """Forward, of what is shown as well, and backward."""
    nn.forward_all([loss, *shown], clear_no_need_grad=True)
    loss.backward(clear_buffer=True)


def figures_of(losses: Iterable[nn.Variable], sides: Iterable[Mapping[str, nn.Variable]]) -> nn.Variable:
    """What a step came to: the losses, then the squared gradient norm of each side's parameters.

    One small array, for which the host waits once a step, and which tells whether all is finite.
    """
    values = [loss.get_unlinked_variable(need_grad=False) for loss in losses]  # computed by the step itself
    values += [sum_of_squares(parameter.grad for parameter in side.values()) for side in sides]
    return F.concatenate(*(F.reshape(value, (1,)) for value in values), axis=0)


def load_perceptual(loss: LossConfig) -> Frozen | None:
    """The frozen perceptual network's parameters, or None: AlexNet is bundled, VGG19 the user brings."""
    if not needs_perceptual(loss):
        return None
    if loss.perceptual_network == "alexnet":
        with np.load(bundled.LPIPS_ALEXNET) as file:
            return load_frozen({name: file[name] for name in file.files if name.startswith("conv")})
    path = loss.perceptual_weights
    if not path or not Path(path).exists():
        raise UserError(
            f"loss.perceptual_weights: {path or 'no'} file of VGG19 is there; make it by `python -m mrfomm.convert "
            f"vgg19-dcbb9e9d.pth -o {path or 'weights/vgg19.h5'}` (docs/voxceleb.md), "
            "or take the bundled AlexNet: --set loss.perceptual_network=alexnet"
        )
    return load_frozen(check_arrays(read_h5(path), vgg19_shapes(), path))
