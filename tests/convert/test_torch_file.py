"""PyTorch's files: against Python's own pickler on stand-ins for torch's classes, and against attackers."""

import builtins
import io
import os
import pickle
import random
import struct
import sys
import types
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from mrfomm.convert.torch_file import read_torch
from mrfomm.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "fomm-tiny"
GOLDEN_FILES = (GOLDEN / "checkpoint.pth.tar", GOLDEN / "checkpoint-zip.pth.tar")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
CODES = {  # storage type -> struct's code of an element
    "FloatStorage": "f",
    "DoubleStorage": "d",
    "HalfStorage": "e",
    "LongStorage": "q",
    "IntStorage": "i",
    "ShortStorage": "h",
    "CharStorage": "b",
    "ByteStorage": "B",
    "BoolStorage": "?",
}


# A small torch.save: Python's pickler does the work, torch's classes are stand-ins of the same names.


class Storage:
    def __init__(self, kind, values, key="0", byteorder="<"):
        self.kind, self.key, self.count = kind, key, len(values)
        if kind == "BFloat16Storage":  # the upper half of a float32
            self.data = b"".join(struct.pack("<f", value)[2:] for value in values)
        else:
            self.data = struct.pack(f"{byteorder}{len(values)}{CODES[kind]}", *values)


class Tensor:
    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter(Tensor):
    def __reduce__(self):
        tensor = Tensor(*self.arguments[:4])
        return sys.modules["torch._utils"]._rebuild_parameter, (tensor, True, OrderedDict())


class Size(tuple):
    def __reduce__(self):
        return sys.modules["torch"].Size, (tuple(self),)


class Pickler(pickle.Pickler):
    def __init__(self, file, storages, legacy):
        super().__init__(file, protocol=2)
        self.storages, self.legacy = storages, legacy

    def persistent_id(self, item):
        if not isinstance(item, Storage):
            return None
        self.storages[item.key] = item
        identity = ("storage", getattr(sys.modules["torch"], item.kind), item.key, "cuda:0", item.count)
        return (*identity, None) if self.legacy else identity


