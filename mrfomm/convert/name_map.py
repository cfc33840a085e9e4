"""Where every parameter of a foreign checkpoint belongs in ours, as tables and pure functions.

Three sources are known: FOMM's PyTorch checkpoints ("upstream"), the checkpoints of Sony's nnabla-examples,
and the VGG19 weights of torchvision and of nnabla-examples. A source is a flat dictionary, name -> array: see
``upstream_arrays`` for upstream's nested one, ``mrfomm.h5_file.read_h5`` for nnabla's files.

A translation is strict: every array of the source is used or on a list of what isn't needed, every parameter
of ours is filled, and every shape fits. ::

    config = config_from_dict(config_from_upstream(read_yaml(yaml_path)), yaml_path)
    source = upstream_arrays(read_torch(path), path)
    names = upstream_names(architecture_of(config.model, source))
    arrays = translate(source, names, expected_shapes, UPSTREAM_IGNORED, path)
    check_antialias(source, config.model, path)
"""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from mrfomm.errors import UserError
from mrfomm.networks.geometry import antialias_kernel
from mrfomm.networks.perceptual import VGG19_LAYERS

# What the sources hold beyond parameters. The anti-alias kernels ("down") are constants, see check_antialias.
UPSTREAM_IGNORED = (
    "*.num_batches_tracked",
    "generator.dense_motion_network.down.weight",
    "kp_detector.down.weight",
    "discriminator.*.weight_v",  # spectral norm's other vector, which nnabla derives from u
)
NNABLA_EXAMPLES_IGNORED = ("VGG19/*",)
VGG19_IGNORED = (
    "features.30.*",  # conv5_2 to conv5_4
    "features.32.*",
    "features.34.*",
    "classifier.*",
    "conv14/conv/*",
    "conv15/conv/*",
    "conv16/conv/*",
    "classifier/*",
)
_UPSTREAM_PARTS = ("generator", "kp_detector", "discriminator")
_UPSTREAM_TRAINING = ("epoch", "optimizer_generator", "optimizer_kp_detector", "optimizer_discriminator")
_MODULE = "module."
_PER_CHANNEL = ("beta", "gamma", "mean", "var")
_REMEDY = "give the configuration and the kind of file that fit"


class Architecture(NamedTuple):
    """What the set of names depends on: numbers of blocks (``discriminator_blocks`` is 0 without one)."""

    keypoint_blocks: int
    motion_blocks: int
    down_blocks: int
    bottleneck_blocks: int
    discriminator_blocks: int
    spectral_norm: bool


def architecture_of(model, source):
    """The Architecture of a ModelConfig; the discriminator counts if ``source``, name -> array, holds one."""
    with_discriminator = any(name.startswith("discriminator") for name in source)
    return Architecture(
        keypoint_blocks=model.keypoints.blocks,
        motion_blocks=model.motion.blocks,
        down_blocks=model.generator.down_blocks,
        bottleneck_blocks=model.generator.bottleneck_blocks,
        discriminator_blocks=model.discriminator.blocks if with_discriminator else 0,
        spectral_norm=model.discriminator.spectral_norm,
    )


# FOMM and nnabla-examples


class _Layer(NamedTuple):
    """One layer's kind (a key of _PARAMETERS) and scope in the three worlds."""

    kind: str
    ours: str
    upstream: str
    nnabla_examples: str


_PARAMETERS = {  # kind -> our parameter -> upstream's, nnabla-examples'
    "convolution": {"W": ("weight", "W"), "b": ("bias", "b")},
    "normalised convolution": {"W": ("weight_orig", "W"), "b": ("bias", "b"), "u": ("weight_u", "spectral-norm/u")},
    "batch norm": {
        "beta": ("bias", "beta"),
        "gamma": ("weight", "gamma"),
        "mean": ("running_mean", "mean"),
        "var": ("running_var", "var"),
    },
    "instance norm": {"beta": ("bias", "beta"), "gamma": ("weight", "gamma")},
}


