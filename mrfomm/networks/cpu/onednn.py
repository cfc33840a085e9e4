"""Convolution by oneDNN: a small binding of its C API (version 3) through ctypes.

The library is ``libdnnl.so`` of the PyPI distribution ``onednn-cpu-gomp`` (Apache-2.0), found through the
distribution's list of files, so that no environment variable is needed.

Arrays are dense NCHW float32 on the outside. oneDNN computes in layouts of its own choice, mostly blocks of 8 or 16
channels, so an operand is reordered on its way in or out where the two differ (5 to 10 % of the time of a 3x3).

Threads: the engine and the compiled code (which oneDNN itself caches by shape, the last 1024 of them) are shared by
all. A :class:`Convolution` holds the addresses of the call in progress: it belongs to one function of one graph, which
nnabla never runs twice at once. Streams and scratch memory belong to the calling thread.
"""

import ctypes
import importlib.metadata
import math
import threading
import weakref
from collections.abc import Mapping, Sequence
from ctypes import Array, byref, c_int, c_int64, c_size_t, c_void_p
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

DISTRIBUTION = "onednn-cpu-gomp"
_LIBRARY = "libdnnl.so.3"

# From dnnl_types.h.
_CPU = 1  # dnnl_engine_kind_t
_IN_ORDER = 1  # dnnl_stream_flags_t
_FLOAT32 = 3  # dnnl_data_type_t
_ANY = 1  # dnnl_format_tag_t
_FORWARD_TRAINING = 64  # dnnl_prop_kind_t
_DIRECT = 1  # dnnl_alg_kind_t
_USER = 1  # dnnl_scratchpad_mode_t
_LAYOUT_OF_ARGUMENT = 255  # dnnl_query_t
_STATUS = {1: "out of memory", 2: "invalid arguments", 3: "unimplemented", 4: "no implementation", 5: "runtime error"}
_SRC, _DST, _WEIGHTS, _BIAS, _SCRATCHPAD = 1, 17, 33, 41, 80  # arguments of primitives
_DIFF = 128  # added to the first four: their gradients

_CACHE_LINE = 64  # bytes
_Dims = c_int64 * 12


class _Handle(c_void_p):
    """An object of the library."""


class _Argument(ctypes.Structure):  # dnnl_exec_arg_t
    _fields_ = (("index", c_int), ("memory", c_void_p))


_Shapes = Mapping[int, Sequence[int]]  # by argument
_Step = tuple[_Handle, "Array[_Argument]"]  # a primitive and what it is executed with