@pytest.fixture(autouse=True)
def torch_names(monkeypatch):
    """Modules that only let the pickler write torch's names."""
    torch, utils, hub = (types.ModuleType(name) for name in ("torch", "torch._utils", "torch.hub"))
    for module, name in (
        *((torch, kind) for kind in (*CODES, "BFloat16Storage", "ComplexFloatStorage", "Size")),
        *((utils, name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
        (hub, "load"),
    ):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    for module in (torch, utils, hub):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def pickled(value, legacy):
    file, storages = io.BytesIO(), {}
    Pickler(file, storages, legacy).dump(value)
    return file.getvalue(), storages


def zip_bytes(pickle_bytes, storages, byteorder=None, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy_bytes(pickle_bytes, storages, itemsizes):
    head = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {"little_endian": True}))
    body = b"".join(struct.pack("<q", len(data) // itemsizes[key]) + data for key, data in storages.items())
    return head + pickle_bytes + pickle.dumps(list(storages), 2) + body


def save(path, value, container):
    data, storages = pickled(value, container == "legacy")
    contents = {key: storage.data for key, storage in storages.items()}
    if container == "zip":
        path.write_bytes(zip_bytes(data, contents, "little"))
    else:
        sizes = {key: len(storage.data) // max(storage.count, 1) for key, storage in storages.items()}
        path.write_bytes(legacy_bytes(data, contents, {key: size or 1 for key, size in sizes.items()}))
    return path


def elements(values, offset, size, stride):
    """Slow reference: every element by its index."""
    result = np.empty(size, np.asarray(values).dtype)
    for index in np.ndindex(*size):
        result[index] = values[offset + sum(i * step for i, step in zip(index, stride))]
    return result


both = pytest.mark.parametrize("container", ["zip", "legacy"])


# What is read


def test_both_containers_of_the_golden_checkpoint_hold_the_same():
    legacy, zipped = (read_torch(path) for path in GOLDEN_FILES)
    assert list(legacy) == list(zipped) == ["generator", "kp_detector", "epoch"]
    assert legacy["epoch"] == zipped["epoch"] == 99
    for part in ("generator", "kp_detector"):
        assert list(legacy[part]) == list(zipped[part])
        for name, array in legacy[part].items():
            assert array.dtype == zipped[part][name].dtype
            np.testing.assert_array_equal(array, zipped[part][name])


def test_golden_tensors_are_the_raw_bytes_of_the_archive():
    checkpoint = read_torch(GOLDEN_FILES[1])
    arrays = [*checkpoint["generator"].values(), *checkpoint["kp_detector"].values()]
    with zipfile.ZipFile(GOLDEN_FILES[1]) as archive:
        for i, array in enumerate(arrays):
            assert array.tobytes() == archive.read(f"checkpoint-zip.pth/data/{i}")
    assert len(arrays) == 159
    assert checkpoint["generator"]["first.conv.weight"].shape == (8, 3, 7, 7)


@both
@pytest.mark.parametrize("kind", [*CODES, "BFloat16Storage"])
def test_every_number_type(tmp_path, container, kind):
    values = [1, 0, 1, 1] if kind == "BoolStorage" else [1, 0, 100, 2] if kind == "ByteStorage" else [1, 0, -100, 2]
    tensor = Tensor(Storage(kind, values), 0, (2, 2), (2, 1))
    array = read_torch(save(tmp_path / "a.pth", {"x": tensor}, container))["x"]
    expected = np.dtype("f" if kind == "BFloat16Storage" else CODES[kind])
    assert array.dtype == expected
    np.testing.assert_array_equal(array, np.reshape(np.array(values, expected), (2, 2)))


@both
def test_bfloat16_keeps_every_bit_pattern(tmp_path, container):
    values = [1.0, -2.5, 3.140625, float("inf"), 2.0**-126, 1.5 * 2.0**-130]  # the last is subnormal
    tensor = Tensor(Storage("BFloat16Storage", values), 0, (6,), (1,))
    array = read_torch(save(tmp_path / "a.pth", {"x": tensor}, container))["x"]
    np.testing.assert_array_equal(array, np.float32(values))


@both
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2, 3), (3, 1)),
        (1, (3, 2), (1, 3)),  # transposed
        (5, (2, 2, 2), (8, 1, 3)),
        (3, (2, 4), (7, 2)),  # with gaps
        (4, (3, 2), (0, 5)),  # expanded
        (7, (), ()),
        (19, (1, 1), (1 << 60, 3)),  # such strides mean nothing
        (0, (0, 3), (3, 1)),
    ],
)
def test_offsets_and_strides(tmp_path, container, offset, size, stride):
    values = [float(i) for i in range(20)]
    tensor = Tensor(Storage("FloatStorage", values), offset, size, stride)
    array = read_torch(save(tmp_path / "a.pth", {"x": tensor}, container))["x"]
    assert array.shape == size
    np.testing.assert_array_equal(array, elements(np.float32(values), offset, size, stride))


@both
def test_tensors_that_share_a_storage_still_do(tmp_path, container):
    storage = Storage("HalfStorage", [float(i) for i in range(12)])
    value = {"all": Tensor(storage, 0, (3, 4), (4, 1)), "row": Tensor(storage, 4, (4,), (1,))}
    checkpoint = read_torch(save(tmp_path / "a.pth", value, container))
    np.testing.assert_array_equal(checkpoint["row"], checkpoint["all"][1])
    assert np.shares_memory(checkpoint["row"], checkpoint["all"])
    assert not checkpoint["row"].flags.writeable


