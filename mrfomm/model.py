"""The only composition of the networks: encode the references once, synthesise a driving frame from them.

Axis letters: B driving frames, K references, n keypoints, C channels.
"""

import dataclasses
import hashlib
from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F

from mrfomm.checkpoint import ParameterTree, load_checkpoint
from mrfomm.config import ModelConfig
from mrfomm.errors import AnyPath, UserError
from mrfomm.networks import ops
from mrfomm.networks.discriminator import Judgement, discriminate
from mrfomm.networks.fusion import LEARNED_MODES, fuse
from mrfomm.networks.generator import decode, encode, warp_features
from mrfomm.networks.geometry import downsample, resize
from mrfomm.networks.keypoints import Keypoints, detect_keypoints
from mrfomm.networks.motion import Motion, estimate_motion


class Model(NamedTuple):
    """config: ModelConfig; tree: ParameterTree with its weights."""

    config: ModelConfig
    tree: ParameterTree


class References(NamedTuple):
    """What is computed once for K references; every leading axis is B*K (or K, to be repeated over the frames).

    image [B*K,3,h,w]: at the motion network's size. keypoints: value [B*K,n,2], jacobian [B*K,n,2,2].
    features [B*K,C,h',w']: the encoder's output.
    """

    image: nn.Variable
    keypoints: Keypoints
    features: nn.Variable


class Synthesis(NamedTuple):
    """What one forward pass computes.

    prediction [B,3,H,W] in [0,1]; motion: of the B*K pairs; occlusion [B,K,1,h,w] and warped [B,K,C,h,w] at the
    features' size; fused [B,C,h,w]; mask [B,K,1,h,w] or [B,K,C,h,w], summing to 1 over K.
    """

    prediction: nn.Variable
    motion: Motion
    occlusion: nn.Variable
    warped: nn.Variable
    fused: nn.Variable
    mask: nn.Variable


def keypoints_of(image: nn.Variable, config: ModelConfig, training: bool = False) -> Keypoints:
    """Keypoints of images [N,3,H,W] in [0,1]; ``config`` is a ModelConfig."""
    return detect_keypoints(image, config.num_keypoints, training=training, **vars(config.keypoints))


def encode_references(references: nn.Variable, config: ModelConfig, training: bool = False) -> References:
    """References [B,K,3,H,W] in [0,1] -> References: one keypoint call and one encoder call for all of them."""
    batch, count = references.shape[:2]
    folded = F.reshape(references, (batch * count, *references.shape[2:]))  # [B*K,3,H,W]
    generator = config.generator
    return References(
        downsample(folded, config.motion.scale),
        keypoints_of(folded, config, training),
        encode(folded, generator.expansion, generator.max_features, generator.down_blocks, training),
    )


def synthesise(references: References, driving: Keypoints, config: ModelConfig, training: bool = False) -> Synthesis:
    """Synthesise the driving pose from the references.

    Args:
        references: References with leading axis B*K; with leading axis K and B > 1, see ``repeat_references``.
        driving: Keypoints of the B driving frames.
        config: ModelConfig.
        training: batch norm uses and updates batch statistics.

    Returns:
        Synthesis.
    """
    batch = driving.value.shape[0]
    count = references.features.shape[0] // batch  # K
    motion_options = dict(vars(config.motion))
    motion_options.pop("scale")
    motion = estimate_motion(
        references.image,
        references.keypoints,
        Keypoints(*(repeat_each(value, count) for value in driving)),
        training=training,
        **motion_options,
    )
    warped, occlusion = warp_features(references.features, motion)
    warped = F.reshape(warped, (batch, count, *warped.shape[1:]))  # [B,K,C,h,w]
    occlusion = F.reshape(occlusion, (batch, count, *occlusion.shape[1:]))  # [B,K,1,h,w]
    fused, mask = fuse(warped, occlusion, config.fusion.mode, config.fusion.kernel)
    prediction = decode(fused, training=training, **vars(config.generator))
    return Synthesis(prediction, motion, occlusion, warped, fused, mask)


def repeat_references(references: References, batch: int) -> References:
    """The same K references for every one of ``batch`` driving frames: leading axis K -> batch*K."""
    image, keypoints, features = references
    return References(
        repeat_all(image, batch),
        Keypoints(*(repeat_all(value, batch) for value in keypoints)),
        repeat_all(features, batch),
    )


