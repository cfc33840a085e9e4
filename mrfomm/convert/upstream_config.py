"""The configuration of FOMM or nnabla-examples as one of ours."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mrfomm.errors import AnyPath, UserError


class _Kind(NamedTuple):
    accepts: Callable[[Any], bool]
    description: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_scale(value: Any) -> bool:
    return _is_number(value) and value <= 1 and abs(1 / value - round(1 / value)) < 1e-6


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and value == [value[0], value[0], 3] and _COUNT.accepts(value[0])


def _only(value: Any) -> _Kind:
    return _Kind(lambda given: given == value, f"{value}, nothing else is supported")


_COUNT = _Kind(lambda value: type(value) is int and value > 0, "a positive whole number")
_NUMBER = _Kind(_is_number, "a positive number")
_SCALE = _Kind(_is_scale, "1, 1/2, 1/3, 1/4 ...")
_SWITCH = _Kind(lambda value: isinstance(value, bool), "true or false")
_SHAPE = _Kind(_is_shape, "[size, size, 3]")
_REQUIRED = object()


class _Key(NamedTuple):
    """One of upstream's keys: ours (dotted, under model) or "" if only checked, and its default there."""

    ours: str
    kind: _Kind
    default: Any = _REQUIRED


def _fixed(value: Any, default: Any = _REQUIRED) -> _Key:
    return _Key("", _only(value), default)


def _sizes(section: str, blocks: str = "num_blocks") -> dict[str, _Key]:
    return {
        "block_expansion": _Key(f"{section}.expansion", _COUNT),
        "max_features": _Key(f"{section}.max_features", _COUNT),
        blocks: _Key(f"{section}.{blocks.removeprefix('num_')}", _COUNT),
    }


_MODEL_PARAMS: dict[str, Any] = {
    "common_params": {
        "num_kp": _Key("num_keypoints", _COUNT),
        "num_channels": _fixed(3),
        "estimate_jacobian": _fixed(True, False),
    },
    "kp_detector_params": {
        **_sizes("keypoints"),
        "scale_factor": _Key("keypoints.scale", _SCALE, 1),
        "temperature": _Key("keypoints.temperature", _NUMBER),
        "single_jacobian_map": _fixed(False, False),
        "pad": _fixed(0, 0),
    },
    "generator_params": {
        **_sizes("generator", "num_down_blocks"),
        "num_bottleneck_blocks": _Key("generator.bottleneck_blocks", _COUNT),
        "estimate_occlusion_map": _fixed(True, False),
        "dense_motion_params": {
            **_sizes("motion"),
            "scale_factor": _Key("motion.scale", _SCALE, 1),
            "kp_variance": _Key("motion.variance", _NUMBER, 0.01),
        },
    },
    "discriminator_params": {
        "scales": _fixed([1]),
        "block_expansion": _Key("discriminator.expansion", _COUNT, 64),
        "max_features": _Key("discriminator.max_features", _COUNT, 512),
        "num_blocks": _Key("discriminator.blocks", _COUNT, 4),
        "sn": _Key("discriminator.spectral_norm", _SWITCH, False),
        "use_kp": _Key("discriminator.keypoint_input", _SWITCH, False),
        "kp_variance": _Key("discriminator.variance", _NUMBER, 0.01),
    },
}


def config_from_upstream(values: dict[str, Any], origin: AnyPath = "the configuration") -> dict[str, Any]:
    """``{"model": {"image_size": ..., "keypoints": {...}, ...}}``, for ``mrfomm.config.config_from_dict``.

    Upstream's defaults hold for what ``values``, the file's content, leaves out. Only what shapes the networks is
    translated: of ``dataset_params`` the ``frame_shape``, and all of ``model_params``. The discriminator's
    ``expansion`` is twice upstream's ``block_expansion``: ours is the width of block 0, theirs half of it. Its keypoint
    heatmaps have the variance of the motion network's.

    Raises:
        UserError: a key is missing, unknown, malformed or asks for what isn't supported; it is named in full.
    """
    dataset = values.get("dataset_params", {})
    if not isinstance(dataset, dict):
        raise UserError(f"{origin}: dataset_params must be a section of keys; give FOMM's configuration")
    shape = dataset.get("frame_shape", [256, 256, 3])
    _check(shape, _SHAPE, "dataset_params.frame_shape", origin)
    model: dict[str, Any] = {"image_size": shape[0]}
    _section(values.get("model_params"), _MODEL_PARAMS, "model_params", origin, model)
    discriminator = model["discriminator"]
    discriminator["expansion"] *= 2
    variance = discriminator.pop("variance")
    if discriminator["keypoint_input"]:
        same = _only(model["motion"]["variance"])
        _check(variance, same, "model_params.discriminator_params.kp_variance", origin)
    return {"model": model}


def _section(values: Any, keys: dict[str, Any], path: str, origin: AnyPath, model: dict[str, Any]) -> None:
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
        section, _, field = key.ours.rpartition(".")
        if field:
            (model.setdefault(section, {}) if section else model)[field] = value


def _check(value: Any, kind: _Kind, full: str, origin: AnyPath) -> None:
    if not kind.accepts(value):
        raise UserError(f"{origin}: {full} must be {kind.description}, not {value!r}")