def upstream_names(architecture):
    """Our name -> name in a PyTorch checkpoint of FOMM, flattened by ``upstream_arrays``.

    Args:
        architecture: Architecture.
    """
    return {
        f"{layer.ours}/{ours}": f"{layer.upstream}.{theirs}"
        for layer in _layers(architecture)
        for ours, (theirs, _) in _PARAMETERS[layer.kind].items()
    }


def nnabla_examples_names(architecture):
    """Our name -> name in a checkpoint of nnabla-examples' first-order-model.

    Args:
        architecture: Architecture.
    """
    return {
        f"{layer.ours}/{ours}": f"{layer.nnabla_examples}/{theirs}"
        for layer in _layers(architecture)
        for ours, (_, theirs) in _PARAMETERS[layer.kind].items()
    }


def _layers(architecture):
    yield from _hourglass(
        "keypoints/hourglass", "kp_detector.predictor", "kp_detector/hourglass", architecture.keypoint_blocks
    )
    yield _head("keypoints/heatmap", "kp_detector.kp", "kp_detector/keypoint_detector")
    yield _head("keypoints/jacobian", "kp_detector.jacobian", "kp_detector/jacobian_estimator")
    motion, dense_motion = "generator.dense_motion_network", "generator/dense_motion_prediction"
    yield from _hourglass(
        "motion/hourglass", f"{motion}.hourglass", f"{dense_motion}/hourglass", architecture.motion_blocks
    )
    yield _head("motion/mask", f"{motion}.mask", f"{dense_motion}/mask")
    yield _head("motion/occlusion", f"{motion}.occlusion", f"{dense_motion}/occlusion_map")
    yield from _generator(architecture.down_blocks, architecture.bottleneck_blocks)
    if architecture.discriminator_blocks:
        yield from _discriminator(architecture.discriminator_blocks, architecture.spectral_norm)


def _hourglass(ours, upstream, nnabla_examples, blocks):
    """All three number the decoder's blocks in the order of use, the smallest feature map first."""
    for i in range(blocks):
        yield from _block(
            f"{ours}/down_{i}",
            f"{upstream}.encoder.down_blocks.{i}",
            f"{nnabla_examples}/encoder/downblock_{i}/downblock",
        )
        yield from _block(
            f"{ours}/up_{i}", f"{upstream}.decoder.up_blocks.{i}", f"{nnabla_examples}/decoder/upblock_{i}/upblock"
        )


def _generator(down_blocks, bottleneck_blocks):
    yield from _block("generator/first", "generator.first", "generator/downblock")
    for i in range(down_blocks):
        theirs = f"generator/downblock_{i}/downblock"
        yield from _block(f"generator/down_{i}", f"generator.down_blocks.{i}", theirs)
        yield from _block(f"generator/up_{i}", f"generator.up_blocks.{i}", f"generator/upblock_{i}/upblock")
    for i in range(bottleneck_blocks):
        upstream = f"generator.bottleneck.r{i}"
        for name, number, theirs in (("first", 1, "convblock_0"), ("second", 2, "convblock_2")):
            ours, theirs = f"generator/res_{i}/{name}", f"generator/residual_block_{i}/{theirs}"
            yield _Layer("batch norm", f"{ours}/bn", f"{upstream}.norm{number}", f"{theirs}/bn")
            yield _Layer("convolution", f"{ours}/conv", f"{upstream}.conv{number}", f"{theirs}/conv")
    yield _head("generator/final", "generator.final", "generator/final_conv")


def _discriminator(blocks, spectral_norm):
    """The discriminator at scale 1, the only one in vox."""
    ours, upstream, theirs = "discriminator", "discriminator.discs.1", "discriminator/1"
    kind = "normalised convolution" if spectral_norm else "convolution"
    for i in range(blocks):
        block, down = f"{upstream}.down_blocks.{i}", f"{theirs}/downblock_{i}"
        yield _Layer(kind, f"{ours}/down_{i}/conv", f"{block}.conv", f"{down}/conv")
        if i > 0:
            yield _Layer("instance norm", f"{ours}/down_{i}/in", f"{block}.norm", f"{down}/instance_normalization")
    yield _Layer(kind, f"{ours}/final/conv", f"{upstream}.conv", f"{theirs}/prediction/conv")


