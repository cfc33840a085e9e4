"""Convolution by oneDNN: a small typed binding of its C API (version 3) through ctypes.

The library is ``libdnnl.so`` of the PyPI distribution ``onednn-cpu-gomp`` (Apache-2.0). It is found through the
distribution's list of files, so no environment variable is needed. Only what a convolution needs is bound: memory,
reorders and the three primitives of a convolution.

Arrays are dense NCHW float32 on the outside. oneDNN computes in layouts of its own choice, mostly blocks of 8 or 16
channels, so an operand is reordered on its way in or out where the two differ (5 to 10 % of the time of a 3x3).

Threads: the engine and the compiled code (which oneDNN itself caches by shape, the last 1024 of them) are shared by
all. A :class:`Convolution` holds the addresses of the call in progress: it belongs to one function of one graph, which
nnabla never runs twice at once. Streams and scratch memory belong to the calling thread.
"""

import ctypes
import importlib.metadata
import threading
import weakref
from ctypes import POINTER, byref, c_int, c_int64, c_size_t, c_uint, c_void_p
from functools import cached_property
from typing import NamedTuple

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
_STATUS = {1: "out of memory", 2: "invalid arguments", 3: "unimplemented", 4: "no implementation", 5: "runtime error"}
# Arguments of primitives, and the queries for the layouts that a primitive wants them in.
_SRC, _DST, _WEIGHTS, _BIAS, _SCRATCHPAD = 1, 17, 33, 41, 80
_DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS, _DIFF_BIAS = 129, 145, 161, 169
_QUERY = {_SRC: 129, _DIFF_SRC: 130, _WEIGHTS: 131, _DIFF_WEIGHTS: 132, _DST: 133, _DIFF_DST: 134, _SCRATCHPAD: 136}

_CACHE_LINE = 64  # bytes

_Dims = c_int64 * 12


class _Engine(c_void_p):
    destroy = "dnnl_engine_destroy"


class _Stream(c_void_p):
    destroy = "dnnl_stream_destroy"


class _Layout(c_void_p):  # dnnl_memory_desc_t
    destroy = "dnnl_memory_desc_destroy"


class _Memory(c_void_p):
    destroy = "dnnl_memory_destroy"


class _Attributes(c_void_p):
    destroy = "dnnl_primitive_attr_destroy"


class _Description(c_void_p):  # dnnl_primitive_desc_t
    destroy = "dnnl_primitive_desc_destroy"


class _Primitive(c_void_p):
    destroy = "dnnl_primitive_destroy"


class _Argument(ctypes.Structure):  # dnnl_exec_arg_t
    _fields_ = (("index", c_int), ("memory", c_void_p))


_GEOMETRY = (_Dims, _Dims, _Dims, _Dims)  # strides, dilations, padding before, padding after
_STATUS_FUNCTIONS = {
    "dnnl_engine_create": (POINTER(_Engine), c_int, c_size_t),
    "dnnl_engine_destroy": (_Engine,),
    "dnnl_stream_create": (POINTER(_Stream), _Engine, c_uint),
    "dnnl_stream_wait": (_Stream,),
    "dnnl_stream_destroy": (_Stream,),
    "dnnl_memory_desc_create_with_strides": (POINTER(_Layout), c_int, _Dims, c_int, _Dims),
    "dnnl_memory_desc_create_with_tag": (POINTER(_Layout), c_int, _Dims, c_int, c_int),
    "dnnl_memory_desc_destroy": (_Layout,),
    "dnnl_memory_create": (POINTER(_Memory), _Layout, _Engine, c_void_p),
    "dnnl_memory_set_data_handle": (_Memory, c_void_p),
    "dnnl_memory_destroy": (_Memory,),
    "dnnl_primitive_attr_create": (POINTER(_Attributes),),
    "dnnl_primitive_attr_set_scratchpad_mode": (_Attributes, c_int),
    "dnnl_primitive_attr_destroy": (_Attributes,),
    "dnnl_convolution_forward_primitive_desc_create": (
        *(POINTER(_Description), _Engine, c_int, c_int, _Layout, _Layout, _Layout, _Layout),
        *(*_GEOMETRY, _Attributes),
    ),
    "dnnl_convolution_backward_data_primitive_desc_create": (
        *(POINTER(_Description), _Engine, c_int, _Layout, _Layout, _Layout),
        *(*_GEOMETRY, _Description, _Attributes),
    ),
    "dnnl_convolution_backward_weights_primitive_desc_create": (
        *(POINTER(_Description), _Engine, c_int, _Layout, _Layout, _Layout, _Layout),
        *(*_GEOMETRY, _Description, _Attributes),
    ),
    "dnnl_reorder_primitive_desc_create": (POINTER(_Description), _Layout, _Engine, _Layout, _Engine, _Attributes),
    "dnnl_primitive_desc_destroy": (_Description,),
    "dnnl_primitive_create": (POINTER(_Primitive), _Description),
    "dnnl_primitive_execute": (_Primitive, _Stream, c_int, POINTER(_Argument)),
    "dnnl_primitive_destroy": (_Primitive,),
}
_VALUE_FUNCTIONS = {
    "dnnl_memory_desc_equal": (c_int, _Layout, _Layout),
    "dnnl_memory_desc_get_size": (c_size_t, _Layout),
    "dnnl_primitive_desc_query_md": (_Layout, _Description, c_int, c_int),
}


