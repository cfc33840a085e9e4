"""The configuration of FOMM or nnabla-examples as one of ours."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mrfomm.config import ModelConfig, config_from_dict
from mrfomm.errors import AnyPath, UserError


class _Key(NamedTuple):
    """One of upstream's keys: ours, dotted, or "" if there is none; its default; the only value that is supported."""

    ours: str
    default: Any = None  # None: required
    only: Any = None  # None: any that ours may have


_MODEL_PARAMS: dict[str, Any] = {
    "common_params": {
        "num_kp": _Key("num_keypoints"),
        "num_channels": _Key("", only=3),
        "estimate_jacobian": _Key("", False, only=True),
    },
    "kp_detector_params": {
        "block_expansion": _Key("keypoints.expansion"),
        "max_features": _Key("keypoints.max_features"),
        "num_blocks": _Key("keypoints.blocks"),
        "scale_factor": _Key("keypoints.scale", 1),
        "temperature": _Key("keypoints.temperature"),
        "single_jacobian_map": _Key("", False, only=False),
        "pad": _Key("", 0, only=0),
    },
    "generator_params": {
        "block_expansion": _Key("generator.expansion"),
        "max_features": _Key("generator.max_features"),
        "num_down_blocks": _Key("generator.down_blocks"),
        "num_bottleneck_blocks": _Key("generator.bottleneck_blocks"),
        "estimate_occlusion_map": _Key("", False, only=True),
        "dense_motion_params": {
            "block_expansion": _Key("motion.expansion"),
            "max_features": _Key("motion.max_features"),
            "num_blocks": _Key("motion.blocks"),
            "scale_factor": _Key("motion.scale", 1),
            "kp_variance": _Key("motion.variance", 0.01),
        },
    },
    "discriminator_params": {
        "scales": _Key("", only=[1]),
        "block_expansion": _Key("discriminator.expansion", 64),
        "max_features": _Key("discriminator.max_features", 512),
        "num_blocks": _Key("discriminator.blocks", 4),
        "sn": _Key("discriminator.spectral_norm", False),
        "use_kp": _Key("discriminator.keypoint_input", False),
        "kp_variance": _Key("discriminator.variance", 0.01),
    },
}


def config_from_upstream(values: dict[str, Any], origin: AnyPath = "the configuration") -> ModelConfig:
    """Translate a configuration of FOMM or nnabla-examples, the content of its file.

    Upstream's defaults hold for what it leaves out. Only what shapes the networks is translated: of ``dataset_params``
    the ``frame_shape``, and all of ``model_params``. The discriminator's ``expansion`` is twice upstream's
    ``block_expansion``: ours is the width of block 0, theirs half of it. Its keypoint heatmaps have the variance of the
    motion network's.

    Raises:
        UserError: a key is missing, unknown, malformed or asks for what isn't supported; it is named in full.
    """
    model: dict[str, Any] = {"image_size": _image_size(values.get("dataset_params", {}), origin)}
    theirs = {"model.image_size": "dataset_params.frame_shape"}
    for full, key, value in _leaves(values.get("model_params"), _MODEL_PARAMS, "model_params", origin):
        if value is None:
            raise UserError(f"{origin}: {full} is missing; give FOMM's configuration of this checkpoint")
        if key.only is not None and value != key.only:
            raise UserError(f"{origin}: {full} must be {key.only}, nothing else is supported")
        if key.ours:
            section, _, field = key.ours.rpartition(".")
            (model.setdefault(section, {}) if section else model)[field] = value
            theirs[f"model.{key.ours}"] = full
    discriminator = model["discriminator"]
    variance = discriminator.pop("variance")
    if type(discriminator["expansion"]) is int:
        discriminator["expansion"] *= 2
    try:
        config = config_from_dict({"model": model}, origin).model
    except UserError as error:  # it names our keys
        raise UserError(re.sub(r"model(\.[a-z_]+)+", lambda ours: theirs.get(ours[0], ours[0]), str(error))) from error
    if config.discriminator.keypoint_input and variance != config.motion.variance:
        full = theirs["model.discriminator.variance"]
        raise UserError(f"{origin}: {full} must be {config.motion.variance}, nothing else is supported")
    return config


def _leaves(values: Any, keys: dict[str, Any], path: str, origin: AnyPath) -> Iterator[tuple[str, _Key, Any]]:
    """The keys of a section and those below: their name in full, what they are, and the value."""
    if not isinstance(values, dict):
        raise UserError(f"{origin}: {path} must be a section of keys; give FOMM's configuration")
    for name in values:
        if name not in keys:
            raise UserError(f"{origin}: unknown key {path}.{name}; known there: {', '.join(keys)}")
    for name, key in keys.items():
        if isinstance(key, dict):
            yield from _leaves(values.get(name), key, f"{path}.{name}", origin)
        else:
            yield f"{path}.{name}", key, values.get(name, key.default)


def _image_size(dataset: Any, origin: AnyPath) -> int:
    if not isinstance(dataset, dict):
        raise UserError(f"{origin}: dataset_params must be a section of keys; give FOMM's configuration")
    shape = dataset.get("frame_shape", [256, 256, 3])
    if not isinstance(shape, list) or [*map(type, shape)] != 3 * [int] or shape != [shape[0], shape[0], 3]:
        raise UserError(f"{origin}: dataset_params.frame_shape must be [size, size, 3]")
    return shape[0]
