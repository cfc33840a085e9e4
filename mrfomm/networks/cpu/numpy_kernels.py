"""The loops of ``kernels`` that batch normalisation needs, without numba. Sums and statistics are float64."""

import numpy as np
from numpy import ndarray

from mrfomm.networks.cpu.batch_norm import Line


def batch_statistics(x: ndarray, mean: ndarray, var: ndarray) -> None:
    count = x.size // x.shape[1]
    mean[:] = _sum(x) / count
    # Squares of float32 numbers are exact in float64, where their cancellation costs nothing that x holds.
    var[:] = np.maximum(_sum(np.square(x, dtype=np.float64)) / count - mean**2, 0)


def normalize(x: ndarray, line: Line, y: ndarray) -> None:
    mean, scale, shift, floor = line
    np.maximum((x - mean[:, None]) * scale[:, None] + shift[:, None], floor, out=y)


def normalize_sums(x: ndarray, dy: ndarray, line: Line, sum_dz: ndarray, sum_dz_x: ndarray) -> None:
    centred, dz = _centred(x, dy, line)
    sum_dz[:], sum_dz_x[:] = _sum(dz), _sum(dz * centred)


def normalize_backward(
    x: ndarray, dy: ndarray, line: Line, slope: ndarray, offset: ndarray, accumulate: bool, dx: ndarray
) -> None:
    centred, dz = _centred(x, dy, line)
    value = dz * line[1][:, None] + centred * slope[:, None] + offset[:, None]
    dx[...] = dx + value if accumulate else value


def _centred(x: ndarray, dy: ndarray, line: Line) -> tuple[ndarray, ndarray]:
    """x - mean, and dz: dy where z > floor, else 0."""
    mean, scale, shift, floor = line
    centred = x - mean[:, None]
    return centred, dy * (centred * scale[:, None] + shift[:, None] > floor)


def _sum(x: ndarray) -> ndarray:
    """Sum of [N,C,S] over all but the channels, in float64: [C]."""
    return x.sum(axis=2, dtype=np.float64).sum(axis=0)