@both
def test_containers_and_plain_values(tmp_path, container):
    state = OrderedDict(a=Parameter(Storage("FloatStorage", [1.0, 2.0]), 0, (2,), (1,)))
    state._metadata = OrderedDict({"": {"version": 1}})  # what every state_dict carries
    plain = {
        "numbers": [0, 255, 256, 65536, -1, 1 << 40, -(1 << 40), 0.5, -1e300],
        "others": (None, True, False, "é", "", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "groups": [{"lr": 2e-4, "betas": (0.5, 0.999), "params": [94179233282848, 1]}],
        7: {},
    }
    checkpoint = read_torch(save(tmp_path / "a.pth", {**plain, "net": state, "size": Size((2, 3))}, container))
    np.testing.assert_array_equal(checkpoint.pop("net").pop("a"), [1.0, 2.0])
    assert checkpoint.pop("size") == (2, 3)
    assert checkpoint == plain


@both
def test_more_than_256_values_to_remember(tmp_path, container):
    value = {f"name {i}": [f"value {i}", Tensor(Storage("IntStorage", [i], str(i)), 0, (1,), (1,))] for i in range(400)}
    checkpoint = read_torch(save(tmp_path / "a.pth", value, container))
    assert [int(array[0]) for _, array in checkpoint.values()] == list(range(400))


def test_a_zip_from_a_big_endian_machine(tmp_path):
    value = {"x": Tensor(Storage("FloatStorage", [1.5, -2.0], byteorder=">"), 0, (2,), (1,))}
    data, storages = pickled(value, legacy=False)
    (tmp_path / "a.pth").write_bytes(zip_bytes(data, {"0": storages["0"].data}, "big"))
    array = read_torch(tmp_path / "a.pth")["x"]
    np.testing.assert_array_equal(array, [1.5, -2.0])
    assert array.dtype.isnative


def test_the_dialect_of_2017(tmp_path):
    """As Python 2 wrote it: byte strings, OrderedDicts with pairs, the first _rebuild_tensor."""
    data = (
        b"\x80\x02ccollections\nOrderedDict\n("
        b"](](U\x08features"  # [["features", tensor]]
        b"ctorch._utils\n_rebuild_tensor\n("
        b"(U\x07storagectorch\nFloatStorage\nT\x01\x00\x00\x00kU\x03cpuK\x03NtQ"
        b"K\x01K\x02\x85K\x01\x85tR"  # offset 1, size (2,), stride (1,)
        b"eetR."
    )
    storage = struct.pack("<3f", 1, 2, 3)
    path = tmp_path / "vgg.pth"
    path.write_bytes(legacy_bytes(data, {"k": storage}, {"k": 4}))
    np.testing.assert_array_equal(read_torch(path)["features"], [2, 3])


# What is refused


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def attacks(marker):
    evil = Call(os.system, f"touch '{marker}'")
    evaluated = Call(builtins.eval, f"open({str(marker)!r}, 'w').close()")
    return {
        "posix.system": {"x": evil},
        "__builtin__.eval": {"epoch": 1, "generator": OrderedDict(w=[(evaluated,)])},
        "torch.hub.load": {"x": Call(sys.modules["torch.hub"].load, evil)},
        "torch.ComplexFloatStorage": {"x": sys.modules["torch"].ComplexFloatStorage},
    }


@both
@pytest.mark.parametrize("name", ["posix.system", "__builtin__.eval", "torch.hub.load", "torch.ComplexFloatStorage"])
def test_forbidden_names_are_refused_before_anything_runs(tmp_path, container, name):
    marker = tmp_path / "ran"
    path = save(tmp_path / "evil.pth", attacks(marker)[name], container)
    with pytest.raises(UserError, match=rf"evil\.pth: names {name}, "):
        read_torch(path)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """Without this the test above could pass because its pickles do nothing."""
    for name in ("posix.system", "__builtin__.eval"):
        marker = tmp_path / name
        data, _ = pickled(attacks(marker)[name], legacy=False)
        pickle.loads(data)
        assert marker.exists()


@pytest.mark.parametrize("position", range(5))
def test_each_pickle_of_a_legacy_file_is_guarded(tmp_path, position):
    marker = tmp_path / "ran"
    pickles = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {}, {}, [])]
    pickles[position] = pickle.dumps(Call(os.system, f"touch '{marker}'"), 2)
    (tmp_path / "evil.pth").write_bytes(b"".join(pickles))
    with pytest.raises(UserError, match=r"posix\.system"):
        read_torch(tmp_path / "evil.pth")
    assert not marker.exists()


