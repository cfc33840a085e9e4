"""Functions of nnabla that compute on float32 arrays in main memory, whatever the current context."""

import ctypes
from collections.abc import Collection, Sequence
from typing import NamedTuple

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

_CONTEXT = nn.Context(["cpu:float"], "CpuCachedArray", "0")


class Gradient(NamedTuple):
    """Where the gradient of one input goes: its array, and whether to add to what it holds."""

    array: np.ndarray
    add: bool

    def put(self, value: np.ndarray) -> None:
        """Write or add ``value``, which may have another shape of the same size."""
        array, value = self.array, value.reshape(self.array.shape)
        if self.add:
            array += value
        else:
            array[...] = value


class ArrayFunction(PythonFunction):
    """A function with one output, of the given shape. Its subclasses see arrays, in ``forward(*inputs, output)`` and in
    ``backward(inputs, output's gradient, inputs' Gradients)``, where what isn't wanted, or needed for it, is None.
    """

    needs: Collection[tuple[int, int]] = ()  # (i, j): the gradient of input i depends on the values of input j

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(_CONTEXT)
        self._shape = shape

    def prepare(self) -> None:
        """Called before every computation, in its thread."""

    @property
    def name(self) -> str:
        return type(self).__name__.lstrip("_")

    def min_outputs(self) -> int:
        return 1

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return (i, j) in self.needs

    def setup_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        outputs[0].reset_shape(self._shape, True)

    def forward_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        self.prepare()
        self.forward(*(_array(v.data) for v in inputs), _array(outputs[0].data, write_only=True))

    def backward_impl(
        self, inputs: list[nn.Variable], outputs: list[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        self.prepare()
        wanted = [i for i, propagate in enumerate(propagate_down) if propagate]
        needed = {j for i, j in self.needs if i in wanted}  # others may have been freed
        arrays = [_array(v.data) if j in needed else None for j, v in enumerate(inputs)]
        grads = [
            Gradient(_array(v.grad, not accum[i]), accum[i]) if i in wanted else None for i, v in enumerate(inputs)
        ]
        self.backward(arrays, _array(outputs[0].grad), grads)


def _array(data: nn.NdArray, write_only: bool = False) -> np.ndarray:
    """The float32 array inside an NdArray: a reference, good while the NdArray lives.

    ``NdArray.data`` and ``cast`` look for a missing Python module in every call, which takes 0.1 ms.
    """
    address = data.data_ptr(np.float32, _CONTEXT, write_only)
    return np.ndarray(data.shape, np.float32, (ctypes.c_byte * (4 * data.size)).from_address(address))


def flat(array: np.ndarray) -> np.ndarray:
    """[N,C,H,W] -> [N,C,H*W], a view."""
    return array.reshape(*array.shape[:2], -1)
