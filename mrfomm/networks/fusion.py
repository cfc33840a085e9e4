"""The fusion unit: K warped features to one (paper, section 3).

Patch-wise and element-wise fusion are learned; ``mean`` and ``occlusion`` have no parameters and make K references work
with plain FOMM weights. K is read from the input, so a model trained with one K runs with any other. Modes of others
are plugged in by :func:`register`, or by :func:`plug` from where a name such as ``package.module:function`` leads.
"""

import functools
import hashlib
import importlib
import inspect
import secrets
from collections.abc import Callable
from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.networks import ops

Masks = Callable[[Variable, Variable, int], Variable]


class FusionError(ValueError):
    """A fusion mode that isn't known, can't be imported, or doesn't do what a mode must."""


class Fused(NamedTuple):
    """feature [B,C,h,w]; mask [B,K,1,h,w] or [B,K,C,h,w] in [0,1], summing to 1 over K."""

    feature: Variable
    mask: Variable


class Mode(NamedTuple):
    """function: warped [B,K,C,h,w], occlusion [B,K,1,h,w], kernel -> mask, see Fused; learned: whether it has
    parameters; version: of its source, "" for the modes of this module."""

    function: Masks
    learned: bool
    version: str = ""


def fuse(warped: Variable, occlusion: Variable, mode: str, kernel: int = 3) -> Fused:
    """Fuse K warped features.

    Args:
        warped: [B,K,C,h,w], each reference's features in the driving pose, already multiplied by their occlusion map.
        occlusion: [B,K,1,h,w] in [0,1].
        mode: ``patch`` (one softmax weight per pixel and reference), ``element`` (one per pixel, channel and
            reference), ``mean`` (1/K), ``occlusion`` (occlusion maps normalised to sum 1), or one plugged in.
        kernel: of the learned modes' convolution, odd. It is shared by the K features and starts at zero, so that
            training starts from the mean.

    Raises:
        FusionError: unknown mode, or its mask has a shape or parameters that it must not have.
    """
    known = mode_of(mode)
    with nn.parameter_scope("fusion"):
        mask = known.function(warped, occlusion, kernel)
        if known.version and not known.learned and nn.get_parameters(grad_only=False):
            raise FusionError(f"{mode} has parameters; register it with learned=True")
    shapes = [(*warped.shape[:2], channels, *warped.shape[3:]) for channels in (1, warped.shape[2])]
    if mask.shape not in shapes:
        raise FusionError(f"{mode} gives a mask of shape {mask.shape}; it must be {shapes[0]} or {shapes[1]}")
    return Fused(F.sum(ops.multiply(warped, mask), axis=1), mask)


def mode_of(name: str) -> Mode:
    """The Mode of a name. Nothing is imported for it; FusionError tells that it isn't known."""
    if name not in _MODES:
        remedy = "one of your own is imported only where you name it: --fusion, --plugin, --set model.fusion.mode="
        raise FusionError(f"{name} is not known here (known are {', '.join(_MODES)}); {remedy}")
    return _MODES[name]


def modes_of(used: str) -> tuple[str, ...]:
    """The modes that a model can fuse by which fuses by ``used``: that one first, and those without parameters."""
    return used, *(name for name, mode in _MODES.items() if name != used and not mode.learned)


def register(name: str, function: Masks, learned: bool = False) -> None:
    """Plug in a mode, see Mode. ``name`` has a colon, so that no mode of this project will ever have it.

    Raises:
        FusionError: the name has no colon.
    """
    if ":" not in name:
        raise FusionError(f"{name}: a name of your own has a colon, as in package.module:function")
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
        version = hashlib.sha256(source.encode()).hexdigest()
    except (OSError, TypeError):  # there is no file: no other process knows it as the same
        version = secrets.token_hex()
    _MODES[name] = Mode(function, learned, version)


def plug(name: str) -> None:
    """Import what ``package.module:function`` names, unless it is known: the module may have registered it itself.

    This runs the module's code. Call it for names that the user has given, never for those of a checkpoint.

    Raises:
        FusionError: the module or the function isn't there.
    """
    if name in _MODES:
        return
    path, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(path), attribute)
        if not callable(function):
            raise TypeError("not a function")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FusionError(f"{name} can't be imported ({error}); put its folder into PYTHONPATH") from error
    if name not in _MODES:
        register(name, function)


def _learned(channels: int | None, warped: Variable, occlusion: Variable, kernel: int) -> Variable:
    """Softmax over K of a convolution's output, of ``channels`` or as many as the features have."""
    batch, references, features, height, width = warped.shape
    folded = F.reshape(warped, (batch * references, features, height, width))  # [B*K,C,h,w]
    logits = ops.convolution(folded, channels or features, kernel, pad=kernel // 2, zero=True)
    return F.softmax(F.reshape(logits, (batch, references, -1, height, width)), axis=1)


def _mean(warped: Variable, occlusion: Variable, kernel: int) -> Variable:
    return Variable.from_numpy_array(np.full(occlusion.shape, 1 / occlusion.shape[1], np.float32))


def _occlusion(warped: Variable, occlusion: Variable, kernel: int) -> Variable:
    return occlusion / (F.sum(occlusion, axis=1, keepdims=True) + 1e-12)


# What is plugged in is the process's, as an imported module is: nothing else here changes.
_MODES = {
    "patch": Mode(functools.partial(_learned, 1), learned=True),
    "element": Mode(functools.partial(_learned, None), learned=True),
    "mean": Mode(_mean, learned=False),
    "occlusion": Mode(_occlusion, learned=False),
}