def _block(ours, upstream, nnabla_examples):
    yield _Layer("convolution", f"{ours}/conv", f"{upstream}.conv", f"{nnabla_examples}/conv")
    yield _Layer("batch norm", f"{ours}/bn", f"{upstream}.norm", f"{nnabla_examples}/bn")


def _head(ours, upstream, nnabla_examples):
    return _Layer("convolution", f"{ours}/conv", upstream, f"{nnabla_examples}/conv")


def without_module(state):
    """A state_dict without the ``module.`` that torch's DataParallel puts before every name."""
    while state and all(isinstance(name, str) and name.startswith(_MODULE) for name in state):
        state = {name[len(_MODULE) :]: value for name, value in state.items()}
    return state


def upstream_arrays(checkpoint, origin="the checkpoint"):
    """Flatten a checkpoint of FOMM, as ``read_torch`` returns it; epoch and optimisers are left out.

    Args:
        checkpoint: ``{"generator": {name: array}, "kp_detector": ..., "discriminator": ..., "epoch": ...}``;
            the discriminator may be missing.
        origin: the file, for errors.

    Returns:
        ``PART.name`` -> array.

    Raises:
        UserError: a part is missing, unknown or not a state_dict.
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


def check_antialias(source, model, origin="the checkpoint"):
    """Check that upstream's anti-alias kernels, which we compute, are those of the configuration.

    Upstream's is a Gaussian of sigma (1/scale - 1)/2 and width 2*round(4*sigma) + 1, summing to 1; at scale 1
    there is none. Half precision rounds it by up to 2^-11, bfloat16 by 2^-8 of a value.

    Args:
        source: name -> array, from ``upstream_arrays``.
        model: ModelConfig; its keypoints.scale and motion.scale are used.
        origin: the file, for errors.

    Raises:
        UserError: a kernel is missing, superfluous or another one.
    """
    scales = {
        "kp_detector.down.weight": model.keypoints.scale,
        "generator.dense_motion_network.down.weight": model.motion.scale,
    }
    for name, scale in scales.items():
        found = source.get(name)
        if (found is None) != (scale == 1):
            state = "missing" if found is None else "superfluous"
            raise UserError(f"{origin}: {name} is {state} at scale {scale}; give the configuration that fits")
        if found is None:
            continue
        kernel = antialias_kernel(scale)
        if found.shape != (3, 1, *kernel.shape) or not np.allclose(found, kernel, rtol=_rounding(found), atol=1e-6):
            raise UserError(f"{origin}: {name} isn't that of scale {scale}; give the configuration that fits")


def _rounding(array):
    """The relative error of rounding to the type that floats were stored in, told by the bits that none of them uses.

    It is 2^-24 for float32, 2^-11 for half and 2^-8 for bfloat16, also after they were widened.
    """
    used = int(np.bitwise_or.reduce(array.astype(np.float32).view(np.uint32), axis=None)) | 1 << 16
    return 2.0 ** ((used & -used).bit_length() - 25)


# VGG19


def vgg19_names(source, origin="the checkpoint"):
    """Our name -> name in a file of VGG19's weights, for the layout that the file has.

    torchvision: ``features.N.{weight,bias}``, N counting ReLU and pooling too. nnabla-examples:
    ``convN/conv/{W,b}``, the convolutions counted from 1. Use with ``VGG19_IGNORED``: the layers after
    relu5_1 aren't needed.

    Args:
        source: name -> array.
        origin: the file, for errors.

    Raises:
        UserError: neither layout.
    """
    for names in (_torchvision_vgg19(), _nnabla_examples_vgg19()):
        if names["vgg19/conv1_1/W"] in source:
            return names
    raise UserError(f"{origin}: neither torchvision's nor nnabla-examples' VGG19; give one of these files")


def _torchvision_vgg19():
    names, index = {}, 0
    for stage, (_, count) in enumerate(VGG19_LAYERS, start=1):
        for i in range(1, count + 1):
            names[f"vgg19/conv{stage}_{i}/W"] = f"features.{index}.weight"
            names[f"vgg19/conv{stage}_{i}/b"] = f"features.{index}.bias"
            index += 2  # convolution, ReLU
        index += 1  # pooling
    return names


def _nnabla_examples_vgg19():
    names, number = {}, 0
    for stage, (_, count) in enumerate(VGG19_LAYERS, start=1):
        for i in range(1, count + 1):
            number += 1
            names[f"vgg19/conv{stage}_{i}/W"] = f"conv{number}/conv/W"
            names[f"vgg19/conv{stage}_{i}/b"] = f"conv{number}/conv/b"
    return names


# Translation


def translate(source, names, expected_shapes, ignored=(), origin="the checkpoint"):
    """Turn the arrays of a foreign checkpoint into ours.

    Args:
        source: their name -> array.
        names: our name -> their name.
        expected_shapes: our name -> shape, of every parameter to fill.
        ignored: shell patterns of their names that aren't needed.
        origin: the file, for errors.

    Returns:
        Our name -> float32 array, in the order of ``expected_shapes``. Per-channel vectors [C] become
        [1,C,1,1].

    Raises:
        UserError: an array is missing, unknown, of another shape, not of floats, not finite, or (a variance)
            negative; a parameter has no source. The message names the key.
    """
    for ours, theirs in names.items():
        if ours not in expected_shapes:
            raise UserError(f"{origin}: {theirs} has no place in this model ({ours}); {_REMEDY}")
    known = set(names.values())
    for theirs in source:
        if theirs not in known and not any(fnmatchcase(theirs, pattern) for pattern in ignored):
            raise UserError(f"{origin}: {theirs} is unknown; {_REMEDY}")
    arrays = {}
    for ours, shape in expected_shapes.items():
        if ours not in names:
            raise UserError(f"{origin}: holds nothing for {ours}; {_REMEDY}")
        theirs = names[ours]
        if theirs not in source:
            raise UserError(f"{origin}: {theirs} is missing; {_REMEDY}")
        arrays[ours] = _convert(source[theirs], ours, tuple(shape), f"{origin}: {theirs}")
    return arrays


def _convert(array, name, shape, label):
    if not isinstance(array, np.ndarray):
        raise UserError(f"{label} is not a tensor; save a state_dict()")
    kind = name.rpartition("/")[2]
    fits = array.shape == shape or (kind in _PER_CHANNEL and shape == (1, *array.shape, 1, 1))
    if not fits:
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


# Configuration


class _Kind(NamedTuple):
    accepts: Callable
    description: str


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_scale(value):
    return _is_number(value) and value <= 1 and abs(1 / value - round(1 / value)) < 1e-6


def _only(value):
    return _Kind(lambda given: given == value, f"{value}, nothing else is supported")


_COUNT = _Kind(lambda value: type(value) is int and value > 0, "a positive whole number")
_NUMBER = _Kind(_is_number, "a positive number")
_SCALE = _Kind(_is_scale, "1, 1/2, 1/3, 1/4 ...")
_SWITCH = _Kind(lambda value: isinstance(value, bool), "true or false")
_SHAPE = _Kind(
    lambda value: isinstance(value, list) and len(value) == 3 and value == [value[0], value[0], 3], "[size, size, 3]"
)
_REQUIRED = object()


class _Key(NamedTuple):
    """One of upstream's keys: ours (dotted, under model) or None if only checked, and its default there."""

    ours: str | None
    kind: _Kind
    default: Any = _REQUIRED


