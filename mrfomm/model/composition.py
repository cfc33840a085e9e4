"""The only composition of the networks: encode the references once, synthesise a driving frame from them.

Axis letters: B driving frames, K references, n keypoints, C channels.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import nnabla.functions as F
from nnabla import Variable

from mrfomm.config import ModelConfig
from mrfomm.errors import AnyPath, UserError
from mrfomm.model.checkpoint import ParameterTree, load_checkpoint
from mrfomm.networks import ops
from mrfomm.networks.copying import fold_pixels, unfold_pixels, warp_picture
from mrfomm.networks.discriminator import Judgement, discriminate
from mrfomm.networks.fusion import FusionError, fuse, mode_of
from mrfomm.networks.generator import decode, encode, warp_features
from mrfomm.networks.geometry import downsample, resize
from mrfomm.networks.keypoints import Keypoints, detect_keypoints
from mrfomm.networks.motion import Motion, estimate_motion


class Model(NamedTuple):
    """A configuration and its weights."""

    config: ModelConfig
    tree: ParameterTree


class References(NamedTuple):
    """What is computed once for K references; every leading axis is B*K (or K, to be repeated over the frames).

    image [B*K,3,h,w]: at the motion network's size. keypoints: value [B*K,n,2], jacobian [B*K,n,2,2].
    features [B*K,C,h',w']: the encoder's output; with ``generator.copy``, behind it the pictures' folded pixels.
    """

    image: Variable
    keypoints: Keypoints
    features: Variable


class Synthesis(NamedTuple):
    """What one forward pass computes.

    prediction [B,3,H,W] in [0,1]; motion: of the B*K pairs; occlusion [B,K,1,h,w] and warped [B,K,C,h,w] at the
    features' size; fused [B,C,h,w]; mask [B,K,1,h,w] or [B,K,C,h,w], summing to 1 over K. copies [B,K,4,H,W]: the
    warped pictures and their occlusion maps, None without ``generator.copy``.
    """

    prediction: Variable
    motion: Motion
    occlusion: Variable
    warped: Variable
    fused: Variable
    mask: Variable
    copies: Variable | None


def keypoints_of(image: Variable, config: ModelConfig, training: bool = False) -> Keypoints:
    """Keypoints of images [N,3,H,W] in [0,1]."""
    return detect_keypoints(image, config.num_keypoints, training=training, **vars(config.keypoints))


def encode_references(references: Variable, config: ModelConfig, training: bool = False) -> References:
    """References [B,K,3,H,W] in [0,1] -> References: one keypoint call and one encoder call for all of them."""
    batch, count = references.shape[:2]
    folded = F.reshape(references, (batch * count, *references.shape[2:]))  # [B*K,3,H,W]
    image, keypoints = downsample(folded, config.motion.scale), keypoints_of(folded, config, training)
    net = config.generator
    features = encode(folded, net.expansion, net.max_features, net.down_blocks, training)
    if net.copy:
        features = F.concatenate(features, fold_pixels(folded, 2**net.down_blocks), axis=1)
    return References(image, keypoints, features)


def synthesise(references: References, driving: Keypoints, config: ModelConfig, training: bool = False) -> Synthesis:
    """Synthesise the driving pose from the references.

    Args:
        references: of leading axis B*K; if it is K and B > 1, see ``repeat_references``.
        driving: Keypoints of the B driving frames.
        training: batch norm uses and updates batch statistics.

    Raises:
        UserError: the fusion mode isn't known here, or doesn't do what it must.
    """
    batch = driving.value.shape[0]
    count = references.features.shape[0] // batch  # K
    options = {name: value for name, value in vars(config.motion).items() if name != "scale"}
    repeated = Keypoints(*(repeat_each(value, count) for value in driving))
    motion = estimate_motion(references.image, references.keypoints, repeated, training=training, **options)
    features, copies = references.features, None
    if config.generator.copy:
        features, pixels = _features_and_pixels(features, config)
        copies = _by_frame(warp_picture(pixels, motion), count)  # [B,K,4,H,W]
    warped, occlusion = (_by_frame(each, count) for each in warp_features(features, motion))
    with _as_user_error():
        fused, mask = fuse(warped, occlusion, config.fusion.mode, config.fusion.kernel)
    prediction = paint(fused, mask, copies, config, training)
    return Synthesis(prediction, motion, occlusion, warped, fused, mask, copies)


def _by_frame(x: Variable, count: int) -> Variable:
    """[B*K,...] -> [B,K,...]."""
    return F.reshape(x, (x.shape[0] // count, count, *x.shape[1:]))


def _features_and_pixels(features: Variable, config: ModelConfig) -> tuple[Variable, Variable]:
    """References.features of a model that copies, as the encoder's output and the pictures [B*K,3,H,W]."""
    side = 2**config.generator.down_blocks
    depth = features.shape[1] - 3 * side**2
    return features[:, :depth], unfold_pixels(features[:, depth:], side)


def paint(
    fused: Variable, mask: Variable, copies: Variable | None, config: ModelConfig, training: bool = False
) -> Variable:
    """The picture [B,3,H,W] in [0,1] of features that were fused by a mask; ``copies``: see Synthesis."""
    net = config.generator
    if copies is not None:
        copies = F.concatenate(copies, whole_mask(mask, config), axis=2)
    return decode(fused, net.expansion, net.max_features, net.down_blocks, net.bottleneck_blocks, training, copies)


