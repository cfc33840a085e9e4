"""An nnabla graph whose batch size and number of references are free, read by walking its functions.

nnabla's graphs have fixed shapes. Each is built twice, for different B and K; an axis that differs between the two is a
multiple of B, of K or of BK.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import nnabla as nn

from mrfomm.networks import ops


class Sizes(NamedTuple):
    """batch: B, driving frames; references: K."""

    batch: int
    references: int


SIZES = (Sizes(2, 3), Sizes(5, 7))


class Axis(NamedTuple):
    """The length of an axis: factor * B^batch * K^references, with exponents 0 or 1."""

    factor: int
    batch: int = 0
    references: int = 0

    @property
    def is_free(self) -> bool:
        """Whether the length depends on B or K."""
        return bool(self.batch or self.references)

    @property
    def label(self) -> int | str:
        """How ONNX names the axis: its length, or text such as `B` or `3*K`."""
        factor = [] if self.factor == 1 else [str(self.factor)]
        return "*".join([*factor, *"B" * self.batch, *"K" * self.references]) if self.is_free else self.factor


class Tensor(NamedTuple):
    """One Variable of a graph, as built for the first and for the second of SIZES."""

    first: nn.Variable
    second: nn.Variable

    @property
    def shape(self) -> tuple[Axis, ...]:
        """The axes; ValueError for one that depends on B and K in another way."""
        return tuple(map(_fit_axis, self.first.shape, self.second.shape))


class Call(NamedTuple):
    """A function of a graph. kind: nnabla's name for it; arguments: as in the first build, shapes included."""

    kind: str
    arguments: dict[str, Any]
    inputs: tuple[Tensor, ...]
    output: Tensor


class Signature(NamedTuple):
    """Names of a graph's inputs and outputs -> Variables, or Tensors once it is traced."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


def _fit_axis(first: int, second: int) -> Axis:
    for batch, references in itertools.product((0, 1), repeat=2):
        lengths = [size.batch**batch * size.references**references for size in SIZES]
        factor, rest = divmod(first, lengths[0])
        if rest == 0 and factor * lengths[1] == second:
            return Axis(factor, batch, references)
    raise ValueError(f"an axis of {first} at {SIZES[0]} and {second} at {SIZES[1]} is no multiple of B, K or BK")


def trace(build: Callable[[Sizes], Signature]) -> tuple[Signature, list[Call]]:
    """Build a graph for both SIZES and read it: (Signature of Tensors, the Calls in the order of computation)."""
    with ops.implementation(ops.NNABLA):
        first, second = (build(sizes) for sizes in SIZES)
    signature = Signature(*({name: Tensor(a[name], b[name]) for name in a} for a, b in zip(first, second)))
    functions = _functions(first.outputs), _functions(second.outputs)
    kinds, others = ([function.info.type_name for function in each] for each in functions)
    if kinds != others:
        raise ValueError(f"the graph has other functions at {SIZES[0]} than at {SIZES[1]}")
    return signature, list(map(_call, *functions))


def _functions(outputs: Mapping[str, nn.Variable]) -> list[Any]:
    """The functions behind Variables by name, each once, in the order of computation."""
    found: dict[nn.Variable, Any] = {}
    for output in outputs.values():
        output.visit(lambda function: found.setdefault(function.outputs[0], function))
    return list(found.values())


def _call(first: Any, second: Any) -> Call:
    inputs = tuple(map(Tensor, first.inputs, second.inputs))
    return Call(first.info.type_name, dict(first.info.args), inputs, Tensor(first.outputs[0], second.outputs[0]))