class ConvolutionShape(NamedTuple):
    """x [N,C,H,W], weights [O,C,kh,kw]; zero padding and stride in pixels, the same on all sides and both axes."""

    x: tuple[int, int, int, int]
    weights: tuple[int, int, int, int]
    bias: bool
    pad: int
    stride: int

    @property
    def y(self):
        """Shape of the output, [N,O,H',W']."""
        sizes = zip(self.x[2:], self.weights[2:])
        height, width = ((size + 2 * self.pad - kernel) // self.stride + 1 for size, kernel in sizes)
        return (self.x[0], self.weights[0], height, width)

    @property
    def parameters(self):
        """Shapes of the weights and, where there is one, of the bias [O]."""
        return [self.weights, self.weights[:1]] if self.bias else [self.weights]


class OneDNN:
    """The library, its CPU engine, and a stream and scratch memory for every thread that calls.

    Raises:
        ImportError: the distribution is not installed, or its library can't be loaded.
        RuntimeError: (all methods) a function of the library failed; the message names it.
    """

    def __init__(self):
        self.library = _load()
        self._engine = self._create(_Engine, "dnnl_engine_create", _CPU, 0)
        self._attributes = self._create(_Attributes, "dnnl_primitive_attr_create")
        # By default a primitive's scratchpad belongs to the thread that creates it, not to the one that runs it.
        self.library.dnnl_primitive_attr_set_scratchpad_mode(self._attributes, _USER)
        self._thread = threading.local()

    def _create(self, kind, function, *arguments):
        """A new object of the library, destroyed with its handle."""
        handle = kind()
        getattr(self.library, function)(byref(handle), *arguments)
        destroy = weakref.finalize(handle, getattr(self.library, kind.destroy), kind(handle.value))
        destroy.atexit = False  # the process takes it along
        return handle

    def dense(self, shape):
        """The layout of a C-contiguous array."""
        strides = _Dims(*(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))))
        name = "dnnl_memory_desc_create_with_strides"
        return self._create(_Layout, name, len(shape), _Dims(*shape), _FLOAT32, strides)

    def free(self, shape):
        """A layout left to the primitive's choice."""
        return self._create(_Layout, "dnnl_memory_desc_create_with_tag", len(shape), _Dims(*shape), _FLOAT32, _ANY)

    def convolution(self, shape, direction, *arguments, hint=()):
        """Describe a convolution's primitive; ``direction`` is forward, backward_data or backward_weights."""
        stride, no_dilation, pad = _Dims(*[shape.stride] * 2), _Dims(), _Dims(*[shape.pad] * 2)
        geometry = (stride, no_dilation, pad, pad)
        name = f"dnnl_convolution_{direction}_primitive_desc_create"
        return self._create(_Description, name, self._engine, *arguments, *geometry, *hint, self._attributes)

    def reorder(self, source, target):
        """The primitive that copies an array from one layout to another."""
        name = "dnnl_reorder_primitive_desc_create"
        return self.primitive(self._create(_Description, name, source, self._engine, target, self._engine, None))

    def primitive(self, description):
        return self._create(_Primitive, "dnnl_primitive_create", description)

    def wanted(self, description, argument):
        """The layout a primitive wants an argument in. It belongs to the description."""
        return self.library.dnnl_primitive_desc_query_md(description, _QUERY[argument], 0)

    def memory(self, layout):
        """A tensor without memory of its own, see :meth:`place`."""
        return self._create(_Memory, "dnnl_memory_create", layout, self._engine, None)

    def place(self, memory, address):
        self.library.dnnl_memory_set_data_handle(memory, address)

    def execute(self, primitive, arguments):
        self.library.dnnl_primitive_execute(primitive, self._stream(), len(arguments), arguments)

    def wait(self):
        self.library.dnnl_stream_wait(self._stream())

    def _stream(self):
        if not hasattr(self._thread, "stream"):
            self._thread.stream = self._create(_Stream, "dnnl_stream_create", self._engine, _IN_ORDER)
        return self._thread.stream

    def scratch(self, slot, size):
        """Address of ``size`` bytes for this thread, good until it asks for the same slot again."""
        buffers = self._thread.__dict__.setdefault("buffers", {})
        if slot not in buffers or buffers[slot].size < size + _CACHE_LINE:
            buffers[slot] = np.empty(size + _CACHE_LINE, np.uint8)
        address = buffers[slot].ctypes.data
        return address + -address % _CACHE_LINE


