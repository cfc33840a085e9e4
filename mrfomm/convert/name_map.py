"""Where every parameter of a foreign checkpoint belongs in ours, as tables and pure functions.

Three sources are known: FOMM's PyTorch checkpoints ("upstream"), the checkpoints of Sony's nnabla-examples, and the
VGG19 weights of torchvision and of nnabla-examples. A source is a flat dictionary, name -> array: see
``upstream_arrays`` for upstream's nested one, ``mrfomm.model.checkpoint.read_h5`` for nnabla's files.

A translation is strict: every array of the source is used or on a list of what isn't needed, every parameter of ours is
filled, and every shape fits. ::

    source = upstream_arrays(read_torch(path), path)
    arrays = translate(source, upstream_names(expected_shapes), expected_shapes, UPSTREAM_IGNORED, path)
    check_antialias(source, config.model, path)
"""

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mrfomm.config import ModelConfig
from mrfomm.errors import AnyPath, UserError
from mrfomm.networks.geometry import antialias_kernel
from mrfomm.networks.perceptual import vgg19_shapes

Arrays = dict[str, np.ndarray]  # by name

# What the sources hold beyond parameters. The anti-alias kernels ("down") are constants, see check_antialias.
UPSTREAM_IGNORED = (
    "*.num_batches_tracked",
    "generator.dense_motion_network.down.weight",
    "kp_detector.down.weight",
    "discriminator.*.weight_v",  # spectral norm's other vector, which nnabla derives from u
)
NNABLA_EXAMPLES_IGNORED = ("VGG19/*",)
VGG19_IGNORED = (
    *("features.30.*", "features.32.*", "features.34.*", "classifier.*"),  # from conv5_2 on
    *("conv14/conv/*", "conv15/conv/*", "conv16/conv/*", "classifier/*"),
)
_UPSTREAM_PARTS = ("generator", "kp_detector", "discriminator")
_UPSTREAM_TRAINING = ("epoch", "optimizer_generator", "optimizer_kp_detector", "optimizer_discriminator")
_MODULE = "module."
_PER_CHANNEL = ("beta", "gamma", "mean", "var")
_REMEDY = "give the configuration and the kind of file that fit"


def _hourglass(ours: str, upstream: str, nnabla_examples: str) -> dict[str, tuple[str, str]]:
    """All three number the decoder's blocks in the order of use, the smallest feature map first."""
    names = {}
    for coder, end in (("encoder", "down"), ("decoder", "up")):
        theirs = f"{upstream}.{coder}.{end}_blocks.#.*", f"{nnabla_examples}/{coder}/{end}block_#/{end}block"
        names[f"{ours}/{end}_#"] = theirs
    return names


_MOTION = "generator.dense_motion_network"
_SCOPES = {  # ours -> upstream's, nnabla-examples'. # is a block's number, * the kind of layer where it is named
    **_hourglass("keypoints/hourglass", "kp_detector.predictor", "kp_detector/hourglass"),
    "keypoints/heatmap": ("kp_detector.kp", "kp_detector/keypoint_detector"),
    "keypoints/jacobian": ("kp_detector.jacobian", "kp_detector/jacobian_estimator"),
    **_hourglass("motion/hourglass", f"{_MOTION}.hourglass", "generator/dense_motion_prediction/hourglass"),
    "motion/mask": (f"{_MOTION}.mask", "generator/dense_motion_prediction/mask"),
    "motion/occlusion": (f"{_MOTION}.occlusion", "generator/dense_motion_prediction/occlusion_map"),
    "generator/first": ("generator.first.*", "generator/downblock"),
    "generator/down_#": ("generator.down_blocks.#.*", "generator/downblock_#/downblock"),
    "generator/up_#": ("generator.up_blocks.#.*", "generator/upblock_#/upblock"),
    "generator/res_#/first": ("generator.bottleneck.r#.*1", "generator/residual_block_#/convblock_0"),
    "generator/res_#/second": ("generator.bottleneck.r#.*2", "generator/residual_block_#/convblock_2"),
    "generator/final": ("generator.final", "generator/final_conv"),
    # the discriminator at scale 1, the only one in vox
    "discriminator/down_#": ("discriminator.discs.1.down_blocks.#.*", "discriminator/1/downblock_#"),
    "discriminator/final": ("discriminator.discs.1.*", "discriminator/1/prediction"),
}
_LAYERS = {"conv": ("conv", "conv"), "bn": ("norm", "bn"), "in": ("norm", "instance_normalization")}  # likewise
_PARAMETERS = {
    **{"W": ("weight", "W"), "b": ("bias", "b"), "u": ("weight_u", "spectral-norm/u")},
    **{"gamma": ("weight", "gamma"), "beta": ("bias", "beta"), "mean": ("running_mean", "mean")},
    "var": ("running_var", "var"),
}


