"""Keypoint detector: an image to keypoints and the local affine motion around each (FOMM, section 3.1)."""

from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from mrfomm.networks import ops
from mrfomm.networks.blocks import hourglass
from mrfomm.networks.geometry import coordinate_grid, downsample

KERNEL = 7  # of the two output convolutions, without padding, as published


class Keypoints(NamedTuple):
    """value [N,n,2], (x, y) in [-1,1]; jacobian [N,n,2,2], row = output coordinate."""

    value: nn.Variable
    jacobian: nn.Variable


def detect_keypoints(
    image: nn.Variable,
    num_keypoints: int,
    expansion: int,
    max_features: int,
    blocks: int,
    scale: float,
    temperature: float,
    training: bool = False,
) -> Keypoints:
    """Detect keypoints in ``image`` [N,3,H,W], values in [0,1].

    Args:
        num_keypoints: n.
        expansion, max_features, blocks: of the hourglass.
        scale: the image is downsampled to this share of its size first.
        temperature: of the softmax over space.
        training: batch norm uses and updates batch statistics.

    Returns:
        Keypoints.
    """
    with nn.parameter_scope("keypoints"):
        with nn.parameter_scope("hourglass"):
            features = hourglass(downsample(image, scale), expansion, max_features, blocks, training)
        identities: ops.FilterOptions = {
            "zero": True,
            "bias": np.tile(np.array([1, 0, 0, 1], np.float32), num_keypoints),
        }
        heads: list[tuple[str, int, ops.FilterOptions]]
        heads = [("heatmap", num_keypoints, {}), ("jacobian", 4 * num_keypoints, identities)]
        logits, local = ops.convolutions(features, heads, KERNEL)
    return _soft_argmax(logits, local, temperature)


def _soft_argmax(logits: nn.Variable, local: nn.Variable, temperature: float) -> Keypoints:
    """Expectation of the position and of the local jacobian under each heatmap: [N,n,h,w], [N,4n,h,w] -> Keypoints."""
    batch, count, height, width = logits.shape
    heatmap = F.softmax(F.reshape(logits, (batch, count, height * width)) / temperature, axis=2)  # [N,n,h*w]
    grid = nn.Variable.from_numpy_array(coordinate_grid(height, width).reshape(-1, 2))  # [h*w,2]
    value = F.reshape(F.affine(F.reshape(heatmap, (-1, height * width)), grid), (batch, count, 2))
    weighted = F.batch_matmul(
        F.reshape(local, (batch * count, 4, height * width)), F.reshape(heatmap, (batch * count, height * width, 1))
    )  # [N*n,4,1]
    return Keypoints(value, F.reshape(weighted, (batch, count, 2, 2)))
