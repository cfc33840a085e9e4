"""Keypoint detector: an image to keypoints and the local affine motion around each (FOMM, section 3.1)."""

from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.networks import ops
from mrfomm.networks.blocks import hourglass
from mrfomm.networks.geometry import coordinate_grid, downsample

KERNEL = 7  # of the two output convolutions, without padding, as published


class Keypoints(NamedTuple):
    """value [N,n,2], (x, y) in [-1,1]; jacobian [N,n,2,2], row = output coordinate."""

    value: Variable
    jacobian: Variable


def detect_keypoints(
    image: Variable,
    num_keypoints: int,
    expansion: int,
    max_features: int,
    blocks: int,
    scale: float,
    temperature: float,
    training: bool = False,
) -> Keypoints:
    """Detect n keypoints in ``image`` [N,3,H,W], values in [0,1].

    Args:
        expansion, max_features, blocks: of the hourglass.
        scale: the image is downsampled to this share of its size first.
        temperature: of the softmax over space.
        training: batch norm uses and updates batch statistics.
    """
    with nn.parameter_scope("keypoints"):
        with nn.parameter_scope("hourglass"):
            features = hourglass(downsample(image, scale), expansion, max_features, blocks, training)
        with nn.parameter_scope("heatmap"):
            heatmaps = ops.filters(features.shape[1], num_keypoints, KERNEL)
        with nn.parameter_scope("jacobian"):
            identities = np.tile(np.array([1, 0, 0, 1], np.float32), num_keypoints)
            jacobians = ops.filters(features.shape[1], 4 * num_keypoints, KERNEL, zero=True, bias=identities)
    logits, local = ops.convolutions(features, [heatmaps, jacobians])
    return _soft_argmax(logits, local, temperature)


def _soft_argmax(logits: Variable, local: Variable, temperature: float) -> Keypoints:
    """Expectation of the position and of the local jacobian under each heatmap: [N,n,h,w], [N,4n,h,w] -> Keypoints."""
    batch, count, height, width = logits.shape
    heatmap = F.softmax(F.reshape(logits, (batch, count, height * width)) / temperature, axis=2)  # [N,n,h*w]
    grid = Variable.from_numpy_array(coordinate_grid(height, width).reshape(-1, 2))  # [h*w,2]
    value = F.reshape(F.affine(F.reshape(heatmap, (-1, height * width)), grid), (batch, count, 2))
    local = F.reshape(local, (batch * count, 4, height * width))
    jacobian = F.batch_matmul(local, F.reshape(heatmap, (batch * count, height * width, 1)))  # [N*n,4,1]
    return Keypoints(value, F.reshape(jacobian, (batch, count, 2, 2)))