def upstream_names(ours: Collection[str]) -> dict[str, str]:
    """Our names of parameters -> names in a PyTorch checkpoint of FOMM, flattened by ``upstream_arrays``."""
    names = {}
    for name in ours:
        scope, layer, parameter = _their_parts(name, 0)
        normalised = name.endswith("/W") and f"{name[:-1]}u" in ours  # by spectral norm, which keeps another weight
        names[name] = f"{scope.replace('*', layer)}.{parameter}" + "_orig" * normalised
    return names


def nnabla_examples_names(ours: Iterable[str]) -> dict[str, str]:
    """Our names of parameters -> names in a checkpoint of nnabla-examples' first-order-model."""
    return {name: "/".join(_their_parts(name, 1)) for name in ours}


def _their_parts(name: str, source: int) -> tuple[str, str, str]:
    """Scope, layer and parameter in a source, 0 for upstream."""
    scope, layer, parameter = name.rsplit("/", 2)
    number = "".join(re.findall(r"\d+", scope))
    theirs = _SCOPES[re.sub(r"\d+", "#", scope)][source].replace("#", number)
    return theirs, _LAYERS[layer][source], _PARAMETERS[parameter][source]


def without_module(state: dict[Any, Any]) -> dict[Any, Any]:
    """A state_dict without the ``module.`` that torch's DataParallel puts before every name."""
    while state and all(isinstance(name, str) and name.startswith(_MODULE) for name in state):
        state = {name[len(_MODULE) :]: value for name, value in state.items()}
    return state


def upstream_arrays(checkpoint: dict[Any, Any], origin: AnyPath = "the checkpoint") -> Arrays:
    """A checkpoint of FOMM, as ``read_torch`` returns it, as ``PART.name`` -> array, without epoch and optimisers.

    Raises:
        UserError: a part other than the discriminator is missing, or one is unknown or not a state_dict.
    """
    for part in ("generator", "kp_detector"):
        if part not in checkpoint:
            raise UserError(f"{origin}: {part} is missing; give a checkpoint of FOMM with its networks")
    source = {}
    for part, state in checkpoint.items():
        if part in _UPSTREAM_TRAINING:
            continue
        if part not in _UPSTREAM_PARTS or not isinstance(state, dict):
            raise UserError(f"{origin}: {part} is not a part of FOMM's checkpoints; remove it")
        for name, array in without_module(state).items():
            if not isinstance(array, np.ndarray):
                raise UserError(f"{origin}: {part}.{name} is not a tensor; save state_dict()s")
            source[f"{part}.{name}"] = array
    return source


def check_antialias(source: Arrays, model: ModelConfig, origin: AnyPath = "the checkpoint") -> None:
    """Check that upstream's anti-alias kernels, which we compute, are those of the configuration.

    Upstream's is a Gaussian of sigma (1/scale - 1)/2 and width 2*round(4*sigma) + 1, summing to 1; at scale 1 there is
    none. Half precision rounds it by up to 2^-11, bfloat16 by 2^-8 of a value.

    Raises:
        UserError: a kernel is missing, superfluous or another one.
    """
    for part, scale in (("kp_detector", model.keypoints.scale), (_MOTION, model.motion.scale)):
        name = f"{part}.down.weight"
        if (name not in source) != (scale == 1):
            state = "superfluous" if name in source else "missing"
            raise UserError(f"{origin}: {name} is {state} at scale {scale}; give the configuration that fits")
        if name not in source:
            continue
        found, kernel = source[name], antialias_kernel(scale)
        if found.shape != (3, 1, *kernel.shape) or not np.allclose(found, kernel, rtol=_rounding(found), atol=1e-6):
            raise UserError(f"{origin}: {name} isn't that of scale {scale}; give the configuration that fits")


