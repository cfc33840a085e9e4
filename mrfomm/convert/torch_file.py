"""Read PyTorch checkpoints without PyTorch, running nothing that they contain.

``torch.save`` pickles an object (protocol 2) and writes the numbers beside it. A tensor is pickled as a call
of ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``, where offset and
strides count elements. The storage is a persistent id ``("storage", type, key, location, numel)``: a flat
array that several tensors may share. There are two containers:

* zip (torch >= 1.6): uncompressed entries ``NAME/data.pkl`` (the pickle), ``NAME/data/KEY`` (the bytes of a
  storage) and, since torch 2, ``NAME/byteorder`` (``little`` or ``big``; little where it is missing).
* legacy: five pickles in a row (the magic number, the protocol 1001, a description of the machine, the
  object, the list of storage keys), then for each key, in the list's order, an int64 ``numel`` and the bytes,
  all little-endian. Here the persistent id has a sixth element, None unless the storage is part of another
  one, which today's torch no longer writes.

A pickle is a program, and checkpoints come from strangers. The machine below therefore knows only the
instructions that torch.save needs, imports nothing, and admits only the names in ``_FUNCTIONS`` and
``_STORAGE_TYPES``; anything else is refused when it is named, before it could be called. Sizes are compared
with the file before memory is taken.
"""

import contextlib
import io
import math
import os
import struct
import types
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from mrfomm.errors import UserError, check_is_file

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80\x02"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_PICKLE_BYTES = 4 << 20  # the pickle of a checkpoint with 2,000 tensors has 0.3 MB
_MAX_DIMENSIONS = 32  # numpy's limit


def read_torch(path):
    """Read a checkpoint written by ``torch.save`` in either container.

    Args:
        path: the file (``.pth``, ``.pt``, ``.pth.tar``).

    Returns:
        The saved dictionary. Tensors and parameters are read-only arrays of their own dtype (bfloat16, which
        numpy lacks, is widened to float32) that share memory where the tensors did; OrderedDicts are dicts;
        numbers, strings, lists and tuples are themselves.

    Raises:
        UserError: unreadable, truncated or damaged file, not a dictionary, or a pickle that names anything
            but tensors and containers.
    """
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            checkpoint = _read(file, os.fstat(file.fileno()).st_size)
    except _RefusedError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise UserError(f"{path}: holds a {kind}, not a dictionary; save model.state_dict()")
    return checkpoint


class _RefusedError(Exception):
    """Why the file is refused, and the remedy."""


def _damaged(problem):
    return _RefusedError(f"{problem}; the file is damaged or truncated, fetch it again")


def _read(file, size):
    head = file.read(len(_ZIP_MAGIC))
    file.seek(0)
    if head == _ZIP_MAGIC:
        return _read_zip(file, size)
    if head.startswith(_PICKLE_MAGIC):
        return _read_legacy(file, size)
    raise _RefusedError(f"is not a PyTorch checkpoint (it begins with {head!r}); fetch it again")


# Storages


class _StorageType(NamedTuple):
    """stored: numpy's code for the bytes in the file; values: for the array made of them."""

    stored: str
    values: str

    def decode(self, data, byteorder="<"):
        """Bytes -> flat array of native byte order."""
        stored = np.frombuffer(data, np.dtype(self.stored).newbyteorder(byteorder))
        if self == _BFLOAT16:  # the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(self.values, copy=False)

    def size(self, count):
        """Bytes in the file of ``count`` elements."""
        return count * np.dtype(self.stored).itemsize


_BFLOAT16 = _StorageType("u2", "f4")

_STORAGE_TYPES = {
    "torch.FloatStorage": _StorageType("f4", "f4"),
    "torch.DoubleStorage": _StorageType("f8", "f8"),
    "torch.HalfStorage": _StorageType("f2", "f2"),
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.LongStorage": _StorageType("i8", "i8"),
    "torch.IntStorage": _StorageType("i4", "i4"),
    "torch.ShortStorage": _StorageType("i2", "i2"),
    "torch.CharStorage": _StorageType("i1", "i1"),
    "torch.ByteStorage": _StorageType("u1", "u1"),
    "torch.BoolStorage": _StorageType("u1", "?"),
}


class _Storage(NamedTuple):
    """values: flat array [numel]."""

    values: np.ndarray


