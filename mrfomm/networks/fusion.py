"""The fusion unit: K warped features to one (paper, section 3).

Patch-wise and element-wise fusion are learned; ``mean`` and ``occlusion`` have no parameters and make K references work
with plain FOMM weights. K is read from the input, so a model trained with one K runs with any other.
"""

from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.networks import ops

LEARNED_MODES = ("patch", "element")


class Fused(NamedTuple):
    """feature [B,C,h,w]; mask [B,K,1,h,w] or [B,K,C,h,w] in [0,1], summing to 1 over K."""

    feature: Variable
    mask: Variable


def fuse(warped: Variable, occlusion: Variable, mode: str, kernel: int = 3) -> Fused:
    """Fuse K warped features.

    Args:
        warped: [B,K,C,h,w], each reference's features in the driving pose, already multiplied by their occlusion map.
        occlusion: [B,K,1,h,w] in [0,1]; read by mode ``occlusion`` only.
        mode: ``patch`` (one softmax weight per pixel and reference), ``element`` (one per pixel, channel and
            reference), ``mean`` (1/K) or ``occlusion`` (occlusion maps normalised to sum 1).
        kernel: of the learned modes' convolution, odd. It is shared by the K features and starts at zero, so that
            training starts from the mean.

    Raises:
        ValueError: unknown mode.
    """
    mask = _mask(warped, occlusion, mode, kernel)
    return Fused(F.sum(ops.multiply(warped, mask), axis=1), mask)


def _mask(warped: Variable, occlusion: Variable, mode: str, kernel: int) -> Variable:
    batch, references, channels, height, width = warped.shape
    if mode in LEARNED_MODES:
        folded = F.reshape(warped, (batch * references, channels, height, width))  # [B*K,C,h,w]
        with nn.parameter_scope("fusion"):
            logits = ops.convolution(folded, 1 if mode == "patch" else channels, kernel, pad=kernel // 2, zero=True)
        return F.softmax(F.reshape(logits, (batch, references, -1, height, width)), axis=1)
    if mode == "mean":
        shares = np.full((batch, references, 1, height, width), 1 / references, np.float32)
        return Variable.from_numpy_array(shares)
    if mode == "occlusion":
        return occlusion / (F.sum(occlusion, axis=1, keepdims=True) + 1e-12)
    raise ValueError(f"unknown fusion mode {mode!r}")