def _rounding(array: np.ndarray) -> float:
    """The relative error of rounding to the type that floats were stored in, told by the bits that none of them uses.

    It is 2^-24 for float32, 2^-11 for half and 2^-8 for bfloat16, also after they were widened.
    """
    used = int(np.bitwise_or.reduce(array.astype(np.float32).view(np.uint32), axis=None)) | 1 << 16
    return 2.0 ** ((used & -used).bit_length() - 25)


def vgg19_names(source: Collection[str], origin: AnyPath = "the checkpoint") -> dict[str, str]:
    """Our name -> name in a file of VGG19's weights, for the layout that the names in ``source`` have.

    torchvision: ``features.N.{weight,bias}``, N counting ReLU and pooling too. nnabla-examples: ``convN/conv/{W,b}``,
    the convolutions counted from 1. Use with ``VGG19_IGNORED``: the layers after relu5_1 aren't needed.

    Raises:
        UserError: neither layout.
    """
    names: tuple[dict[str, str], dict[str, str]] = {}, {}
    for i, name in enumerate(vgg19_shapes()):  # W and b of each convolution
        stage, parameter = int(name.removeprefix("vgg19/conv")[0]), name[-1]
        index = i // 2 * 2 + stage - 1  # each is followed by a ReLU, each earlier stage by a pooling
        names[0][name] = f"features.{index}.{_PARAMETERS[parameter][0]}"
        names[1][name] = f"conv{i // 2 + 1}/conv/{parameter}"
    for layout in names:
        if layout["vgg19/conv1_1/W"] in source:
            return layout
    raise UserError(f"{origin}: neither torchvision's nor nnabla-examples' VGG19; give one of these files")


def translate(
    source: Arrays,
    names: dict[str, str],
    expected_shapes: dict[str, tuple[int, ...]],
    ignored: Sequence[str] = (),
    origin: AnyPath = "the checkpoint",
) -> Arrays:
    """Turn the arrays of a foreign checkpoint into ours: float32, in the order of ``expected_shapes``.

    Args:
        names, expected_shapes: our name -> their name, and -> shape; both name every parameter to fill. Per-channel
            vectors [C] become [1,C,1,1].
        ignored: shell patterns of their names that aren't needed.
        origin: the file, for errors.

    Raises:
        UserError: an array is missing, unknown, of another shape, not of floats, not finite, or (a variance) negative.
    """
    known = set(names.values())
    for theirs in source:
        if theirs not in known and not any(fnmatchcase(theirs, pattern) for pattern in ignored):
            raise UserError(f"{origin}: {theirs} is unknown; {_REMEDY}")
    for theirs in names.values():
        if theirs not in source:
            raise UserError(f"{origin}: {theirs} is missing; {_REMEDY}")
    return {
        ours: _convert(source[names[ours]], ours, shape, f"{origin}: {names[ours]}")
        for ours, shape in expected_shapes.items()
    }


def _convert(array: Any, name: str, shape: tuple[int, ...], label: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise UserError(f"{label} is not a tensor; save a state_dict()")
    kind = name.rpartition("/")[2]
    if array.shape != shape and not (kind in _PER_CHANNEL and shape == (1, *array.shape, 1, 1)):
        raise UserError(f"{label} has shape {array.shape}, {name} needs {shape}; {_REMEDY}")
    if array.dtype.kind != "f":
        raise UserError(f"{label} holds {array.dtype}, not floats; give unquantised weights")
    with np.errstate(over="ignore"):  # found below
        result = np.array(array, np.float32).reshape(shape)
    if not np.isfinite(result).all():
        raise UserError(f"{label} has values that are not finite in float32; use another checkpoint")
    if kind == "var" and (result < 0).any():
        raise UserError(f"{label} has negative variances; use another checkpoint")
    return result