class _Storages:
    """The storages of a file by key, each made once; together they may not be larger than the file."""

    def __init__(self, file_size):
        self._left = file_size
        self._known = {}

    def __call__(self, identity):
        """Persistent id -> _Storage."""
        kind, key, count = _storage_identity(identity)
        if key not in self._known:
            self.spend(kind.size(count))
            self._known[key] = kind, _Storage(self.make(kind, key, count))
        known, storage = self._known[key]
        if known != kind or storage.values.size != count:
            raise _damaged(f"storage {key!r} is described in two ways")
        return storage

    def spend(self, size):
        """Account for ``size`` bytes of the file, before memory is taken for them."""
        if size > self._left:
            raise _damaged("its storages are larger than the file")
        self._left -= size

    def make(self, kind, key, count):
        """The flat array [count] of a storage."""
        raise NotImplementedError


def _storage_identity(identity):
    if not isinstance(identity, tuple) or len(identity) not in (5, 6):
        raise _damaged("a persistent id is not a storage's")
    tag, kind, key, _, count = identity[:5]
    if not isinstance(tag, str) or tag != "storage":
        raise _damaged("a persistent id is not a storage's")
    if not isinstance(kind, _StorageType) or not isinstance(key, str) or not _is_natural(count):
        raise _damaged("a storage's description is malformed")
    if len(identity) == 6 and identity[5] is not None:
        raise _RefusedError("a storage is part of another one; load and save it again with PyTorch")
    return kind, key, count


def _is_natural(value):
    return type(value) is int and value >= 0  # a bool is no size


# The zip container


class _ZipStorages(_Storages):
    def __init__(self, file_size, read, byteorder):
        super().__init__(file_size)
        self._read = read
        self._byteorder = byteorder

    def make(self, kind, key, count):
        data = self._read(f"data/{key}")
        if len(data) != kind.size(count):
            raise _damaged(f"storage {key!r} has {len(data)} bytes instead of {kind.size(count)}")
        return kind.decode(data, self._byteorder)


def _read_zip(file, size):
    with _zip_errors():
        entries = zipfile.ZipFile(file)
    root = _zip_root(entries)

    def read(name):
        return _read_entry(entries, root + name, size)

    byteorder = read("byteorder") if f"{root}byteorder" in entries.NameToInfo else b"little"
    if byteorder not in (b"little", b"big"):
        raise _damaged(f"byteorder is {byteorder[:16]!r}")
    storages = _ZipStorages(size, read, "<" if byteorder == b"little" else ">")
    return _Machine(_Stream(io.BytesIO(read("data.pkl"))), storages).run()


def _zip_root(entries):
    names = entries.namelist()
    if len(set(names)) != len(names):
        raise _damaged("two zip entries have the same name")
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _RefusedError("is a zip file without a PyTorch checkpoint (NAME/data.pkl); fetch it again")
    return pickles[0][: -len("data.pkl")]


def _read_entry(entries, name, file_size):
    info = entries.NameToInfo.get(name)
    if info is None:
        raise _damaged(f"zip entry {name!r} is missing")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _RefusedError(f"zip entry {name!r} is compressed; load and save it again with PyTorch")
    if info.file_size > file_size:
        raise _damaged(f"zip entry {name!r} is larger than the file")
    with _zip_errors():
        return entries.read(info)