_MODEL_PARAMS = {
    "common_params": {
        "num_kp": _Key("num_keypoints", _COUNT),
        "num_channels": _Key(None, _only(3)),
        "estimate_jacobian": _Key(None, _only(True), False),
    },
    "kp_detector_params": {
        "block_expansion": _Key("keypoints.expansion", _COUNT),
        "max_features": _Key("keypoints.max_features", _COUNT),
        "num_blocks": _Key("keypoints.blocks", _COUNT),
        "scale_factor": _Key("keypoints.scale", _SCALE, 1),
        "temperature": _Key("keypoints.temperature", _NUMBER),
        "single_jacobian_map": _Key(None, _only(False), False),
        "pad": _Key(None, _only(0), 0),
    },
    "generator_params": {
        "block_expansion": _Key("generator.expansion", _COUNT),
        "max_features": _Key("generator.max_features", _COUNT),
        "num_down_blocks": _Key("generator.down_blocks", _COUNT),
        "num_bottleneck_blocks": _Key("generator.bottleneck_blocks", _COUNT),
        "estimate_occlusion_map": _Key(None, _only(True), False),
        "dense_motion_params": {
            "block_expansion": _Key("motion.expansion", _COUNT),
            "max_features": _Key("motion.max_features", _COUNT),
            "num_blocks": _Key("motion.blocks", _COUNT),
            "scale_factor": _Key("motion.scale", _SCALE, 1),
            "kp_variance": _Key("motion.variance", _NUMBER, 0.01),
        },
    },
    "discriminator_params": {
        "scales": _Key(None, _only([1])),
        "block_expansion": _Key("discriminator.expansion", _COUNT, 64),
        "max_features": _Key("discriminator.max_features", _COUNT, 512),
        "num_blocks": _Key("discriminator.blocks", _COUNT, 4),
        "sn": _Key("discriminator.spectral_norm", _SWITCH, False),
        "use_kp": _Key("discriminator.keypoint_input", _SWITCH, False),
        "kp_variance": _Key("discriminator.variance", _NUMBER, 0.01),
    },
}