def whole_mask(mask: Variable, config: ModelConfig) -> Variable:
    """A fusion mask [B,K,1 or C,h,w], averaged over the channels, at the picture's size: [B,K,1,H,W]."""
    batch, count, _, height, width = mask.shape
    size = config.image_size
    shown = resize(F.reshape(F.mean(mask, axis=2), (batch, count, height, width)), size, size)
    return F.reshape(shown, (batch, count, 1, size, size))


@contextlib.contextmanager
def _as_user_error() -> Iterator[None]:
    try:
        yield
    except FusionError as error:
        raise UserError(f"fusion mode {error}") from error


def repeat_references(references: References, batch: int) -> References:
    """The same K references for every one of ``batch`` driving frames: leading axis K -> batch*K."""
    keypoints = Keypoints(*(repeat_all(value, batch) for value in references.keypoints))
    return References(repeat_all(references.image, batch), keypoints, repeat_all(references.features, batch))


def kept(variable: Variable) -> Variable:
    """A copy of a Variable whose value can be read, or used by another graph, after nnabla has cleared its buffers.

    ``persistent`` alone is not enough: a reshaped Variable shares its memory with its input, which is cleared.
    """
    copy = F.reshape(variable, variable.shape, inplace=False)
    copy.persistent = True
    return copy


def repeat_each(x: Variable, times: int) -> Variable:
    """[B,...] -> [B*times,...], every entry ``times`` times in a row."""
    return _repeated(x, times, axis=1)


def repeat_all(x: Variable, times: int) -> Variable:
    """[K,...] -> [times*K,...], the whole sequence ``times`` times in a row."""
    return _repeated(x, times, axis=0)


def _repeated(x: Variable, times: int, axis: int) -> Variable:
    """Repeat x along a new axis, 0 or 1, and fold the first two axes into one."""
    if times == 1:
        return x
    before, after = x.shape[:axis], x.shape[axis:]
    repeated = F.broadcast(F.reshape(x, (*before, 1, *after)), (*before, times, *after))
    return F.reshape(repeated, (times * x.shape[0], *x.shape[1:]))


def judge(image: Variable, points: Variable, config: ModelConfig, fixed: bool = False) -> Judgement:
    """The discriminator's Judgement of images [B,3,H,W] in [0,1], and of driving keypoints [B,n,2] if it reads them.

    ``fixed``: no gradient flows to the discriminator's parameters.
    """
    options = dict(vars(config.discriminator))
    shown = points if options.pop("keypoint_input") else None
    return discriminate(image, points=shown, variance=config.motion.variance, fixed=fixed, **options)


def create_parameters(config: ModelConfig, discriminator: bool = False) -> None:
    """Create the parameters in the current scope without computing anything; inference needs no discriminator's."""
    size = config.image_size
    image = Variable((1, 3, size, size))
    synthesise(encode_references(Variable((1, 1, 3, size, size)), config), keypoints_of(image, config), config)
    if discriminator:
        judge(image, Variable((1, config.num_keypoints, 2)), config)


def contributions(synthesis: Synthesis, config: ModelConfig) -> tuple[Variable, Variable]:
    """Graph of a Breakdown: decoded warp of each reference [B,K,3,H,W] and its mask [B,K,1,H,W] at image size."""
    batch, count, channels, height, width = synthesis.warped.shape
    mask, copies = whole_mask(synthesis.mask, config), synthesis.copies
    if copies is not None:
        copies = F.reshape(copies, (batch * count, 1, *copies.shape[2:]))
    certain = F.reshape(synthesis.occlusion, (batch * count, 1, 1, height, width)) * 0 + 1  # the mask of K = 1
    alone = paint(F.reshape(synthesis.warped, (batch * count, channels, height, width)), certain, copies, config)
    return F.reshape(alone, (batch, count, *alone.shape[1:])), mask


def load_model(path: AnyPath, fusion: str | None = None) -> Model:
    """Load the generator side of a checkpoint, or of the best checkpoint of a run; ``fusion`` is another mode for it.

    Raises:
        UserError: no checkpoint, damaged, or it lacks the parameters of the asked fusion mode.
    """
    checkpoint = load_checkpoint(path)
    config, unused = checkpoint.config.model, ["discriminator/"]
    trained = config.fusion.mode
    if fusion is not None and fusion != trained:
        with _as_user_error():
            is_learned = mode_of(fusion).learned
        if is_learned:
            raise UserError(
                f"--fusion {fusion}: {path} has no parameters for it (its mode is {trained}); "
                "use mean, occlusion, or weights trained with it"
            )
        config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, mode=fusion))
        unused.append("fusion/")
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        create_parameters(config)
    used = {name: value for name, value in checkpoint.parameters.items() if not name.startswith(tuple(unused))}
    tree.assign(used, checkpoint.folder)
    return Model(config, tree)


def model_digest(model: Model) -> str:
    """Digest of the configuration, of a plugged fusion's source and of the content of the parameters."""
    digest = hashlib.sha256(f"{model.config}{mode_of(model.config.fusion.mode).version}".encode())
    for name, parameter in sorted(model.tree.all().items()):
        digest.update(name.encode())
        digest.update(parameter.d)
    return digest.hexdigest()
