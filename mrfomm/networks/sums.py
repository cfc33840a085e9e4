"""Sums over the innermost axes as matrix products.

nnabla's CUDA extension 1.39 computes ``F.sum`` and ``F.mean`` over innermost axes, and the backward pass of whatever
broadcasts along them, by warp shuffles with a mask of 28 of the 32 lanes. GPUs up to Ada let that pass; on Hopper the
process dies of an illegal instruction (docs/scaling.md, tests/networks/test_hopper.py). Products with ones run
everywhere.
"""

import math
from collections.abc import Iterable

import nnabla.functions as F
import numpy as np
from nnabla import NdArray, Variable


def sum_last(x: Variable, copies: int = 1) -> Variable:
    """The sum over the last axis, ``copies`` times: [...,m] -> [...,copies]. It broadcasts an x [...,1]."""
    *outer, length = x.shape
    ones = Variable.from_numpy_array(np.ones((length, copies), np.float32))
    return F.reshape(F.affine(F.reshape(x, (-1, length)), ones), (*outer, copies))


def mean(x: Variable) -> Variable:
    """The mean of all values, a scalar. In two steps, as one vector of ones would be as large as x."""
    rows = math.prod(x.shape[: x.ndim // 2])
    partial = sum_last(F.reshape(x, (rows, -1)))  # [rows,1]
    return F.reshape(sum_last(F.reshape(partial, (1, rows))), ()) / x.size


def sum_of_squares(arrays: Iterable[NdArray]) -> Variable:
    """The sum of the squares of all values of the arrays, which are read where they lie: [1,1]."""
    return sum_last(F.reshape(F.concatenate(*map(_squares_of_rows, arrays), axis=0), (1, -1)))


def _squares_of_rows(array: NdArray) -> Variable:
    """[n,...] -> [n,1,1]."""
    rows = Variable((array.shape[0], 1, array.size // array.shape[0]))
    rows.data = array.view(rows.shape)
    return F.batch_matmul(rows, rows, transpose_b=True)
