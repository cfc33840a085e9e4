"""An ONNX graph in the making, and the file that it becomes."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import mrfomm
from mrfomm.errors import AnyPath, UserError
from mrfomm.onnx.trace import SIZES, Axis, Call, Signature, Tensor
from mrfomm.store import whole_file

OPSET = 16  # the first with GridSample
IR_VERSION = 8
FLOAT = 1  # onnx.TensorProto's number for float32
KEPT = (np.int64, np.float16)  # types of constants; all others become float32

Value = str | Tensor | np.ndarray | list[int] | list[float] | None


class Node(NamedTuple):
    """One ONNX operator: inputs and output are names of values."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[tuple[str, Any], ...] = ()


class Graph:
    """The nodes and constants that stand for the calls of a traced graph; whoever converts one binds its output.

    Args:
        rewrites: what is tried on each convolution first, see ``convolutions.Rewrite``.
        half: convolutions' weights are stored in half precision, and widened when the graph is loaded.
    """

    def __init__(
        self,
        signature: Signature,
        calls: Sequence[Call],
        rewrites: Sequence[Callable[..., str | None]] = (),
        half: bool = False,
    ) -> None:
        self.rewrites = rewrites
        self._half = half
        self._signature = signature
        self._producers = {call.output.first: call for call in calls}
        self._readers = {tensor.first: ["output"] for tensor in signature.outputs.values()}
        for call in calls:
            for tensor in call.inputs:
                self._readers.setdefault(tensor.first, []).append(call.kind)
        self._names = {tensor.first: name for name, tensor in signature.inputs.items()}
        self._nodes: dict[Node, Node] = {}  # without its output -> with it: what is computed once needn't be twice
        self._constants: dict[Any, tuple[str, np.ndarray]] = {}  # digest -> (name, array)

    def bind(self, tensor: Tensor, name: str) -> None:
        """Let a value stand for a Tensor of the traced graph."""
        self._names[tensor.first] = name

    def add(self, op: str, *inputs: Value, **attributes: Any) -> str:
        """Add an operator and return the name of its output.

        Args:
            inputs: names, numbers, Tensors of the traced graph, or None for an optional input left out.
            attributes: of the operator; sequences as tuples.
        """
        node = Node(op, tuple(map(self._name, inputs)), "", tuple(sorted(attributes.items())))
        return self._nodes.setdefault(node, node._replace(output=f"{op}_{len(self._nodes)}")).output

    def weight(self, numbers: np.ndarray) -> Value:
        """A convolution's weight, as an input of ``add``."""
        return self.add("Cast", numbers.astype(np.float16), to=FLOAT) if self._half else numbers

    def shape(self, axes: Sequence[Axis]) -> str:
        """The name of an int64 vector with the lengths of axes."""
        if not any(axis.is_free for axis in axes):
            return self._name(np.array([axis.factor for axis in axes], np.int64))
        return self.add("Concat", *map(self._length, axes), axis=0)

    def producer(self, tensor: Tensor, kind: str) -> Call | None:
        """The Call that computes ``tensor`` if it is of that kind."""
        call = self._producers.get(tensor.first)
        return call if call is not None and call.kind == kind else None

    def folded(self, tensor: Tensor) -> Call | None:
        """The convolution that computes ``tensor`` if batch norm, and nothing else, reads it."""
        alone = self._readers[tensor.first] == ["BatchNormalization"]
        return self.producer(tensor, "Convolution") if alone else None

    def finish(self) -> tuple[list[Node], dict[str, np.ndarray]]:
        """(nodes that the outputs need, in order; constants that these need, by name)."""
        nodes = [Node("Identity", (self._name(tensor),), name) for name, tensor in self._signature.outputs.items()]
        needed = {name for node in nodes for name in node.inputs}
        for node in reversed(list(self._nodes.values())):
            if node.output in needed:
                nodes.insert(0, node)
                needed.update(node.inputs)
        return nodes, {name: array for name, array in self._constants.values() if name in needed}

    def _name(self, value: Value) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, Tensor):
            if value.first not in self._names:
                self._names[value.first] = self._leaf(value)
            return self._names[value.first]
        numbers = np.asarray(value)
        array = np.ascontiguousarray(numbers, numbers.dtype if numbers.dtype in KEPT else np.float32)
        key = (hashlib.sha256(array.data).digest(), array.shape, array.dtype.char)
        return self._constants.setdefault(key, (f"constant_{len(self._constants)}", array))[0]

    def _leaf(self, tensor: Tensor) -> str:
        """A Variable that nothing computes. Along free axes it has to repeat itself; it may scale with 1/K."""
        first, second = tensor.first.d, tensor.second.d
        once = tuple(slice(0, 1) if axis.is_free else slice(None) for axis in tensor.shape)
        one, other = first[once], second[once]
        repeats = np.array_equal(first, np.broadcast_to(one, first.shape))
        if repeats and np.array_equal(one, other):
            entry = self._name(one)
        elif repeats and np.allclose(one * SIZES[0].references, other * SIZES[1].references):
            count = self.add("Cast", self._length(Axis(1, references=1)), to=FLOAT)
            entry = self.add("Div", one * SIZES[0].references, count)
        else:
            raise ValueError(f"a constant of shape {first.shape} depends on B and K in an unknown way")
        return entry if first.shape == second.shape else self.add("Expand", entry, self.shape(tensor.shape))

    def _length(self, axis: Axis) -> str:
        """The name of an int64 vector [1] with the length of an axis."""
        free = [Axis(1, batch=1)] * axis.batch + [Axis(1, references=1)] * axis.references
        product, *lengths = [*map(self._size, free), self._name([axis.factor])]
        for length in lengths if axis.factor != 1 else lengths[:-1]:
            product = self.add("Mul", product, length)
        return product

    def _size(self, wanted: Axis) -> str:
        for name, tensor in self._signature.inputs.items():
            for i, axis in enumerate(tensor.shape):
                if axis == wanted:
                    return self.add("Shape", name, start=i, end=i + 1)
        raise ValueError(f"no input has an axis {wanted.label}")

    def write(self, name: str, path: AnyPath) -> None:
        """Write the graph under its name as an ONNX file, aside and then renamed; UserError without the extra."""
        try:
            from onnx import helper, numpy_helper
        except ImportError as error:
            raise UserError(f"exporting needs the package onnx ({error}); pip install -e .[onnx]") from error
        nodes, constants = self.finish()
        inputs, outputs = (
            [helper.make_tensor_value_info(key, FLOAT, [axis.label for axis in tensor.shape]) for key, tensor in values]
            for values in (self._signature.inputs.items(), self._signature.outputs.items())
        )
        made = [helper.make_node(op, inputs, [output], output, **dict(rest)) for op, inputs, output, rest in nodes]
        versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
        producer = {"producer_name": "mrfomm", "producer_version": mrfomm.__version__}
        model = helper.make_model(helper.make_graph(made, name, inputs, outputs), **versions, **producer)
        for key, array in constants.items():  # one by one: the helpers above would copy the weights twice more
            model.graph.initializer.append(numpy_helper.from_array(array, key))
        with whole_file(path) as aside:
            aside.write_bytes(model.SerializeToString())