class ConvolutionShape(NamedTuple):
    """x [N,C,H,W], weights [O,C,kh,kw]; zero padding and stride in pixels, the same on all sides and both axes."""

    x: tuple[int, ...]
    weights: tuple[int, ...]
    bias: bool
    pad: int
    stride: int

    @property
    def y(self) -> tuple[int, ...]:
        """Shape of the output, [N,O,H',W']."""
        sizes = zip(self.x[2:], self.weights[2:])
        return (self.x[0], self.weights[0], *((s + 2 * self.pad - kernel) // self.stride + 1 for s, kernel in sizes))


class OneDNN:
    """The library, its CPU engine, and a stream and scratch memory for every thread that calls.

    Raises:
        ImportError: the distribution is not installed, or its library can't be loaded.
        RuntimeError: (all methods) a function of the library failed; the message names it.
    """

    def __init__(self) -> None:
        self.library = _load()
        self.engine = self.create("engine", "engine_create", _CPU, c_size_t(0))
        self.attributes = self.create("primitive_attr", "primitive_attr_create")
        # By default a primitive's scratchpad belongs to the thread that creates it, not to the one that runs it.
        self._call("primitive_attr_set_scratchpad_mode", self.attributes, _USER)
        self._thread = threading.local()

    def _call(self, function: str, *arguments: Any) -> None:
        """Ctypes passes an int as C's int: what is an address or a size_t must come as such."""
        status = getattr(self.library, f"dnnl_{function}")(*arguments)
        if status:
            raise RuntimeError(f"oneDNN: dnnl_{function}: {_STATUS.get(status, f'status {status}')}")

    def create(self, kind: str, function: str, *arguments: Any) -> _Handle:
        """A new object of the library, destroyed with its handle."""
        handle = _Handle()
        self._call(function, byref(handle), *arguments)
        destroy = weakref.finalize(handle, getattr(self.library, f"dnnl_{kind}_destroy"), c_void_p(handle.value))
        destroy.atexit = False  # the process takes it along
        return handle

    def dense(self, shape: Sequence[int]) -> _Handle:
        """The layout of a C-contiguous array."""
        strides = _Dims(*(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
        function = "memory_desc_create_with_strides"
        return self.create("memory_desc", function, len(shape), _Dims(*shape), _FLOAT32, strides)

    def free(self, shape: Sequence[int]) -> _Handle:
        """A layout left to the primitive's choice."""
        function = "memory_desc_create_with_tag"
        return self.create("memory_desc", function, len(shape), _Dims(*shape), _FLOAT32, _ANY)

    def wanted(self, description: _Handle, argument: int) -> _Handle:
        """The layout a primitive wants an argument in. It belongs to the description."""
        return self.library.dnnl_primitive_desc_query_md(description, _LAYOUT_OF_ARGUMENT, argument)

    def memory(self, layout: _Handle) -> _Handle:
        """A tensor without memory of its own, see :meth:`place`."""
        return self.create("memory", "memory_create", layout, self.engine, None)

    def place(self, memory: _Handle, address: int) -> None:
        self._call("memory_set_data_handle", memory, c_void_p(address))

    def step(self, description: _Handle, memories: Mapping[int, _Handle]) -> _Step:
        """A described primitive and its memories by argument, which the caller keeps alive."""
        arguments = (_Argument * len(memories))(*(_Argument(index, m.value) for index, m in memories.items()))
        return self.create("primitive", "primitive_create", description), arguments

    def reorder(self, source: tuple[_Handle, _Handle], target: tuple[_Handle, _Handle]) -> _Step:
        """Copy one (layout, memory) to another."""
        ends = (source[0], self.engine, target[0], self.engine)
        description = self.create("primitive_desc", "reorder_primitive_desc_create", *ends, None)
        return self.step(description, {_SRC: source[1], _DST: target[1]})

    def execute(self, steps: Sequence[_Step]) -> None:
        if not hasattr(self._thread, "stream"):
            self._thread.stream = self.create("stream", "stream_create", self.engine, _IN_ORDER)
        for primitive, arguments in steps:
            self._call("primitive_execute", primitive, self._thread.stream, len(arguments), arguments)
        self._call("stream_wait", self._thread.stream)

    def scratch(self, slot: int, size: int) -> int:
        """Address of ``size`` bytes for this thread, good until it asks for the same slot again."""
        buffers = self._thread.__dict__.setdefault("buffers", {})
        if slot not in buffers or buffers[slot].size < size + _CACHE_LINE:
            buffers[slot] = np.empty(size + _CACHE_LINE, np.uint8)
        address = buffers[slot].ctypes.data
        return address + -address % _CACHE_LINE


class _Operation:
    """A primitive on dense arrays of the given shapes by argument, called with the arrays in the same order."""

    def __init__(self, dnn: OneDNN, description: _Handle, shapes: _Shapes, outputs: Sequence[int]) -> None:
        self._dnn = dnn
        self._outer: list[_Handle] = []
        self._inner: list[tuple[_Handle, int, int]] = []  # memory, argument, bytes
        before, after, arguments = [], [], {}
        for argument, shape in shapes.items():
            dense, wanted = dnn.dense(shape), dnn.wanted(description, argument)
            outer = arguments[argument] = dnn.memory(dense)
            self._outer.append(outer)
            if not dnn.library.dnnl_memory_desc_equal(dense, wanted):
                inner = arguments[argument] = self._add_inner(argument, wanted)
                if argument in outputs:
                    after.append(dnn.reorder((wanted, inner), (dense, outer)))
                else:
                    before.append(dnn.reorder((dense, outer), (wanted, inner)))
        arguments[_SCRATCHPAD] = self._add_inner(_SCRATCHPAD, dnn.wanted(description, _SCRATCHPAD))
        self._steps = [*before, dnn.step(description, arguments), *after]

    def _add_inner(self, argument: int, layout: _Handle) -> _Handle:
        """A memory that is placed in this thread's scratch memory for every call."""
        memory = self._dnn.memory(layout)
        self._inner.append((memory, argument, self._dnn.library.dnnl_memory_desc_get_size(layout)))
        return memory

    def __call__(self, *arrays: np.ndarray) -> None:
        for memory, array in zip(self._outer, arrays):
            self._dnn.place(memory, array.ctypes.data)
        for memory, argument, size in self._inner:
            self._dnn.place(memory, self._dnn.scratch(argument, size))
        self._dnn.execute(self._steps)


class Convolution:
    """A convolution of one shape and its gradients, on C-contiguous float32 arrays. Not for two threads at once."""

    def __init__(self, dnn: OneDNN, shape: ConvolutionShape) -> None:
        self._dnn = dnn
        self._shapes = {_SRC: shape.x, _WEIGHTS: shape.weights, _DST: shape.y}
        if shape.bias:
            self._shapes[_BIAS] = shape.weights[:1]
        stride, no_dilation, pad = _Dims(*[shape.stride] * 2), _Dims(), _Dims(*[shape.pad] * 2)
        self._geometry = (stride, no_dilation, pad, pad)
        self._description = self._describe("forward", _FORWARD_TRAINING, _DIRECT, *self._layouts())

    def _layouts(self) -> list[_Handle | None]:
        bias = self._dnn.dense(self._shapes[_BIAS]) if _BIAS in self._shapes else None
        x, weights, y = (self._dnn.free(self._shapes[argument]) for argument in (_SRC, _WEIGHTS, _DST))
        return [x, weights, bias, y]

    def _describe(self, direction: str, *arguments: Any, hint: Sequence[_Handle] = ()) -> _Handle:
        function = f"convolution_{direction}_primitive_desc_create"
        options = (*self._geometry, *hint, self._dnn.attributes)
        return self._dnn.create("primitive_desc", function, self._dnn.engine, *arguments, *options)

    def _operation(self, description: _Handle, inputs: Sequence[int], outputs: Sequence[int]) -> _Operation:
        kinds = {argument: argument & ~_DIFF for argument in (*inputs, *outputs)}
        shapes = {argument: self._shapes[kind] for argument, kind in kinds.items() if kind in self._shapes}
        return _Operation(self._dnn, description, shapes, outputs)

    @cached_property
    def forward(self) -> _Operation:
        """Callable (x, weights, [bias,] y): writes y."""
        return self._operation(self._description, (_SRC, _WEIGHTS, _BIAS), (_DST,))

    @cached_property
    def backward_x(self) -> _Operation:
        """Callable (weights, dy, dx): writes dx."""
        x, weights, _, y = self._layouts()
        description = self._describe("backward_data", _DIRECT, x, weights, y, hint=(self._description,))
        return self._operation(description, (_WEIGHTS, _DIFF + _DST), (_DIFF + _SRC,))

    @cached_property
    def backward_weights(self) -> _Operation:
        """Callable (x, dy, dweights[, dbias]): writes dweights and dbias."""
        description = self._describe("backward_weights", _DIRECT, *self._layouts(), hint=(self._description,))
        return self._operation(description, (_SRC, _DIFF + _DST), (_DIFF + _WEIGHTS, _DIFF + _BIAS))


def _load() -> ctypes.CDLL:
    """The library, from the distribution's list of files, with the types of results that are no status."""
    try:
        files = importlib.metadata.files(DISTRIBUTION) or ()
        library = ctypes.CDLL(str(next(file.locate() for file in files if file.name == _LIBRARY)))
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"{DISTRIBUTION} is not installed") from error
    except StopIteration as error:
        raise ImportError(f"{DISTRIBUTION} lists no {_LIBRARY}") from error
    except OSError as error:
        raise ImportError(f"{DISTRIBUTION} can't be loaded: {error}") from error
    library.dnnl_memory_desc_get_size.restype = c_size_t
    library.dnnl_primitive_desc_query_md.restype = _Handle
    return library