@both
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (11,), (1,)),
        (1, (10,), (1,)),
        (10, (), ()),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (9, (2,), (-1,)),
        (0, (-2, -3), (1, 1)),
        (0, (2, 2), (1, 9)),
        (0, (1 << 40,), (0,)),  # as_strided without end
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (0, 1 << 40, 1 << 40), (0, 0, 0)),
        (0, (2, 2), (1,)),
        (0, [2], (1,)),
        (0, (2.0,), (1,)),
        (True, (2,), (1,)),
        (0, (1,) * 33, (1,) * 33),
        (1 << 70, (1,), (1,)),
        (0, (2,), (1 << 70,)),
    ],
)
def test_tensors_may_not_leave_their_storage(tmp_path, container, offset, size, stride):
    tensor = Tensor(Storage("FloatStorage", [0.0] * 10), offset, size, stride)
    with pytest.raises(UserError, match=r"a\.pth: .*tensor"):
        read_torch(save(tmp_path / "a.pth", {"x": tensor}, container))


@both
def test_a_storage_can_be_described_only_once(tmp_path, container):
    storage, other = Storage("FloatStorage", [0.0] * 4), Storage("IntStorage", [0] * 4)
    value = {"x": Tensor(storage, 0, (4,), (1,)), "y": Tensor(other, 0, (4,), (1,))}
    with pytest.raises(UserError, match="described in two ways"):
        read_torch(save(tmp_path / "a.pth", value, container))


