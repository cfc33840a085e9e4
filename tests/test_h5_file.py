"""Reading nnabla's HDF5 files, and what is refused in them."""

import h5py
import numpy as np
import pytest

from mrfomm.errors import UserError
from mrfomm.model.checkpoint import read_h5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "parameters.h5"


def write(path, make):
    with h5py.File(path, "w") as file:
        make(file)
    return path


def test_what_nnabla_saves_is_read(path):
    nn = pytest.importorskip("nnabla")
    rng = np.random.default_rng(0)
    arrays = {
        "b/conv/W": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "b/conv/b": rng.normal(size=4).astype(np.float32),
        "a/bn/mean": rng.normal(size=(1, 4, 1, 1)).astype(np.float32),
    }
    nn.save_parameters(str(path), {name: nn.Variable.from_numpy_array(array) for name, array in arrays.items()})
    found = read_h5(path)
    assert list(found) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_types_and_empty_groups(path):
    def make(file):
        file["double"] = np.array([1.5, -2.0])
        file["scalar"] = np.int64(7)
        file["empty"] = np.zeros((0, 3), np.float32)
        file.create_dataset("packed", data=np.zeros((100, 100), np.float32), compression="gzip", chunks=(100, 100))
        file["packed"][0, :50] = np.random.default_rng(0).normal(size=50)
        file.create_group("nothing/inside")

    found = read_h5(write(path, make))
    assert {name: (array.dtype.str, array.shape) for name, array in found.items()} == {
        "double": ("<f8", (2,)),
        "empty": ("<f4", (0, 3)),
        "packed": ("<f4", (100, 100)),
        "scalar": ("<i8", ()),
    }
    assert found["scalar"] == 7


def test_links_out_of_the_file_are_not_followed(path, tmp_path):
    write(tmp_path / "secret.h5", lambda file: file.create_dataset("x", data=np.ones(3)))
    write(path, lambda file: file.__setitem__("a/b", h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")))
    with h5py.File(path) as file:
        assert file["a/b"].shape == (3,)  # h5py would follow it
    with pytest.raises(UserError, match=r"parameters\.h5: a/b is a ExternalLink"):
        read_h5(path)


def test_soft_links_are_refused(path):
    def make(file):
        file["x"] = np.ones(3)
        file["y"] = h5py.SoftLink("/x")

    with pytest.raises(UserError, match="y is a SoftLink"):
        read_h5(write(path, make))


def test_data_outside_the_file_is_refused(path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    external = [(str(tmp_path / "secret"), 0, 16)]
    write(path, lambda file: file.create_dataset("x", (4,), "f4", external=external))
    with pytest.raises(UserError, match="x has its data in another file"):
        read_h5(path)


def test_virtual_data_is_refused(path, tmp_path):
    write(tmp_path / "secret.h5", lambda file: file.create_dataset("x", data=np.ones(3)))
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (3,))
    write(path, lambda file: file.create_virtual_dataset("x", layout))
    with pytest.raises(UserError, match="x has its data in another file"):
        read_h5(path)


def test_groups_that_contain_themselves_are_refused(path):
    with pytest.raises(UserError, match="a/b is neither array nor a group of its own"):
        read_h5(write(path, lambda file: file.create_group("a").__setitem__("b", file["a"])))


@pytest.mark.parametrize("value", ["text", [b"bytes"], h5py.Empty("f4"), np.zeros(2, [("a", "f4")])])
def test_what_is_no_number_is_refused(path, value):
    with pytest.raises(UserError, match="x holds .*, not numbers"):
        read_h5(write(path, lambda file: file.create_dataset("x", data=value)))


def test_a_type_is_refused(path):
    with pytest.raises(UserError, match="t is neither array"):
        read_h5(write(path, lambda file: file.__setitem__("t", np.dtype("f4"))))


def test_arrays_larger_than_the_file_take_no_memory(path):
    write(path, lambda file: file.create_dataset("x", shape=(1 << 20, 1 << 20), dtype="f4"))
    with pytest.raises(UserError, match="x is larger than the file can hold"):
        read_h5(path)


def test_other_and_truncated_files_are_refused(path, tmp_path):
    write(path, lambda file: file.create_dataset("a/x", data=np.ones(1000)))
    data = path.read_bytes()
    for damaged in (b"", b"<html>", *(data[:length] for length in range(8, len(data), 500))):
        (tmp_path / "b.h5").write_bytes(damaged)
        with pytest.raises(UserError, match=r"b\.h5: "):
            read_h5(tmp_path / "b.h5")
    for path, problem in ((tmp_path / "missing.h5", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=problem):
            read_h5(path)
