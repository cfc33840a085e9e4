"""Read PyTorch checkpoints without PyTorch, running nothing that they contain.

``torch.save`` pickles an object (protocol 2) and writes the numbers beside it. A tensor is pickled as a call of
``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``; offset and strides count
elements. The storage is a persistent id ``("storage", type, key, location, numel)``: a flat array that several tensors
may share. There are two containers:

* zip (torch >= 1.6): uncompressed entries ``NAME/data.pkl`` (the pickle), ``NAME/data/KEY`` (the bytes of a storage)
  and, since torch 2, ``NAME/byteorder`` (``little`` or ``big``; little where it is missing).
* legacy: five pickles in a row (the magic number, the protocol 1001, a description of the machine, the object, the
  list of storage keys), then for each key, in the list's order, an int64 ``numel`` and the bytes, all little-endian.
  The persistent id has a sixth element, None unless the storage is part of another one, which torch no longer writes.

A pickle is a program, and checkpoints come from strangers. Only the instructions that torch.save needs are carried
out, and only ``_NAMES`` are known; nothing is imported. Sizes are compared with the file before memory is taken.
"""

import io
import os
import pickle
import struct
import types
import zipfile
import zlib
from collections.abc import Callable, Iterable
from math import prod
from typing import IO, Any

import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file

_ORDERS = {b"little": "<", b"big": ">"}
_LEGACY_HEAD = (0x1950A86A20F9469CFC6C, 1001)
_MAX_PICKLE_BYTES = 4 << 20  # the pickle of a checkpoint with 2,000 tensors has 0.3 MB
_MAX_DIMENSIONS = 32  # numpy's limit
_BFLOAT16, _BOOL = np.dtype("V2"), np.dtype("?")  # numpy has no bfloat16
_IDENTITY = (str, np.dtype, str, object, int)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, IndexError, OSError, OverflowError, RuntimeError)


def read_torch(path: AnyPath) -> dict[Any, Any]:
    """The dictionary in a checkpoint written by ``torch.save`` in either container.

    Tensors and parameters are read-only arrays of their own type (bfloat16 is widened to float32) that share memory
    where the tensors did; OrderedDicts are dicts; numbers, strings, lists and tuples are themselves.

    Raises:
        UserError: unreadable, truncated or damaged file, not a dictionary, or a pickle that names anything but tensors
            and containers.
    """
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            checkpoint = _read(file, os.fstat(file.fileno()).st_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, *_ZIP_ERRORS) as error:
        problem = str(error) or "ends early"  # EOFError says nothing
        raise UserError(f"{path}: {problem}; the file is damaged or truncated, fetch it again") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not a dictionary; save model.state_dict()")
    return checkpoint