def edited(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def test_a_storage_larger_than_the_file_takes_no_memory(tmp_path):
    data, storages = pickled({"x": Tensor(Storage("FloatStorage", [0.0] * 7), 0, (7,), (1,))}, legacy=True)
    data = edited(data, b"K\x07N", b"\x8a\x06" + (1 << 45).to_bytes(6, "little") + b"N")
    (tmp_path / "a.pth").write_bytes(legacy_bytes(data, {"0": storages["0"].data}, {"0": 4}))
    with pytest.raises(UserError, match="larger than the file"):
        read_torch(tmp_path / "a.pth")


def test_legacy_storages_must_be_the_ones_listed(tmp_path):
    data, storages = pickled({"x": Tensor(Storage("FloatStorage", [0.0] * 7), 0, (7,), (1,))}, legacy=True)
    for contents, problem in (
        ({}, "list of storages"),
        ({"0": storages["0"].data, "1": b""}, "list of storages"),
        ({"0": storages["0"].data[:-4]}, "6 elements instead of 7"),
    ):
        (tmp_path / "a.pth").write_bytes(legacy_bytes(data, contents, {"0": 4, "1": 4}))
        with pytest.raises(UserError, match=problem):
            read_torch(tmp_path / "a.pth")


def test_a_part_of_another_legacy_storage_is_refused(tmp_path):
    data, storages = pickled({"x": Tensor(Storage("FloatStorage", [0.0] * 7), 0, (7,), (1,))}, legacy=True)
    data = edited(data, b"K\x07N", b"K\x07" + b"(U\x01rK\x00K\x07t")
    (tmp_path / "a.pth").write_bytes(legacy_bytes(data, {"0": storages["0"].data}, {"0": 4}))
    with pytest.raises(UserError, match="part of another one"):
        read_torch(tmp_path / "a.pth")


def test_compressed_entries_are_refused(tmp_path):
    value = {"x": Tensor(Storage("FloatStorage", [0.0] * 1000), 0, (1000,), (1,))}
    data, storages = pickled(value, legacy=False)
    contents = {"0": storages["0"].data}
    (tmp_path / "a.pth").write_bytes(zip_bytes(data, contents, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="compressed"):
        read_torch(tmp_path / "a.pth")


def test_entries_that_overlap_do_not_multiply(tmp_path):
    """Forty entries, each of which is the next one with its header: 4 kB of file, 200 kB of entries."""
    blob, entries = bytes(4000), []
    for i in range(40):
        info = zipfile.ZipInfo(f"archive/data/{i}")
        info.file_size = info.compress_size = len(blob)
        info.CRC = zlib.crc32(blob)
        entries.append(info)
        blob = info.FileHeader() + blob
    value = [Tensor(Storage("ByteStorage", [0] * e.file_size, str(i)), 0, (1,), (1,)) for i, e in enumerate(entries)]
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"x": value}, legacy=False)[0])
        start = archive.start_dir
        archive.fp.seek(start)
        archive.fp.write(blob)
        archive.start_dir = archive.fp.tell()
        for info in entries:
            info.header_offset = start + len(blob) - info.file_size - len(info.FileHeader())
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.read("archive/data/0") == bytes(4000)
    with pytest.raises(UserError, match="larger than the file|Overlapped"):
        read_torch(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_entries_with_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for value in ({"x": 1}, {"x": 2}):
            archive.writestr("archive/data.pkl", pickle.dumps(value, 2))
    with pytest.raises(UserError, match="same name"):
        read_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x80\x04}.", "protocol 4"),
        (b"}\x94.", "instruction"),  # MEMOIZE, of protocol 4
        (b"}", "ends early"),
        (b".", "malformed"),
        (b"t.", "malformed"),
        (b"h\x05.", "malformed .*not found at index 5"),
        (b"}K\x01R.", "no function"),
        (b"}(K\x01u.", "shorter than"),
        (b"](K\x01K\x02u.", "no dict"),
        (b"}K\x01a.", "malformed .*append"),
        (b"})K\x01s.", "key is a tuple"),
        (b"}ccollections\nOrderedDict\n(K\x01tR.", "malformed"),
        (b"}ctorch\nSize\n(K\x01tR.", "holds a int, not a dictionary"),
        (b"}ctorch._utils\n_rebuild_parameter\n(K\x01K\x01K\x01tR.", "holds a int, not a dictionary"),
        (b"}ctorch._utils\n_rebuild_tensor_v2\n)R.", "tensor"),
        (b"}K\x01Q.", "persistent id"),
        (b"}(U\x07storageK\x01K\x01K\x01K\x01tQ.", "storage's description"),
        (b"}X\x02\x00\x00\x00\xff\xff.", "utf-8"),
        (b"X\xff\xff\xff\xffabc.", "ends early"),
        (b"c" + b"a" * 300 + b"\nb\n.", "name"),
        (b"K\x05.", "holds a int, not a dictionary"),
    ],
)
def test_malformed_pickles(tmp_path, data, problem):
    (tmp_path / "a.pth").write_bytes(zip_bytes(data, {}))
    with pytest.raises(UserError, match=rf"a\.pth.*{problem}"):
        read_torch(tmp_path / "a.pth")


@both
def test_tensors_where_text_belongs(tmp_path, container):
    """Comparing an array with a string gives an array, whose truth is an error."""
    data, storages = pickled({"x": Tensor(Storage("FloatStorage", [0.0, 1.0]), 0, (2,), (1,))}, container == "legacy")
    tensor = data[data.index(b"ctorch._utils") : data.rindex(b"s.")]
    wrong = b"\x80\x02}(" + tensor + b"K\x00K\x00K\x00K\x00tQ."
    contents = {"0": storages["0"].data}
    make = {"zip": lambda: zip_bytes(wrong, contents), "legacy": lambda: legacy_bytes(wrong, contents, {"0": 4})}
    (tmp_path / "a.pth").write_bytes(make[container]())
    with pytest.raises(UserError, match="persistent id"):
        read_torch(tmp_path / "a.pth")


def test_huge_memo_indices_take_no_memory(tmp_path):
    """Python's unpickler would make a table of 2^32 entries."""
    (tmp_path / "a.pth").write_bytes(zip_bytes(b"}r\xff\xff\xff\xff.", {}))
    assert read_torch(tmp_path / "a.pth") == {}