def config_from_upstream(values, origin="the configuration"):
    """Translate a configuration of FOMM or nnabla-examples into ours.

    Upstream's defaults hold for what it leaves out. Only what shapes the networks is translated: of
    ``dataset_params`` the ``frame_shape``, and all of ``model_params``. The discriminator's ``expansion`` is
    twice upstream's ``block_expansion``: ours is the width of block 0, theirs half of it. Its keypoint
    heatmaps have the variance of the motion network's.

    Args:
        values: the file's content, nested dictionaries.
        origin: the file, for errors.

    Returns:
        ``{"model": {"image_size": ..., "keypoints": {...}, ...}}``, for ``mrfomm.config.config_from_dict``.

    Raises:
        UserError: a key is missing, unknown, malformed or asks for what isn't supported; it is named in full.
    """
    model = {}
    _section(values.get("model_params"), _MODEL_PARAMS, "model_params", origin, model)
    model["discriminator"]["expansion"] *= 2
    variance = model["discriminator"].pop("variance")
    if model["discriminator"]["keypoint_input"]:
        full = "model_params.discriminator_params.kp_variance"
        _check(variance, _only(model["motion"]["variance"]), full, origin)
    dataset = values.get("dataset_params", {})
    if not isinstance(dataset, dict):
        raise UserError(f"{origin}: dataset_params must be a section of keys; give FOMM's configuration")
    shape = dataset.get("frame_shape", [256, 256, 3])
    _check(shape, _SHAPE, "dataset_params.frame_shape", origin)
    _check(shape[0], _COUNT, "dataset_params.frame_shape", origin)
    return {"model": {"image_size": shape[0], **model}}


def _section(values, keys, path, origin, model):
    """Check one section and put its values into ``model``."""
    if not isinstance(values, dict):
        raise UserError(f"{origin}: {path} must be a section of keys; give FOMM's configuration")
    for name in values:
        if name not in keys:
            raise UserError(f"{origin}: unknown key {path}.{name}; known there: {', '.join(keys)}")
    for name, key in keys.items():
        full = f"{path}.{name}"
        if isinstance(key, dict):
            _section(values.get(name), key, full, origin, model)
            continue
        value = values.get(name, key.default)
        if value is _REQUIRED:
            raise UserError(f"{origin}: {full} is missing; give FOMM's configuration of this checkpoint")
        _check(value, key.kind, full, origin)
        if key.ours:
            _put(model, key.ours, value)


def _check(value, kind, full, origin):
    if not kind.accepts(value):
        raise UserError(f"{origin}: {full} must be {kind.description}, not {value!r}")


def _put(model, key, value):
    *sections, name = key.split(".")
    for section in sections:
        model = model.setdefault(section, {})
    model[name] = value