class _Operand:
    """An argument of a primitive: a dense array outside, the primitive's own layout inside."""

    def __init__(self, dnn, index, shape, layout, output):
        self._dnn, self.index, self._output = dnn, index, output
        dense = dnn.dense(shape)
        self._outer = self.inner = dnn.memory(dense)
        self._reorder = None
        if layout is not None and not dnn.library.dnnl_memory_desc_equal(dense, layout):
            self.inner = dnn.memory(layout)
            self._size = dnn.library.dnnl_memory_desc_get_size(layout)
            self._reorder = dnn.reorder(layout, dense) if output else dnn.reorder(dense, layout)
            source, target = (self.inner, self._outer) if output else (self._outer, self.inner)
            self._ends = _arguments({_SRC: source, _DST: target})

    def enter(self, array):
        self._dnn.place(self._outer, array.ctypes.data)
        if self._reorder is not None:
            self._dnn.place(self.inner, self._dnn.scratch(self.index, self._size))
            if not self._output:
                self._dnn.execute(self._reorder, self._ends)

    def leave(self):
        if self._output and self._reorder is not None:
            self._dnn.execute(self._reorder, self._ends)


class _Operation:
    """A primitive on dense arrays, called with the inputs' and then the outputs' arrays.

    Args:
        inputs, outputs: dictionaries from the index of an argument to the shape of its array.
    """

    def __init__(self, dnn, description, inputs, outputs):
        self._dnn = dnn
        self._primitive = dnn.primitive(description)
        self._operands = [
            _Operand(dnn, index, shape, dnn.wanted(description, index) if index in _QUERY else None, index in outputs)
            for index, shape in {**inputs, **outputs}.items()
        ]
        scratchpad = dnn.wanted(description, _SCRATCHPAD)
        self._scratch_size = dnn.library.dnnl_memory_desc_get_size(scratchpad)
        self._scratch = dnn.memory(scratchpad)
        self._arguments = _arguments({**{o.index: o.inner for o in self._operands}, _SCRATCHPAD: self._scratch})

    def __call__(self, *arrays):
        for operand, array in zip(self._operands, arrays):
            operand.enter(array)
        self._dnn.place(self._scratch, self._dnn.scratch(_SCRATCHPAD, self._scratch_size))
        self._dnn.execute(self._primitive, self._arguments)
        for operand in self._operands:
            operand.leave()
        self._dnn.wait()


class Convolution:
    """A convolution of one shape and its gradients, on C-contiguous float32 arrays. Not for two threads at once.

    Args:
        dnn: OneDNN.
        shape: ConvolutionShape.
    """

    def __init__(self, dnn, shape):
        self._dnn, self._shape = dnn, shape
        self._bias = {_BIAS: shape.weights[:1]} if shape.bias else {}
        self._description = dnn.convolution(shape, "forward", _FORWARD_TRAINING, _DIRECT, *self._layouts())

    def _layouts(self):
        bias = self._dnn.dense(self._shape.weights[:1]) if self._shape.bias else None
        return self._dnn.free(self._shape.x), self._dnn.free(self._shape.weights), bias, self._dnn.free(self._shape.y)

    @cached_property
    def forward(self):
        """Callable (x, weights, [bias,] y): writes y."""
        inputs = {_SRC: self._shape.x, _WEIGHTS: self._shape.weights, **self._bias}
        return _Operation(self._dnn, self._description, inputs, {_DST: self._shape.y})

    @cached_property
    def backward_x(self):
        """Callable (weights, dy, dx): writes dx."""
        x, weights, _, y = self._layouts()
        hint = (self._description,)
        description = self._dnn.convolution(self._shape, "backward_data", _DIRECT, x, weights, y, hint=hint)
        inputs = {_WEIGHTS: self._shape.weights, _DIFF_DST: self._shape.y}
        return _Operation(self._dnn, description, inputs, {_DIFF_SRC: self._shape.x})

    @cached_property
    def backward_weights(self):
        """Callable (x, dy, dweights[, dbias]): writes dweights and dbias."""
        hint = (self._description,)
        description = self._dnn.convolution(self._shape, "backward_weights", _DIRECT, *self._layouts(), hint=hint)
        inputs = {_SRC: self._shape.x, _DIFF_DST: self._shape.y}
        outputs = {_DIFF_WEIGHTS: self._shape.weights}
        if self._shape.bias:
            outputs[_DIFF_BIAS] = self._shape.weights[:1]
        return _Operation(self._dnn, description, inputs, outputs)


def _arguments(memories):
    """The argument list of dnnl_primitive_execute, from a dictionary of memories that the caller keeps alive."""
    return (_Argument * len(memories))(*(_Argument(index, memory.value) for index, memory in memories.items()))


def _load():
    """The library with the types of all functions in use."""
    try:
        library = ctypes.CDLL(_find())
    except OSError as error:
        raise ImportError(f"{DISTRIBUTION} can't be loaded: {error}") from error
    for name, arguments in _STATUS_FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype, function.errcheck = arguments, c_int, _check
    for name, (result, *arguments) in _VALUE_FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def _find():
    """Path of the library, from the distribution's list of files."""
    try:
        files = importlib.metadata.files(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"{DISTRIBUTION} is not installed") from error
    paths = [file.locate() for file in files or () if file.name == _LIBRARY]
    if not paths:
        raise ImportError(f"{DISTRIBUTION} lists no {_LIBRARY}")
    return str(paths[0])


def _check(status, function, _):
    if status:
        raise RuntimeError(f"oneDNN: {function.__name__}: {_STATUS.get(status, f'status {status}')}")