def _read(file: IO[bytes], size: int) -> Any:
    head = file.read(4)
    file.seek(0)
    if head == b"PK\x03\x04":
        return _read_zip(zipfile.ZipFile(file), size)
    if head.startswith(b"\x80\x02"):
        return _read_legacy(file, size)
    raise UserError(f"is not a PyTorch checkpoint (it begins with {head!r}); fetch it again")


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("two zip entries have the same name")
    roots = [name[: -len("data.pkl")] for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError("is a zip file without a PyTorch checkpoint (NAME/data.pkl); fetch it again")
    (root,) = roots
    order = _read_entry(archive, f"{root}byteorder", size) if f"{root}byteorder" in names else b"little"
    if order not in _ORDERS:
        raise ValueError(f"byteorder is {order[:16]!r}")

    def make(kind: np.dtype, key: str, count: int) -> np.ndarray:
        return _decode(_read_entry(archive, f"{root}data/{key}", size), kind, key, count, _ORDERS[order])

    pickled = _read_entry(archive, f"{root}data.pkl", size)
    if len(pickled) > _MAX_PICKLE_BYTES:
        raise ValueError("its pickle is longer than a checkpoint's")
    return _Unpickler(io.BytesIO(pickled), _Storages(size, make)).load()


def _read_entry(archive: zipfile.ZipFile, name: str, file_size: int) -> bytes:
    info = archive.NameToInfo.get(name)
    if info is None:
        raise ValueError(f"zip entry {name!r} is missing")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise UserError(f"zip entry {name!r} is compressed; load and save it again with PyTorch")
    if info.file_size > file_size:
        raise ValueError(f"zip entry {name!r} is larger than the file")
    return archive.read(info)


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """Storages come after the pickle that uses them: they are made empty and filled later, as torch does."""
    stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    storages = _Storages(size, lambda kind, key, count: np.empty(count, "f4" if kind == _BFLOAT16 else kind))
    for expected in _LEGACY_HEAD:
        value = _Unpickler(stream, storages).load()
        if type(value) is not int or value != expected:
            raise UserError("is a pickle but not a PyTorch checkpoint; fetch it again")
    _, checkpoint, keys = (_Unpickler(stream, storages).load() for _ in range(3))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the list of storages is malformed")
    if sorted(keys) != sorted(storages.known):
        raise ValueError("the list of storages is not the one the tensors need")
    file.seek(stream.tell())
    for key in keys:
        kind, values = storages.known[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != values.size:
            raise ValueError(f"storage {key!r} has {count} elements instead of {values.size}")
        values[...] = _decode(file.read(kind.itemsize * count), kind, key, count, "<")
    return checkpoint


def _decode(data: bytes, kind: np.dtype, key: str, count: int, order: str) -> np.ndarray:
    """The bytes of a storage as a flat array of native byte order."""
    if len(data) != kind.itemsize * count:
        raise ValueError(f"storage {key!r} has {len(data)} bytes instead of {kind.itemsize * count}")
    stored = np.dtype({_BFLOAT16: "u2", _BOOL: "u1"}.get(kind, kind))
    values = np.frombuffer(data, order + stored.str[1:])
    if kind == _BFLOAT16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(kind, copy=False)


class _Storages:
    """The storages of a file by key, each made once by ``make(type, key, count)``, in all not larger than the file."""

    def __init__(self, file_size: int, make: Callable[[np.dtype, str, int], np.ndarray]) -> None:
        self._left = file_size
        self._make = make
        self.known: dict[str, tuple[np.dtype, np.ndarray]] = {}

    def load(self, identity: Any) -> np.ndarray:
        """The flat array behind a persistent id."""
        fits = isinstance(identity, tuple) and len(identity) in (5, 6) and all(map(isinstance, identity, _IDENTITY))
        if not fits or identity[0] != "storage" or identity[4] < 0:
            raise ValueError("a persistent id is not a storage's description")
        _, kind, key, _, count, *whole = identity
        if whole != [None] * len(whole):
            raise UserError("a storage is part of another one; load and save it again with PyTorch")
        if key not in self.known:
            self._left -= kind.itemsize * count
            if self._left < 0:
                raise ValueError("its storages are larger than the file")
            self.known[key] = kind, self._make(kind, key, count)
        known, values = self.known[key]
        if known != kind or values.size != count:
            raise ValueError(f"storage {key!r} is described in two ways")
        return values


_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_PythonUnpickler):
    """Python's unpickler without all but the instructions and names of torch.save.

    It is the one written in Python: that in C takes memory for any memo index that the file claims, and overflows its
    stack when it hashes a deeply nested key.
    """

    def __init__(self, stream: io.BytesIO, storages: _Storages) -> None:
        super().__init__(stream, encoding="utf-8")
        self.persistent_load = storages.load

    def load(self) -> Any:
        """Execute up to STOP and return the value on the stack."""
        try:
            return super().load()
        except KeyError as error:  # of ``dispatch``
            raise ValueError(f"pickle instruction {bytes(error.args)!r} is not one torch.save writes") from error
        except (pickle.UnpicklingError, struct.error, AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"its pickle is malformed ({error})") from error

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name: one of our functions, or a type of numbers."""
        full = f"{module}.{name}"
        if full not in _NAMES:
            problem = f"names {full[:200]}, which is neither a tensor nor a container and could run anything"
            raise UserError(f"{problem}; save only state_dict()s, or use another file")
        return _NAMES[full]

    def load_proto(self) -> None:
        version = self.read(1)[0]
        if version != 2:
            raise UserError(f"has pickle protocol {version}; save it with torch.save's default, 2")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, types.FunctionType) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls something that is no function")
        self.append(function(*arguments))

    def load_build(self) -> None:
        self.stack.pop()  # attributes: a state_dict's _metadata, versions of modules that nothing here needs
        _fill(self.stack[-1], ())  # which must be a dictionary

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    dispatch = {
        **{code: _PythonUnpickler.dispatch[code] for code in b"(N\x88\x89JKM\x8aGXTU)\x85\x86\x87t]ae}qrhjcQ."},
        pickle.PROTO[0]: load_proto,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _fill(target: Any, pairs: Iterable[Any]) -> None:
    if not isinstance(target, dict):
        raise ValueError("its pickle fills something that is no dict")
    for key, value in pairs:
        if not isinstance(key, (str, int)):
            raise ValueError(f"a dictionary's key is a {type(key).__name__}")
        target[key] = value


def _ordered_dict(*lists: Any) -> dict[Any, Any]:
    """``collections.OrderedDict()``; Python 2 pickled it with a list of pairs. Each serves once: it may be long."""
    result: dict[Any, Any] = {}
    for pairs in lists:
        _fill(result, pairs)
        pairs.clear()
    return result


def _first(value: Any, *_: Any) -> Any:
    """``torch.Size(sizes)``, ``torch._utils._rebuild_parameter(tensor, requires_grad, hooks)``."""
    return value


def _rebuild_tensor(values: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """The elements ``offset + sum(index * stride)`` of a storage, read-only; the rest says nothing about numbers."""
    natural = all(map(_are_natural, ((offset,), size, stride)))
    if not isinstance(values, np.ndarray) or not natural or len(size) != len(stride) or len(rest) not in (0, 2, 3):
        raise ValueError("a tensor is malformed")
    if 0 in size:
        if prod(max(length, 1) for length in size) >= 1 << 31:
            raise ValueError("an empty tensor has an absurd shape")
        return np.empty(size, values.dtype)
    # The stride of a dimension of length 1 means nothing and may be anything.
    steps = [step if length > 1 else 0 for length, step in zip(size, stride)]
    last = offset + sum((length - 1) * step for length, step in zip(size, steps))
    if last >= values.size or prod(size) > values.size:  # too large: expanded by strides of 0
        raise ValueError("a tensor reaches beyond its storage, or has more elements")
    itemsize = values.itemsize
    tensor: np.ndarray = np.ndarray(size, values.dtype, values, offset * itemsize, [step * itemsize for step in steps])
    tensor.flags.writeable = False
    return tensor


def _are_natural(values: Any) -> bool:
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        return False
    return all(type(value) is int and value >= 0 for value in values)  # a bool is no size


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_tensor": _rebuild_tensor,  # 2017, among them torchvision's VGG19
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch.FloatStorage": np.dtype("f4"),
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.LongStorage": np.dtype("i8"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.ShortStorage": np.dtype("i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": _BOOL,
}
