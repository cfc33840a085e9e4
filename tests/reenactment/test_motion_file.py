"""Motion files: what comes back, what is drawn by them, and what is refused."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import tiny

from mrfomm.errors import UserError
from mrfomm.reenactment.motion import KeypointArrays, Motion, Transfer, load_motion, save_motion
from mrfomm.reenactment.reenactor import Reenactor

MEMBERS = {"version", "fps", "probe", "value", "value_step", "jacobian", "jacobian_step"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def reenactor(folder):
    return Reenactor(folder / "weights", tiny.frames(3), backend="nnabla")


def motion(count=50, seed=0):
    rng = np.random.default_rng(seed)
    value = np.tanh(rng.normal(size=(count, 4, 2)).cumsum(axis=0) / 3).astype(np.float32)
    jacobian = rng.normal(size=(count, 4, 2, 2)).astype(np.float32)
    return Motion(KeypointArrays(value, jacobian), 29.97, np.float32(rng.normal(size=(4, 6))))


def test_numbers_come_back_to_half_a_step(tmp_path):
    written = motion()
    save_motion(tmp_path / "m.npz", written)
    read = load_motion(tmp_path / "m.npz")
    for ours, theirs in zip(read.keypoints, written.keypoints):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=np.abs(theirs).max() / 32767 * 0.501)
    assert read.fps == written.fps
    np.testing.assert_array_equal(read.probe, written.probe)
    save_motion(tmp_path / "again.npz", written)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()


def test_still_motion_and_a_zero_come_back(tmp_path):
    still = Motion(
        KeypointArrays(np.zeros((3, 1, 2), np.float32), np.ones((3, 1, 2, 2), np.float32)), 25, np.zeros((1, 6))
    )
    save_motion(tmp_path / "m.npz", still)
    for ours, theirs in zip(load_motion(tmp_path / "m.npz").keypoints, still.keypoints):
        np.testing.assert_array_equal(ours, theirs)


def test_it_holds_keypoints_alone(tmp_path):
    save_motion(tmp_path / "m.npz", motion())
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert {name.removesuffix(".npy") for name in archive.namelist()} == MEMBERS
        numbers = 50 * 4 * 6 + 4 * 6 + 4
        assert sum(entry.file_size for entry in archive.infolist()) < 4 * numbers + len(MEMBERS) * 128


@pytest.mark.parametrize("transfer", [Transfer(), Transfer("absolute"), Transfer(start=2, strength=0.5)])
def test_it_draws_what_the_clip_draws(reenactor, tmp_path, transfer):
    frames = tiny.frames(9, seed=3)
    recorded = reenactor.record(reenactor.fitted(frames))
    assert recorded.fps == 25  # as these frames have none
    expected = np.stack(list(reenactor.animate(frames, transfer)))
    np.testing.assert_array_equal(list(reenactor.animate(recorded, transfer)), expected)
    save_motion(tmp_path / "m.npz", recorded)
    drawn = np.stack(list(reenactor.animate(tmp_path / "m.npz", transfer)))
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_models_that_share_a_detector_share_files(folder, reenactor):
    recorded = reenactor.record(reenactor.fitted(tiny.frames(2)))
    other = Reenactor(folder / "weights", tiny.frames(1), fusion="occlusion", backend="nnabla")
    assert len(list(other.animate(recorded))) == 2


def test_another_model_is_refused(folder, reenactor, tmp_path):
    tiny.checkpoint(folder / "other", model={"num_keypoints": 4})
    other = Reenactor(folder / "other", tiny.frames(1), backend="nnabla")
    save_motion(tmp_path / "m.npz", reenactor.record(reenactor.fitted(tiny.frames(2))))
    with pytest.raises(UserError, match=r"m\.npz: made with another model"):
        other.animate(tmp_path / "m.npz")
    recorded = load_motion(tmp_path / "m.npz")
    for probe in (recorded.probe + 1, np.full_like(recorded.probe, np.nan)):
        with pytest.raises(UserError, match="another model"):
            list(reenactor.animate(recorded._replace(probe=probe)))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def header(shape, descr="<i2"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


HOSTILE = {
    "pickled": {"value": npy(np.array([Trap()], object), allow_pickle=True)},
    "missing": {"probe": None},
    "no array": {"value": b"nothing"},
    "huge by its header": {"value": header((10**12, 4, 2)) + b"\0" * 100},
    "huge": {"value": header((1 << 20, 17, 2)) + bytes(68 << 20)},
    "deep header": {"value": b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535},
    "other type": {"value": npy(np.zeros((50, 4, 2)))},
    "other shape": {"jacobian": npy(np.zeros((49, 4, 2, 2), np.int16))},
    "flat": {"value": npy(np.zeros(400, np.int16))},
    "empty": {"value": npy(np.zeros((0, 4, 2), np.int16)), "jacobian": npy(np.zeros((0, 4, 2, 2), np.int16))},
    "no step": {"value_step": npy(np.float32(np.nan))},
    "endless step": {"jacobian_step": npy(np.float32(np.inf))},
    "text for a rate": {"fps": npy("fast")},
    "rate": {"fps": npy(0.0)},
    "probe": {"probe": npy(np.zeros((3, 6)))},
    "later version": {"version": npy(2)},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_a_line(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    save_motion("good.npz", motion())
    with zipfile.ZipFile("good.npz") as good, zipfile.ZipFile("bad.npz", "w", zipfile.ZIP_DEFLATED) as bad:
        for name in MEMBERS:
            data = HOSTILE[case].get(name, good.read(f"{name}.npy"))
            if data is not None:
                bad.writestr(f"{name}.npy", data)
    with pytest.raises(UserError, match=r"bad\.npz: damaged or not a motion file"):
        load_motion("bad.npz")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_cut_files_are_refused(tmp_path, cut):
    save_motion(tmp_path / "m.npz", motion())
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:cut])
    with pytest.raises(UserError, match=r"m\.npz: damaged"):
        load_motion(tmp_path / "m.npz")


def test_flipped_bytes_are_noticed(tmp_path):
    save_motion(tmp_path / "m.npz", motion())
    whole = (tmp_path / "m.npz").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "m.npz").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError, match=r"m\.npz: damaged"):
        load_motion(tmp_path / "m.npz")


def test_other_files_are_named(tmp_path):
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"pickle\.npz: damaged or not"):
        load_motion(tmp_path / "pickle.npz")
    with pytest.raises(UserError, match=r"none\.npz: no such file"):
        load_motion(tmp_path / "none.npz")
    with pytest.raises(UserError, match="is a folder"):
        load_motion(tmp_path)
    with pytest.raises(UserError, match="not finite"):
        save_motion(
            tmp_path / "m.npz", motion()._replace(keypoints=KeypointArrays(np.full((1, 4, 2), np.nan), np.ones(1)))
        )
    assert not (tmp_path / "m.npz").exists()