def test_deep_nesting_does_not_recurse(tmp_path):
    """Tuples in each other are harmless as a value; as a key they would be hashed, which recurses."""
    nest = b")" + b"\x85" * 200_000
    (tmp_path / "a.pth").write_bytes(zip_bytes(b"}X\x01\x00\x00\x00x" + nest + b"s.", {}))
    assert list(read_torch(tmp_path / "a.pth")) == ["x"]
    (tmp_path / "b.pth").write_bytes(zip_bytes(b"}" + nest + b"K\x01s.", {}))
    with pytest.raises(UserError, match="key is a tuple"):
        read_torch(tmp_path / "b.pth")


def test_one_list_does_not_become_many_dictionaries(tmp_path):
    """A long list of pairs, recalled again and again, would take the memory of a copy for every four bytes."""
    pairs = b"](" + b"K\x01K\x02\x86" * 2 + b"eq\x00"
    copy = b"ccollections\nOrderedDict\nh\x00\x85R"
    (tmp_path / "a.pth").write_bytes(zip_bytes(pairs + b"}(K\x05" + copy + b"K\x06" + copy + b"u.", {}))
    assert read_torch(tmp_path / "a.pth") == {5: {1: 2}, 6: {}}


def test_an_endless_pickle_is_refused(tmp_path):
    text = b"X" + struct.pack("<I", 5 << 20) + b"x" * (5 << 20)
    (tmp_path / "a.pth").write_bytes(zip_bytes(b"}" + text + b"K\x01s.", {}))
    with pytest.raises(UserError, match="longer than a checkpoint's"):
        read_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"<html><body>404</body></html>", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]
)
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pth"):
        read_torch(tmp_path / "a.pth")


def test_other_pickles_and_zips_are_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"x": 1}, 2) * 5)
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        read_torch(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(UserError, match="without a PyTorch checkpoint"):
        read_torch(tmp_path / "b.pth")


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(UserError, match=r"missing\.pth: no such file"):
        read_torch(tmp_path / "missing.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_torch(tmp_path)


# Damage


def small_checkpoint(path, container):
    shared = Storage("FloatStorage", [float(i) for i in range(24)], "a")
    state = OrderedDict(w=Tensor(shared, 0, (2, 3), (3, 1)), v=Parameter(shared, 6, (3, 4), (1, 3)))
    state._metadata = OrderedDict({"": {"version": 1}})
    value = {"net": state, "n": Tensor(Storage("LongStorage", [3], "b"), 0, (), ()), "epoch": 9, "size": Size((1,))}
    return save(path, value, container).read_bytes()


@both
def test_every_truncation_is_noticed(tmp_path, container):
    data = small_checkpoint(tmp_path / "a.pth", container)
    read_torch(tmp_path / "a.pth")
    for length in (*range(0, len(data), 3), len(data) - 1):
        (tmp_path / "a.pth").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"a\.pth"):
            read_torch(tmp_path / "a.pth")


@pytest.mark.parametrize("source", GOLDEN_FILES)
def test_truncations_of_the_golden_checkpoint(tmp_path, source):
    data = source.read_bytes()
    for length in np.linspace(0, len(data) - 1, 20).astype(int):
        (tmp_path / "a.pth").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"a\.pth"):
            read_torch(tmp_path / "a.pth")


@both
def test_flipped_bits_are_read_or_refused(tmp_path, container):
    data = small_checkpoint(tmp_path / "a.pth", container)
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.pth").write_bytes(damaged)
        try:
            read_torch(tmp_path / "a.pth")
        except UserError:
            refused += 1
    assert refused > 100


def test_flipped_bits_in_the_golden_pickle(tmp_path):
    data = GOLDEN_FILES[0].read_bytes()
    rng = random.Random(1)
    for _ in range(40):
        damaged = bytearray(data)
        damaged[rng.randrange(29632)] ^= 1 << rng.randrange(8)  # the length of its pickles
        (tmp_path / "a.pth").write_bytes(damaged)
        try:
            checkpoint = read_torch(tmp_path / "a.pth")
        except UserError:
            continue
        assert isinstance(checkpoint, dict)