def kept(variable: nn.Variable) -> nn.Variable:
    """A copy of a Variable whose value can be read, or used by another graph, after nnabla has cleared its buffers.

    ``persistent`` alone is not enough: a reshaped Variable shares its memory with its input, which is cleared.
    """
    copy = F.reshape(variable, variable.shape, inplace=False)
    copy.persistent = True
    return copy


def repeat_each(x: nn.Variable, times: int) -> nn.Variable:
    """[B,...] -> [B*times,...], every entry ``times`` times in a row."""
    if times == 1:
        return x
    shape = x.shape
    repeated = F.broadcast(F.reshape(x, (shape[0], 1, *shape[1:])), (shape[0], times, *shape[1:]))
    return F.reshape(repeated, (shape[0] * times, *shape[1:]))


def repeat_all(x: nn.Variable, times: int) -> nn.Variable:
    """[K,...] -> [times*K,...], the whole sequence ``times`` times in a row."""
    if times == 1:
        return x
    shape = x.shape
    repeated = F.broadcast(F.reshape(x, (1, *shape)), (times, *shape))
    return F.reshape(repeated, (times * shape[0], *shape[1:]))


def judge(image: nn.Variable, points: nn.Variable, config: ModelConfig, fixed: bool = False) -> Judgement:
    """The discriminator's Judgement of images.

    Args:
        image: [B,3,H,W] in [0,1].
        points: the driving keypoints [B,n,2]; read if ``config.discriminator.keypoint_input``.
        config: ModelConfig.
        fixed: no gradient flows to the discriminator's parameters.
    """
    net = config.discriminator
    return discriminate(
        image,
        net.expansion,
        net.max_features,
        net.blocks,
        net.spectral_norm,
        points if net.keypoint_input else None,
        config.motion.variance,
        fixed,
    )


def create_parameters(config: ModelConfig, discriminator: bool = False) -> None:
    """Create the parameters of a ModelConfig in the current parameter scope, without computing anything.

    The discriminator's are created too if asked for; inference does without.
    """
    size = config.image_size
    references = encode_references(nn.Variable((1, 1, 3, size, size)), config)
    synthesise(references, keypoints_of(nn.Variable((1, 3, size, size)), config), config)
    if discriminator:
        judge(nn.Variable((1, 3, size, size)), nn.Variable((1, config.num_keypoints, 2)), config)


def contributions(synthesis: Synthesis, config: ModelConfig) -> tuple[nn.Variable, nn.Variable]:
    """Graph of a Breakdown: decoded warp of each reference [B,K,3,H,W] and its mask [B,K,1,H,W] at image size."""
    batch, count, channels, height, width = synthesis.warped.shape
    alone = decode(F.reshape(synthesis.warped, (batch * count, channels, height, width)), **vars(config.generator))
    mask = F.reshape(F.mean(synthesis.mask, axis=2), (batch, count, height, width))  # [B,K,h,w]
    size = config.image_size
    return (
        F.reshape(alone, (batch, count, 3, size, size)),
        F.reshape(resize(mask, size, size), (batch, count, 1, size, size)),
    )


def load_model(path: AnyPath, fusion: str | None = None) -> Model:
    """Load the generator side of a checkpoint (or of the best checkpoint of a run).

    Args:
        path: checkpoint or run folder.
        fusion: another fusion mode than the weights were trained with, or None.

    Returns:
        Model.

    Raises:
        UserError: no checkpoint, damaged, or it lacks the parameters of the asked fusion mode.
    """
    checkpoint = load_checkpoint(path)
    config, parameters = checkpoint.config.model, checkpoint.parameters
    trained = config.fusion.mode
    if fusion is not None and fusion != trained:
        if fusion in LEARNED_MODES:
            raise UserError(
                f"--fusion {fusion}: {path} has no parameters for it (its mode is {trained}); "
                "use mean, occlusion, or weights trained with it"
            )
        config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, mode=fusion))
        parameters = {name: value for name, value in parameters.items() if not name.startswith("fusion/")}
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        create_parameters(config)
    inference = {name: value for name, value in parameters.items() if not name.startswith("discriminator/")}
    tree.assign(inference, checkpoint.folder)
    return Model(config, tree)


def model_digest(model: Model) -> str:
    """Digest of a Model: its configuration and the content of its parameters."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, parameter in sorted(model.tree.all().items()):
        digest.update(name.encode())
        digest.update(parameter.d)
    return digest.hexdigest()
