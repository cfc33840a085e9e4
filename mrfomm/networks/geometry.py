"""Every coordinate convention of the project, once.

Grids are [-1, 1] in (x, y) order with the corners on pixel centres (``align_corners=True``); bilinear resizing uses
half-pixel centres (``align_corners=False``), as FOMM does in PyTorch.
"""

import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.networks.ops import raw_convolution


def coordinate_grid(height: int, width: int) -> np.ndarray:
    """The (x, y) coordinates of every pixel: float32 array [height,width,2] in [-1,1], corners on pixel centres."""
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)
    return np.stack(np.meshgrid(x, y), axis=-1)


def gaussian_heatmaps(points: Variable, height: int, width: int, variance: float) -> Variable:
    """A Gaussian exp(-|z - p|^2 / (2 variance)) around each point [N,n,2], (x, y) in [-1,1] -> [N,n,height,width]."""
    rows, columns = _gaussian_factors(points, height, width, variance)
    return F.reshape(F.batch_matmul(rows, columns), (*points.shape[:2], height, width))


def heatmap_difference(points: Variable, others: Variable, height: int, width: int, variance: float) -> Variable:
    """``gaussian_heatmaps`` of the points less those of the others, [N,n,height,width], in one product."""
    rows, columns = _gaussian_factors(points, height, width, variance)
    other_rows, other_columns = _gaussian_factors(others, height, width, variance)
    difference = F.batch_matmul(F.concatenate(rows, -other_rows, axis=2), F.concatenate(columns, other_columns, axis=1))
    return F.reshape(difference, (*points.shape[:2], height, width))


def _gaussian_factors(points: Variable, height: int, width: int, variance: float) -> tuple[Variable, Variable]:
    """The Gaussians along y and along x, whose products are the heatmaps: [N*n,height,1], [N*n,1,width]."""
    grid = coordinate_grid(height, width)
    rows = F.exp(_squared_distance(points, 1, grid[:, 0, 1]) * (-0.5 / variance))
    columns = F.exp(_squared_distance(points, 0, grid[0, :, 0]) * (-0.5 / variance))
    return F.reshape(rows, (-1, height, 1)), F.reshape(columns, (-1, 1, width))


def _squared_distance(points: Variable, axis: int, positions: np.ndarray) -> Variable:
    """Squared distance along one axis: points [N,n,2], positions [P] -> [N*n,P]."""
    coordinate = F.slice(points, start=(0, 0, axis), stop=(*points.shape[:2], axis + 1))  # [N,n,1]
    # The points are broadcast along the outer axis: see networks/sums.py.
    difference = _constant(positions.reshape(-1, 1)) - F.reshape(coordinate, (1, -1))  # [P,N*n]
    return F.transpose(difference**2, (1, 0))


def inverse_2x2(matrices: Variable) -> Variable:
    """Inverse of [...,2,2] matrices in closed form (``F.batch_inv`` is imprecise); singular ones give inf or nan."""
    # Entries first, so that the division broadcasts along the outer axis: see networks/sums.py.
    entries = F.transpose(F.reshape(matrices, (-1, 4)), (1, 0))  # [4,N]
    a, b, c, d = (F.slice(entries, start=(i, 0), stop=(i + 1, entries.shape[1])) for i in range(4))
    adjugate = F.concatenate(d, -b, -c, a, axis=0)
    return F.reshape(F.transpose(adjugate / (a * d - b * c), (1, 0)), matrices.shape)


def matmul_2x2(left: Variable, right: Variable) -> Variable:
    """Product of [...,2,2] matrices of equal shape."""
    return F.reshape(F.batch_matmul(F.reshape(left, (-1, 2, 2)), F.reshape(right, (-1, 2, 2))), left.shape)


def apply_affine(matrix: Variable, offset: Variable, height: int, width: int) -> Variable:
    """Affine motion of the grid: z -> matrix z + offset for every grid point z; matrix [N,n,2,2], offset [N,n,2].

    [N,n,2,height,width], the coordinates (x, y) each pixel is taken from.
    """
    batch, count = offset.shape[:2]
    coefficients = F.concatenate(matrix, F.reshape(offset, (batch, count, 2, 1)), axis=3)  # [N,n,2,3]
    grid = coordinate_grid(height, width).reshape(-1, 2)
    homogeneous = np.concatenate([grid, np.ones((len(grid), 1), np.float32)], axis=1).T  # [3,height*width]
    moved = F.affine(F.reshape(coefficients, (-1, 3)), _constant(homogeneous))
    return F.reshape(moved, (batch, count, 2, height, width))


def downsample(x: Variable, scale: float) -> Variable:
    """Anti-aliased downsampling (FOMM's AntiAliasInterpolation2d): Gaussian blur, then every (1/scale)-th pixel.

    x [N,C,H,W]; scale 1, 1/2, 1/3, 1/4 ...; 1 returns x itself.
    """
    if scale == 1:
        return x
    kernel = antialias_kernel(scale)
    flat = F.reshape(x, (-1, 1, *x.shape[2:]))  # [N*C,1,H,W]
    blurred = raw_convolution(flat, _constant(kernel[None, None]), None, len(kernel) // 2, stride=round(1 / scale))
    return F.reshape(blurred, (*x.shape[:2], *blurred.shape[2:]))


def antialias_kernel(scale: float) -> np.ndarray:
    """The blur before downsampling by ``scale``: sigma = (1/scale - 1) / 2, size 2 round(4 sigma) + 1, sum 1."""
    sigma = (1 / scale - 1) / 2
    size = 2 * round(sigma * 4) + 1
    offsets = np.arange(size, dtype=np.float64) - (size - 1) / 2
    line = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel = np.outer(line, line)
    return (kernel / kernel.sum()).astype(np.float32)


def resize(x: Variable, height: int, width: int) -> Variable:
    """Bilinear resizing of [N,C,H,W] with half-pixel centres; returns x itself when the size is right.

    A single row or column, which nnabla takes from the first one instead of the centre, is a ValueError.
    """
    if x.shape[2:] == (height, width):
        return x
    if min(height, width) < 2:
        raise ValueError(f"can't resize {x.shape} to {height}x{width}: at least 2 pixels a side")
    return F.interpolate(x, output_size=(height, width), mode="linear", align_corners=False, half_pixel=True)


def _constant(array: np.ndarray) -> Variable:
    return Variable.from_numpy_array(np.ascontiguousarray(array, dtype=np.float32))
