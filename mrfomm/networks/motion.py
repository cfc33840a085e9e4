"""Dense motion: keypoints of a reference and of the driving frame to a deformation and an occlusion map (FOMM, 3.2)."""

from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.networks import ops
from mrfomm.networks.blocks import hourglass
from mrfomm.networks.geometry import apply_affine, coordinate_grid, heatmap_difference, inverse_2x2, matmul_2x2
from mrfomm.networks.keypoints import Keypoints

KERNEL = 7  # of the two output convolutions


class Motion(NamedTuple):
    """Motion from a reference to the driving pose, at the resolution of the motion network.

    deformation [N,h,w,2]: where in the reference each pixel is taken from, (x, y) in [-1,1].
    occlusion [N,1,h,w] in [0,1]: 0 where the reference does not show what is needed.
    mask [N,n+1,h,w]: the share of each keypoint's motion (index 0: background, no motion).
    """

    deformation: Variable
    occlusion: Variable
    mask: Variable


def estimate_motion(
    image: Variable,
    reference: Keypoints,
    driving: Keypoints,
    expansion: int,
    max_features: int,
    blocks: int,
    variance: float,
    training: bool = False,
) -> Motion:
    """Estimate the motion from each reference to its driving frame.

    Args:
        image: [N,3,h,w], the references downsampled to the motion network's size (see ``geometry.downsample``).
        reference, driving: Keypoints with [N,n,...].
        expansion, max_features, blocks: of the hourglass.
        variance: of the keypoints' Gaussians.
        training: batch norm uses and updates batch statistics.
    """
    batch, _, height, width = image.shape
    count = driving.value.shape[1]
    sparse = sparse_motions(reference, driving, height, width)  # [N,n+1,2,h,w]
    heatmaps = heatmap_difference(driving.value, reference.value, height, width, variance)
    background = Variable.from_numpy_array(np.zeros((batch, 1, height, width), np.float32))
    heatmaps = F.reshape(F.concatenate(background, heatmaps, axis=1), (batch, count + 1, 1, height, width))
    warped = _warp_by_each(image, sparse)  # [N,n+1,3,h,w]
    hints = F.reshape(F.concatenate(heatmaps, warped, axis=2), (batch, -1, height, width))  # [N,(n+1)*4,h,w]
    with nn.parameter_scope("motion"):
        with nn.parameter_scope("hourglass"):
            features = hourglass(hints, expansion, max_features, blocks, training)
        with nn.parameter_scope("mask"):
            masks = ops.filters(features.shape[1], count + 1, KERNEL)
        with nn.parameter_scope("occlusion"):
            occlusions = ops.filters(features.shape[1], 1, KERNEL)
    mask, occlusion = ops.convolutions(features, [masks, occlusions], pad=KERNEL // 2)
    mask, occlusion = F.softmax(mask, axis=1), F.sigmoid(occlusion)
    weighted = ops.multiply(sparse, F.reshape(mask, (batch, count + 1, 1, height, width)))
    return Motion(F.transpose(F.sum(weighted, axis=1), (0, 2, 3, 1)), occlusion, mask)


def sparse_motions(reference: Keypoints, driving: Keypoints, height: int, width: int) -> Variable:
    """The motion around each of n keypoints, J_r J_d^-1 (z - p_d) + p_r, with the identity (background) first.

    [N,n+1,2,height,width], (x, y) in the reference's coordinates.
    """
    batch, count, _ = driving.value.shape
    matrix = matmul_2x2(reference.jacobian, inverse_2x2(driving.jacobian))  # [N,n,2,2]
    moved_centre = F.batch_matmul(F.reshape(matrix, (-1, 2, 2)), F.reshape(driving.value, (-1, 2, 1)))  # [N*n,2,1]
    offset = reference.value - F.reshape(moved_centre, (batch, count, 2))
    motions = apply_affine(matrix, offset, height, width)
    still = np.broadcast_to(coordinate_grid(height, width).transpose(2, 0, 1), (batch, 1, 2, height, width))
    return F.concatenate(Variable.from_numpy_array(np.ascontiguousarray(still)), motions, axis=1)


def _warp_by_each(image: Variable, sparse: Variable) -> Variable:
    """Warp each image [N,3,h,w] by each of its sparse motions [N,m,2,h,w] -> [N,m,3,h,w]."""
    batch, count, _, height, width = sparse.shape
    grid = F.reshape(F.transpose(sparse, (0, 1, 3, 4, 2)), (batch, count * height, width, 2))  # one below the other
    warped = F.reshape(ops.warp(image, grid), (batch, -1, count, height, width))  # [N,3,m,h,w]
    return F.transpose(warped, (0, 2, 1, 3, 4))
