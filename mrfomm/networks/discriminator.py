"""Patch discriminator of the second training stage (FOMM; pix2pixHD at one scale)."""

from collections.abc import Callable
from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
from nnabla import Variable
from nnabla.initializer import NormalInitializer

from mrfomm.networks import ops
from mrfomm.networks.geometry import gaussian_heatmaps
from mrfomm.networks.sums import sum_last

KERNEL = 4  # of the blocks' convolutions, without padding


class Judgement(NamedTuple):
    """features: the output of each block, [N,C_i,h_i,w_i]; score [N,1,h,w]: 1 for real, 0 for generated (LSGAN)."""

    features: tuple[Variable, ...]
    score: Variable


def discriminate(
    image: Variable,
    expansion: int,
    max_features: int,
    blocks: int,
    spectral_norm: bool,
    points: Variable | None = None,
    variance: float = 0.01,
    fixed: bool = False,
) -> Judgement:
    """Judge images [N,3,H,W] in [0,1].

    Args:
        expansion, max_features, blocks: block i has min(max_features, expansion * 2^i) channels.
        spectral_norm: normalise the convolutions (vox; vox-adv does without).
        points: driving keypoints [N,n,2] whose heatmaps are appended to the image (vox-adv), or None.
        variance: of those heatmaps.
        fixed: no gradient flows to the parameters (the generator's step); power iteration is frozen too.
    """
    x = image
    if points is not None:
        height, width = image.shape[2:]
        x = F.concatenate(x, gaussian_heatmaps(points, height, width, variance), axis=1)
    transform = _spectral_normalisation(fixed) if spectral_norm else None
    features = []
    with nn.parameter_scope("discriminator"):
        for i in range(blocks):
            with nn.parameter_scope(f"down_{i}"):
                x = ops.convolution(x, min(max_features, expansion * 2**i), KERNEL, fixed=fixed, transform=transform)
                x = F.leaky_relu(ops.instance_normalization(x, fixed) if i > 0 else x, 0.2)
                x = ops.halve(x) if i < blocks - 1 else x
            features.append(x)
        with nn.parameter_scope("final"):
            return Judgement(tuple(features), ops.convolution(x, 1, 1, fixed=fixed, transform=transform))


def _spectral_normalisation(fixed: bool) -> Callable[[Variable], Variable]:
    """``F.spectral_norm`` of weights [O,...], which sums as Hopper can't (see networks/sums.py); ``fixed``: u stays."""

    def normalise(weight: Variable) -> Variable:
        rows = weight.shape[0]
        u = ops.parameter("u", (rows,), NormalInitializer(), need_grad=False)
        matrix = F.reshape(weight, (rows, -1))
        constant = F.reshape(weight.get_unlinked_variable(need_grad=False), matrix.shape)
        right = F.reshape(_unit(F.affine(F.reshape(u, (1, rows)), constant)), (-1, 1))
        left = F.reshape(_unit(F.reshape(F.affine(constant, right), (1, rows))), (rows,))
        if not fixed:
            left = F.assign(u, left)  # its output, a copy, stays when the next picture's iteration changes u
        norm = F.affine(F.affine(F.reshape(left, (1, rows)), matrix), right)  # [1,1]
        return F.reshape(matrix / sum_last(norm, copies=matrix.shape[1]), weight.shape)

    return normalise


def _unit(row: Variable) -> Variable:
    """A row [1,m] over its length."""
    return row / (F.affine(row, F.reshape(row, (-1, 1))) + 1e-12) ** 0.5