@contextlib.contextmanager
def _zip_errors():
    """zipfile's many ways to report a damaged file."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        IndexError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
    ) as error:
        raise _damaged(f"zip file can't be read ({error})") from error


# The legacy container


class _LegacyStorages(_Storages):
    """Storages come after the pickle that uses them: they are made empty and filled later, as torch does."""

    def make(self, kind, key, count):
        return np.empty(count, kind.values)

    def fill(self, file, keys):
        """Read the storages from ``file`` in the order of ``keys``."""
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise _damaged("the list of storages is malformed")
        if len(set(keys)) != len(keys) or set(keys) != set(self._known):
            raise _damaged("the list of storages is not the one the tensors need")
        for key in keys:
            kind, storage = self._known[key]
            (count,) = struct.unpack("<q", _exactly(file, 8))
            if count != storage.values.size:
                raise _damaged(f"storage {key!r} has {count} elements instead of {storage.values.size}")
            storage.values[...] = kind.decode(_exactly(file, kind.size(count)))


def _read_legacy(file, size):
    storages = _LegacyStorages(size)
    stream = _Stream(file)
    for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        value = _Machine(stream, storages).run()
        if not _is_natural(value) or value != expected:
            raise _RefusedError("is a pickle but not a PyTorch checkpoint; fetch it again")
    _, checkpoint, keys = (_Machine(stream, storages).run() for _ in range(3))
    storages.fill(file, keys)
    return checkpoint


def _exactly(file, count):
    data = file.read(count)
    if len(data) != count:
        raise _damaged("ends early")
    return data


# The pickle


class _Stream:
    """The bytes of pickles: exactly as many as are asked for, in all not more than a checkpoint can need."""

    def __init__(self, file):
        self._file = file
        self._left = _MAX_PICKLE_BYTES

    def take(self, count):
        if count > self._left:
            raise _damaged("its pickle is longer than a checkpoint's")
        self._left -= count
        return _exactly(self._file, count)

    def integer(self, count, signed=False):
        return int.from_bytes(self.take(count), "little", signed=signed)

    def text(self, count):
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged("a string in its pickle is not UTF-8") from error

    def line(self):
        data = self._file.readline(256)
        self._left -= len(data)
        if not data.endswith(b"\n"):
            raise _damaged("a name in its pickle doesn't end")
        return data[:-1].decode("ascii", "backslashreplace")


class _Machine:
    """The part of the pickle machine that torch.save uses, on plain values only.

    Own code and not ``pickle.Unpickler`` with a ``find_class``: the latter takes memory for any memo index or
    length that the file claims, and hashes nested keys deep enough to overflow the C stack.
    """

    def __init__(self, stream, storages):
        self._stream = stream
        self._storages = storages
        self._stack = []
        self._outer = []  # the stacks below each open mark
        self._memo = {}

    def run(self):
        """Execute up to STOP and return the value on the stack."""
        while True:
            code = self._stream.take(1)
            if code == b".":
                return self._pop()
            if code not in _INSTRUCTIONS:
                raise _damaged(f"pickle instruction {code!r} is not one torch.save writes")
            _INSTRUCTIONS[code](self)

    def _push(self, value):
        self._stack.append(value)

    def _pop(self):
        if not self._stack:
            raise _damaged("its pickle takes a value that isn't there")
        return self._stack.pop()

    def _top(self, kind):
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise _damaged(f"its pickle fills something that is no {kind.__name__}")
        return self._stack[-1]

    def _mark(self):
        self._outer.append(self._stack)
        self._stack = []

    def _pop_to_mark(self):
        if not self._outer:
            raise _damaged("its pickle goes back to a mark that isn't there")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _protocol(self):
        version = self._stream.integer(1)
        if version != 2:
            raise _RefusedError(f"has pickle protocol {version}; save it with torch.save's default, 2")

    def _put(self, index):
        self._memo[index] = self._pop()
        self._push(self._memo[index])

    def _get(self, index):
        if index not in self._memo:
            raise _damaged("its pickle recalls a value that it never stored")
        self._push(self._memo[index])

    def _tuple(self, count):
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _append(self, items):
        self._top(list).extend(items)

    def _set_items(self, items):
        target = self._top(dict)
        if len(items) % 2:
            raise _damaged("its pickle has a key without a value")
        target.update(_pairs_to_dict(zip(items[::2], items[1::2])))

    def _name(self):
        module, name = self._stream.line(), self._stream.line()
        full = f"{module}.{name}"
        value = _FUNCTIONS.get(full) or _STORAGE_TYPES.get(full)
        if value is None:
            raise _RefusedError(
                f"names {full}, which is neither a tensor nor a container and could run anything; save only "
                "state_dict()s, or use another file"
            )
        self._push(value)

    def _call(self):
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, types.FunctionType) or not isinstance(arguments, tuple):
            raise _damaged("its pickle calls something that is no function")
        self._push(function(*arguments))

    def _build(self):
        # Attributes of an OrderedDict: a state_dict's _metadata, versions of modules that nothing here needs.
        self._pop()
        self._top(dict)


def _pairs_to_dict(pairs):
    result = {}
    for key, value in pairs:
        if not isinstance(key, (str, int)):
            raise _damaged(f"a dictionary's key is a {type(key).__name__}")
        result[key] = value
    return result


def _ordered_dict(*arguments):
    """``collections.OrderedDict()``; Python 2 pickled it with a list of pairs."""
    if not arguments:
        return {}
    pairs = arguments[0]
    if len(arguments) > 1 or not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise _damaged("an OrderedDict is malformed")
    return _pairs_to_dict(pairs)


def _is_pair(value):
    return isinstance(value, (list, tuple)) and len(value) == 2


def _size(*arguments):
    """``torch.Size((2, 3))``."""
    if len(arguments) != 1 or not _is_shape(arguments[0]):
        raise _damaged("a torch.Size is malformed")
    return arguments[0]


def _rebuild_parameter(*arguments):
    """``torch._utils._rebuild_parameter(tensor, requires_grad, hooks)``."""
    if len(arguments) != 3 or not isinstance(arguments[0], np.ndarray):
        raise _damaged("a parameter is malformed")
    return arguments[0]


def _rebuild_tensor(*arguments):
    """``torch._utils._rebuild_tensor(storage, offset, size, stride)``: read-only view of the storage.

    ``_rebuild_tensor_v2`` has two or three arguments more, which say nothing about the numbers.
    """
    if len(arguments) not in (4, 6, 7):
        raise _damaged("a tensor is malformed")
    storage, offset, size, stride = arguments[:4]
    if not (isinstance(storage, _Storage) and _is_natural(offset) and _is_shape(size) and _is_shape(stride)):
        raise _damaged("a tensor is malformed")
    if len(size) != len(stride):
        raise _damaged("a tensor has another number of strides than of dimensions")
    tensor = _view(storage.values, offset, size, stride)
    tensor.flags.writeable = False
    return tensor


def _view(values, offset, size, stride):
    """The elements ``offset + sum(index * stride)`` of values [numel] as an array of shape ``size``."""
    if math.prod(size) > values.size:  # too large, or expanded by strides of 0
        raise _damaged("a tensor claims more elements than its storage has")
    if 0 in size:
        if math.prod(max(length, 1) for length in size) >= 1 << 31:
            raise _damaged("an empty tensor has an absurd shape")
        return np.empty(size, values.dtype)
    if offset + sum((length - 1) * step for length, step in zip(size, stride)) >= values.size:
        raise _damaged("a tensor reaches beyond its storage")
    # The stride of a dimension of length 1 means nothing and may be anything.
    steps = [step * values.itemsize if length > 1 else 0 for length, step in zip(size, stride)]
    return np.ndarray(size, values.dtype, values, offset * values.itemsize, steps)


def _is_shape(value):
    if not isinstance(value, tuple) or len(value) > _MAX_DIMENSIONS:
        return False
    return all(_is_natural(item) for item in value)


_FUNCTIONS = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_tensor": _rebuild_tensor,  # 2017, among them torchvision's VGG19
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
}

_INSTRUCTIONS = {
    b"\x80": _Machine._protocol,
    b"(": _Machine._mark,
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"J": lambda machine: machine._push(machine._stream.integer(4, signed=True)),
    b"K": lambda machine: machine._push(machine._stream.integer(1)),
    b"M": lambda machine: machine._push(machine._stream.integer(2)),
    b"\x8a": lambda machine: machine._push(machine._stream.integer(machine._stream.integer(1), signed=True)),
    b"G": lambda machine: machine._push(struct.unpack(">d", machine._stream.take(8))[0]),
    b"X": lambda machine: machine._push(machine._stream.text(machine._stream.integer(4))),
    b"T": lambda machine: machine._push(machine._stream.text(machine._stream.integer(4))),  # Python 2's str
    b"U": lambda machine: machine._push(machine._stream.text(machine._stream.integer(1))),
    b")": lambda machine: machine._push(()),
    b"\x85": lambda machine: machine._tuple(1),
    b"\x86": lambda machine: machine._tuple(2),
    b"\x87": lambda machine: machine._tuple(3),
    b"t": lambda machine: machine._push(tuple(machine._pop_to_mark())),
    b"]": lambda machine: machine._push([]),
    b"a": lambda machine: machine._append([machine._pop()]),
    b"e": lambda machine: machine._append(machine._pop_to_mark()),
    b"}": lambda machine: machine._push({}),
    b"s": lambda machine: machine._set_items([machine._pop(), machine._pop()][::-1]),
    b"u": lambda machine: machine._set_items(machine._pop_to_mark()),
    b"q": lambda machine: machine._put(machine._stream.integer(1)),
    b"r": lambda machine: machine._put(machine._stream.integer(4)),
    b"h": lambda machine: machine._get(machine._stream.integer(1)),
    b"j": lambda machine: machine._get(machine._stream.integer(4)),
    b"c": _Machine._name,
    b"R": _Machine._call,
    b"b": _Machine._build,
    b"Q": lambda machine: machine._push(machine._storages(machine._pop())),
}
