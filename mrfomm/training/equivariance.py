"""The equivariance constraint: keypoints must follow a known random deformation of the image (FOMM, section 3.1).

The deformation T is affine plus thin-plate spline: T(z) = A z + b + sum_i c_i r_i^2 log(r_i + 1e-6), where r_i is the
L1 distance of z to control point i and the spline moves x and y alike, as in FOMM's code.
"""

from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from mrfomm.networks.geometry import coordinate_grid, inverse_2x2, matmul_2x2
from mrfomm.networks.keypoints import Keypoints
from mrfomm.networks.sums import mean, sum_last

EPS = 1e-6


class Deformation(NamedTuple):
    """theta [B,2,3]: affine part (A | b). control [B,P]: weights of the P = points^2 control points."""

    theta: np.ndarray
    control: np.ndarray


def draw_deformation(
    rng: np.random.Generator, batch: int, sigma_affine: float, sigma: float, points: int
) -> Deformation:
    """Random deformations: theta = identity + N(0, sigma_affine), control = N(0, sigma), as float32 arrays."""
    theta = rng.normal(0, sigma_affine, (batch, 2, 3)) + np.eye(2, 3)
    control = rng.normal(0, sigma, (batch, points**2))
    return Deformation(theta.astype(np.float32), control.astype(np.float32))


def deform_grid(theta: nn.Variable, control: nn.Variable, height: int, width: int) -> nn.Variable:
    """T of every pixel of a frame, [B,height,width,2], by a Deformation in two Variables."""
    batch, centres = control.shape
    grid = coordinate_grid(height, width).reshape(-1, 2)  # [P,2]
    distance = np.abs(grid[:, None] - _control_points(centres)).sum(-1)  # [P,centres]
    terms = np.concatenate([grid, np.ones((len(grid), 1), np.float32), distance**2 * np.log(distance + EPS)], axis=1)
    spline = F.broadcast(F.reshape(control, (batch, 1, centres)), (batch, 2, centres))  # for x and y alike
    weights = F.reshape(F.concatenate(theta, spline, axis=2), (2 * batch, 3 + centres))
    moved = F.affine(weights, nn.Variable.from_numpy_array(np.ascontiguousarray(terms.T)))  # [2B,P]
    return F.transpose(F.reshape(moved, (batch, 2, height, width)), (0, 2, 3, 1))


def mirrored(grid: nn.Variable) -> nn.Variable:
    """Coordinates beyond [-1,1] as those of the same place in a frame mirrored at its borders: like ``grid``."""
    turns = (grid + 1) / 4  # whole at one border, a half more at the other, and back
    return 1 - 4 * F.abs(turns - F.floor(turns) - 0.5)


def deform_points(points: nn.Variable, theta: nn.Variable, control: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """T(points) [B,n,2] and dT/dz [B,n,2,2] at keypoints [B,n,2], differentiable; Variables hold the Deformation."""
    batch, count, _ = points.shape
    centres = control.shape[1]
    linear = F.slice(theta, stop=(batch, 2, 2))  # [B,2,2]
    shift = F.reshape(F.slice(theta, start=(0, 0, 2)), (batch, 1, 2))
    moved = F.batch_matmul(points, linear, transpose_b=True)
    moved = moved + F.broadcast(shift, moved.shape)

    grid = nn.Variable.from_numpy_array(_control_points(centres).reshape(1, 1, centres, 2))
    shape = (batch, count, centres, 2)
    offset = F.broadcast(F.reshape(points, (batch, count, 1, 2)), shape) - F.broadcast(grid, shape)
    distance = F.reshape(sum_last(F.abs(offset)), shape[:3])  # [B,n,P]
    weights = F.broadcast(F.reshape(control, (batch, 1, centres)), distance.shape)
    log = F.log(distance + EPS)
    spline = sum_last(weights * distance**2 * log, copies=2)  # [B,n,2], for x and y alike
    slope = weights * (2 * distance * log + distance**2 / (distance + EPS))  # d spline / d r, [B,n,P]
    sign = F.sign(offset, alpha=0)  # [B,n,P,2]
    sign.need_grad = False  # d|z|/dz is piecewise constant; nnabla's sign would pass the gradient straight through
    # d spline / d (x, y), [B*n,1,2]
    gradient = F.batch_matmul(F.reshape(slope, (-1, 1, centres)), F.reshape(sign, (-1, centres, 2)))
    shape = (batch, count, 2, 2)
    linear = F.broadcast(F.reshape(linear, (batch, 1, 2, 2)), shape)
    return moved + spline, linear + F.broadcast(F.reshape(gradient, (batch, count, 1, 2)), shape)


def equivariance_losses(
    keypoints: Keypoints, transformed: Keypoints, theta: nn.Variable, control: nn.Variable
) -> tuple[nn.Variable, nn.Variable]:
    """Mean |p - T(p_T)| and mean |I - J^-1 (dT/dz J_T)| (FOMM, equations 11 and 12).

    Of the Keypoints of a frame, those of the deformed frame, and the Deformation in two Variables.
    """
    moved, jacobian = deform_points(transformed.value, theta, control)
    value = mean(F.abs(keypoints.value - moved))
    product = matmul_2x2(inverse_2x2(keypoints.jacobian), matmul_2x2(jacobian, transformed.jacobian))
    identity = nn.Variable.from_numpy_array(np.broadcast_to(np.eye(2, dtype=np.float32), product.shape).copy())
    return value, mean(F.abs(identity - product))


def _control_points(count: int) -> np.ndarray:
    side = round(count**0.5)
    return coordinate_grid(side, side).reshape(-1, 2)
