"""Loops over arrays, compiled by numba: batch normalization with ReLU, multiplication by maps, pooling, warping.

Arrays are C-contiguous float32, with the axes of the image flattened into one; the last ones of a loop's arguments are
written. Each turn of a ``prange`` writes memory of its own and sums in a fixed order, so results do not depend on the
number of threads.

Compiled code is kept beside this file or, where that can't be written, in the user's cache folder (``NUMBA_CACHE_DIR``
overrides both). Where there is neither, every process compiles anew, which takes some ten seconds.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange
from numpy import ndarray

from mrfomm.networks.cpu.batch_norm import Line

ZERO: Any = np.float32(0)  # numba computes in float64 where a Python number meets a float32
ONE: Any = np.float32(1)
BLOCK = 512  # points of a warp that one thread takes at once

# A sum may be reordered to fill vector registers; nan and infinity keep their meaning.
_FAST_SUMS = {"reassoc", "contract", "nsz"}


def _compiled(function: Callable, parallel: bool = False) -> Any:
    options: dict = {"nogil": True, "fastmath": _FAST_SUMS, "parallel": parallel}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder for compiled code
        return numba.njit(**options)(function)


_parallel = functools.partial(_compiled, parallel=True)


@_parallel
def batch_statistics(x: ndarray, mean: ndarray, var: ndarray) -> None:
    """Mean and biased variance of x [N,C,S] over N and S, into mean and var [C]."""
    batch, channels, size = x.shape
    for c in prange(channels):
        total = 0.0
        for n in range(batch):
            for i in range(size):
                total += x[n, c, i]
        average = total / (batch * size)
        squares = 0.0
        for n in range(batch):
            for i in range(size):
                difference = x[n, c, i] - average
                squares += difference * difference
        mean[c] = average
        var[c] = squares / (batch * size)


@_parallel
def normalize(x: ndarray, line: Line, y: ndarray) -> None:
    """y = max(z, floor): x, y [N,C,S]."""
    mean, scale, shift, floor = line
    batch, channels, size = x.shape
    for row in prange(batch * channels):
        n, c = row // channels, row % channels
        for i in range(size):
            z = (x[n, c, i] - mean[c]) * scale[c] + shift[c]
            y[n, c, i] = floor if z < floor else z


@_parallel
def normalize_sums(x: ndarray, dy: ndarray, line: Line, sum_dz: ndarray, sum_dz_x: ndarray) -> None:
    """What the gradients of :func:`normalize` are made of: the sums [C] over N and S of dz and of dz * (x - mean).

    dz is dy where z > floor, else 0. x, dy [N,C,S].
    """
    mean, scale, shift, floor = line
    batch, channels, size = x.shape
    for c in prange(channels):
        total = 0.0
        total_x = 0.0
        for n in range(batch):
            for i in range(size):
                centred = x[n, c, i] - mean[c]
                dz = dy[n, c, i] if centred * scale[c] + shift[c] > floor else ZERO
                total += dz
                total_x += dz * centred
        sum_dz[c] = total
        sum_dz_x[c] = total_x


@_parallel
def normalize_backward(
    x: ndarray, dy: ndarray, line: Line, slope: ndarray, offset: ndarray, accumulate: bool, dx: ndarray
) -> None:
    """dx (+)= dz * scale + (x - mean) * slope + offset, dz as in :func:`normalize_sums`; slope, offset [C]."""
    mean, scale, shift, floor = line
    batch, channels, size = x.shape
    for row in prange(batch * channels):
        n, c = row // channels, row % channels
        for i in range(size):
            centred = x[n, c, i] - mean[c]
            dz = dy[n, c, i] if centred * scale[c] + shift[c] > floor else ZERO
            value = dz * scale[c] + centred * slope[c] + offset[c]
            dx[n, c, i] = dx[n, c, i] + value if accumulate else value


@_parallel
def multiply(x: ndarray, weight: ndarray, accumulate: bool, y: ndarray) -> None:
    """y (+)= x * weight, the same for every channel: x, y [N,C,S], weight [N,S]."""
    batch, channels, size = x.shape
    for row in prange(batch * channels):
        n, c = row // channels, row % channels
        for i in range(size):
            value = x[n, c, i] * weight[n, i]
            y[n, c, i] = y[n, c, i] + value if accumulate else value


@_parallel
def multiply_sum(x: ndarray, y: ndarray, accumulate: bool, total: ndarray) -> None:
    """total [N,S] (+)= sum over the channels of x * y: x, y [N,C,S]."""
    batch, channels, size = x.shape
    for n in prange(batch):
        for c in range(channels):
            add = accumulate or c > 0
            for i in range(size):
                value = x[n, c, i] * y[n, c, i]
                total[n, i] = total[n, i] + value if add else value


@_parallel
def halve(x: ndarray, scale: np.float32, accumulate: bool, y: ndarray) -> None:
    """y (+)= scale * the sum of every 2x2 of x: x [M,H,W], y [M,H//2,W//2]."""
    maps, height, width = y.shape
    for m in prange(maps):
        for i in range(height):
            for j in range(width):
                above = x[m, 2 * i, 2 * j] + x[m, 2 * i, 2 * j + 1]
                value = scale * (above + x[m, 2 * i + 1, 2 * j] + x[m, 2 * i + 1, 2 * j + 1])
                y[m, i, j] = y[m, i, j] + value if accumulate else value


@_parallel
def double(x: ndarray, scale: np.float32, accumulate: bool, y: ndarray) -> None:
    """y (+)= scale * every pixel of x as 2x2, 0 beyond: x [M,H//2,W//2], y [M,H,W]."""
    maps, height, width = y.shape
    for m in prange(maps):
        for i in range(height):
            for j in range(width):
                inside = i // 2 < x.shape[1] and j // 2 < x.shape[2]
                value = scale * x[m, i // 2, j // 2] if inside else ZERO
                y[m, i, j] = y[m, i, j] + value if accumulate else value


@_compiled
def _neighbours(coordinate: np.float32, size: int) -> tuple:
    """The two pixels around a coordinate in [-1,1] (corners on pixel centres) of an axis with ``size`` pixels.

    (index, index, weight, weight, slope, slope): a pixel outside has weight and slope 0 and a valid index. Slopes are
    the derivatives of the weights by the coordinate. A coordinate that is nan has weights nan.
    """
    half = np.float32(0.5) * np.float32(size - 1)
    last = np.float32(size - 1)
    position = (coordinate + ONE) * half
    first = np.floor(position)
    fraction = position - first
    second = first + ONE
    first_outside = first < ZERO or first > last
    second_outside = second < ZERO or second > last
    return (
        _clip(first, last),
        _clip(second, last),
        ZERO if first_outside else ONE - fraction,
        ZERO if second_outside else fraction,
        ZERO if first_outside else -half,
        ZERO if second_outside else half,
    )


@_compiled
def _clip(position: np.float32, last: np.float32) -> np.int32:
    inner = position if position > ZERO else ZERO  # nan becomes 0
    return np.int32(inner if inner < last else last)


@_parallel
def warp_taps(grid: ndarray, height: int, width: int, index: ndarray, weight: ndarray) -> None:
    """The four pixels of an image [height,width] that each point of grid [N,P,2] is interpolated from.

    index int32 [N,P,4] receives positions in the flattened image, weight [N,P,4] their weights, 0 outside of the image.
    """
    batch, points, _ = grid.shape
    for n in prange(batch):
        for p in range(points):
            left, right, at_left, at_right, _, _ = _neighbours(grid[n, p, 0], width)
            top, bottom, at_top, at_bottom, _, _ = _neighbours(grid[n, p, 1], height)
            index[n, p, 0], weight[n, p, 0] = top * width + left, at_top * at_left
            index[n, p, 1], weight[n, p, 1] = top * width + right, at_top * at_right
            index[n, p, 2], weight[n, p, 2] = bottom * width + left, at_bottom * at_left
            index[n, p, 3], weight[n, p, 3] = bottom * width + right, at_bottom * at_right


@_parallel
def warp_forward(x: ndarray, index: ndarray, weight: ndarray, y: ndarray) -> None:
    """y [N,C,P] = x [N,C,S] interpolated at the taps [N,P,4]."""
    batch, channels, points = y.shape
    for row in prange(batch * channels):
        n, c = row // channels, row % channels
        plane = x[n, c]
        for p in range(points):
            i, w = index[n, p], weight[n, p]
            y[n, c, p] = plane[i[0]] * w[0] + plane[i[1]] * w[1] + plane[i[2]] * w[2] + plane[i[3]] * w[3]


@_parallel
def warp_backward_x(dy: ndarray, index: ndarray, weight: ndarray, dx: ndarray) -> None:
    """dx [N,C,S] += dy [N,C,P] scattered to the taps [N,P,4]."""
    batch, channels, points = dy.shape
    for row in prange(batch * channels):
        n, c = row // channels, row % channels
        plane = dx[n, c]
        for p in range(points):
            for tap in range(4):
                plane[index[n, p, tap]] += weight[n, p, tap] * dy[n, c, p]


@_parallel
def warp_products(x: ndarray, dy: ndarray, index: ndarray, product: ndarray) -> None:
    """product [N,P,4] = sum over the channels of x [N,C,S] at each tap times dy [N,C,P]."""
    batch, channels, points = dy.shape
    blocks = (points + BLOCK - 1) // BLOCK
    for block in prange(batch * blocks):
        n, first = block // blocks, block % blocks * BLOCK
        last = min(first + BLOCK, points)
        product[n, first:last] = ZERO
        for c in range(channels):
            for p in range(first, last):
                for tap in range(4):
                    product[n, p, tap] += x[n, c, index[n, p, tap]] * dy[n, c, p]


@_parallel
def warp_backward_grid(
    grid: ndarray, height: int, width: int, product: ndarray, accumulate: bool, dgrid: ndarray
) -> None:
    """dgrid [N,P,2] (+)= the gradient by the grid, from the products [N,P,4] of :func:`warp_products`."""
    batch, points, _ = grid.shape
    for n in prange(batch):
        for p in range(points):
            _, _, at_left, at_right, by_left, by_right = _neighbours(grid[n, p, 0], width)
            _, _, at_top, at_bottom, by_top, by_bottom = _neighbours(grid[n, p, 1], height)
            top_left, top_right, bottom_left, bottom_right = product[n, p]
            dx = at_top * (by_left * top_left + by_right * top_right)
            dx += at_bottom * (by_left * bottom_left + by_right * bottom_right)
            dy = at_left * (by_top * top_left + by_bottom * bottom_left)
            dy += at_right * (by_top * top_right + by_bottom * bottom_right)
            dgrid[n, p, 0] = dgrid[n, p, 0] + dx if accumulate else dx
            dgrid[n, p, 1] = dgrid[n, p, 1] + dy if accumulate else dy
