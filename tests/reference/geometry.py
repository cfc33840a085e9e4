"""FOMM's coordinate conventions (modules/util.py) and its random deformation (modules/model.py), in numpy."""

import math

import numpy as np

from .layers import conv2d


def coordinate_grid(height, width):
    """make_coordinate_grid: [height,width,2], (x, y) from -1 at the first pixel to 1 at the last."""
    grid = np.empty((height, width, 2))
    for y in range(height):
        for x in range(width):
            grid[y, x] = 2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1
    return grid


def gaussian_heatmaps(points, height, width, variance):
    """kp2gaussian: points [N,n,2] -> [N,n,height,width]."""
    difference = coordinate_grid(height, width) - points[:, :, None, None]
    return np.exp(-0.5 * (difference**2).sum(-1) / variance)


def antialias_kernel(scale):
    """The blur of AntiAliasInterpolation2d."""
    sigma = (1 / scale - 1) / 2
    size = 2 * round(4 * sigma) + 1
    kernel = np.array(
        [
            [math.exp(-((y - size // 2) ** 2 + (x - size // 2) ** 2) / (2 * sigma**2)) for x in range(size)]
            for y in range(size)
        ]
    )
    return kernel / kernel.sum()


def downsample(x, scale):
    """AntiAliasInterpolation2d: blur with zero padding, then every (1/scale)-th pixel."""
    if scale == 1:
        return x
    kernel = antialias_kernel(scale)
    step = round(1 / scale)
    blurred = [conv2d(x[:, c : c + 1], kernel[None, None], pad=len(kernel) // 2) for c in range(x.shape[1])]
    return np.concatenate(blurred, 1)[:, :, ::step, ::step]


def sparse_motions(reference, driving, height, width):
    """DenseMotionNetwork.create_sparse_motions: two (value, jacobian) pairs -> [N,n+1,height,width,2]."""
    grid = coordinate_grid(height, width)
    offset = grid - driving[0][:, :, None, None]
    jacobian = reference[1] @ np.linalg.inv(driving[1])
    moved = np.einsum("nkij,nkhwj->nkhwi", jacobian, offset) + reference[0][:, :, None, None]
    identity = np.broadcast_to(grid, (len(moved), 1, height, width, 2))
    return np.concatenate([identity, moved], 1)


def warp_coordinates(points, theta, control):
    """Transform.warp_coordinates: points [B,n,2], theta [B,2,3], control [B,P] -> [B,n,2]."""
    count = math.isqrt(control.shape[1])
    control_points = coordinate_grid(count, count).reshape(-1, 2)
    affine = np.einsum("bij,bnj->bni", theta[:, :, :2], points) + theta[:, None, :, 2]
    distance = np.abs(points[:, :, None] - control_points).sum(-1)
    spline = (distance**2 * np.log(distance + 1e-6) * control[:, None]).sum(-1)
    return affine + spline[..., None]


def warp_coordinates_jacobian(points, theta, control, step=1e-6):
    """Transform.jacobian by central differences: [B,n,2,2], row = output coordinate."""
    columns = []
    for axis in np.eye(2) * step:
        ahead = warp_coordinates(points + axis, theta, control)
        behind = warp_coordinates(points - axis, theta, control)
        columns.append((ahead - behind) / (2 * step))
    return np.stack(columns, -1)


def equivariance_losses(keypoints, transformed, theta, control):
    """GeneratorFullModel's equivariance terms without their weights: (value, jacobian)."""
    value = np.abs(keypoints[0] - warp_coordinates(transformed[0], theta, control)).mean()
    jacobian = warp_coordinates_jacobian(transformed[0], theta, control) @ transformed[1]
    return value, np.abs(np.eye(2) - np.linalg.inv(keypoints[1]) @ jacobian).mean()
