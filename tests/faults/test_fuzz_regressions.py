"""What the fuzzer found, each as the smallest test of the part that was mended."""

import json
import os
import subprocess
import sys
import warnings
import zipfile

import cv2
import h5py
import nnabla as nn
import numpy as np
import pytest
import tiny
from nnabla.function import PythonFunction

from eval.bins.metric import make_axis
from eval.lpips import load_lpips
from eval.results import read_rows, write_rows
from mrfomm import bundled
from mrfomm.commands import train
from mrfomm.config import load_config
from mrfomm.convert.torch_file import read_torch
from mrfomm.data.clips import BrokenClip, find_clips, open_clip
from mrfomm.errors import UserError, check_is_file, run_command
from mrfomm.media import provenance
from mrfomm.media.images import read_image
from mrfomm.media.writing import open_sink
from mrfomm.model.checkpoint import _fingerprint, read_h5
from mrfomm.reenactment.backends import Engine
from mrfomm.reenactment.motion import KeypointArrays
from mrfomm.reenactment.reconstruction import read_run
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.training.watch import read_log


def no_files(folder):
    """Paths that are there and yet no files, by what the message says of them."""
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to("circle")
    return {
        folder / "missing": "no such file",
        folder: "is a folder",
        folder / "pipe": "is a pipe",
        folder / "circle": "can't be opened",
        folder / ("x" * 300): "can't be opened",
        f"{folder}/a\0b": "can't be opened",
        "/dev/zero": "is a pipe, a socket or a device",
    }


READERS = (check_is_file, read_image, load_config, read_h5, read_torch, read_rows, load_lpips)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, read):
    for path, problem in no_files(tmp_path).items():
        with pytest.raises(UserError, match=problem):
            read(path)


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match="log.jsonl: can't be read"):
        read_log(tmp_path)


@pytest.mark.parametrize("part", ["prediction", "warped"])
def test_masks_of_a_picture_that_is_not_finite(part):
    whole = {name: np.zeros((1, 2, channels, 8, 8)) for name, channels in (("warped", 3), ("mask", 1))}
    whole["prediction"] = np.zeros((1, 3, 8, 8))
    whole[part] = np.full_like(whole[part], np.nan)

    class Broken:
        def run(self, name, inputs):
            return whole if name == "breakdown" else {}

    pose = KeypointArrays(np.zeros((1, 1, 2)), np.zeros((1, 1, 2, 2)))
    with pytest.raises(UserError, match="not finite"):
        list(Reenactor(Engine(8, Broken(), True), np.zeros((2, 8, 8, 3), np.uint8)).render_breakdown(pose))


def test_a_pipe_among_the_driving_frames_is_refused(tmp_path):
    os.mkfifo(tmp_path / "1.bmp")
    with pytest.raises(UserError, match="is a pipe"):
        provenance.describe([], tmp_path, "digest")


def test_a_long_override_is_not_told_in_full():
    with pytest.raises(UserError, match="not valid YAML") as told:
        load_config(bundled.CONFIGS / "vox-256.yaml", [f"model={'[' * 20_000}"])
    assert len(str(told.value)) < 300


def test_a_gif_that_is_an_hdf5_file(tmp_path):
    h5py.File(tmp_path / "a.gif", "w").close()
    (clip,) = find_clips(tmp_path)
    with pytest.raises(BrokenClip, match="not a readable video"):
        open_clip(clip).read([0], 4)


def test_a_pipe_among_the_clips_is_broken(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "b.png")
    for clip in find_clips(tmp_path):
        with pytest.raises(BrokenClip, match="is a pipe"):
            open_clip(clip)


def test_nothing_is_printed_of_broken_clips(tmp_path, capfd):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(BrokenClip):
        open_clip(*find_clips(tmp_path))
    assert capfd.readouterr().err == ""


def test_lack_of_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as leaving:
        run_command(lambda: np.empty(1 << 60, np.uint8))
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: not enough memory (Unable to allocate")


@pytest.mark.parametrize("told", ["memory error in alloc, SingletonManager", "oneDNN: create: out of memory"])
def test_the_libraries_lack_of_memory_is_one_line(capsys, told):
    def fail():
        raise RuntimeError(told)

    with pytest.raises(SystemExit) as leaving:
        run_command(fail)
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: not enough memory ({told})")


class Failing(PythonFunction):
    """An operator of ours in which something goes wrong."""

    def __init__(self, error):
        super().__init__(nn.Context(["cpu:float"]))
        self.error = error

    name = "Failing"

    def min_outputs(self):
        return 1

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs, outputs):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError("1 GB"), 2, "error: not enough memory (1 GB)"),
        (UserError("a.png: broken"), 2, "error: a.png: broken\n"),
    ],
)
def test_an_error_inside_the_networks_operators_is_itself(capsys, error, code, line):
    """nnabla wraps it into a SystemError."""
    output = Failing(error)(nn.Variable((1,)))
    with pytest.raises(SystemExit) as leaving:
        run_command(lambda: output.forward())
    assert leaving.value.code == code
    assert capsys.readouterr().err.startswith(line)


def test_pillows_remarks_are_not_shown(tmp_path):
    """A TIFF whose directory is cut short made Pillow warn."""
    (tmp_path / "a.tiff").write_bytes(b"II*\0" + (8).to_bytes(4, "little") + b"\x09\0" + b"\0" * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="not a readable image"):
            read_image(tmp_path / "a.tiff")


# Configurations

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("parent: pipe", "pipe: is a pipe"),
        ('parent: "a\\0b"', "can't be opened"),
        (f"{LAUGHS}train: {{epochs: *i}}", "unknown key a"),
        ("train: {epochs: 0b" + "1" * 20_000 + "}", "thousands of digits"),
        ("train: {epochs: " + "9" * 6000 + "}", "not valid YAML"),
        ("train: {learning_rate: 1" + "0" * 400 + "}", "must be a finite number"),
        ("train: {epochs: 1" + "0" * 300 + "}", "must be at most"),
        ("train: {seed: -1}", "train.seed must be at least 0"),
        ("data: {workers: 100000}", "data.workers must be at most 1000"),
        ("data: {augmentation: {jitter_brightness: -2.5}}", "jitter_brightness must lie in 0..1"),
        ("data: {augmentation: {jitter_hue: 0.7}}", "jitter_hue must lie in 0..0.5"),
        ("loss: {pixel: -1}", "loss.pixel must not be negative"),
        (f"train: {{epochs: {'x' * 50_000}}}", "must be a whole number"),
        ("# " + "x" * (1 << 16), "larger than a configuration can be"),
    ],
)
def test_configurations(tmp_path, text, problem):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        load_config(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(
    "text", ["[" * 1000, "9" * 6000, LAUGHS.replace("\n", ", ").join("{}"), "2001-99-99", "1:" + "9" * 400 + ":0.5"]
)
def test_overrides(tmp_path, text):
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(UserError, match="train.epochs") as caught:
        load_config(tmp_path / "c.yaml", [f"train.epochs={text}"])
    assert len(str(caught.value)) < 50_000


def test_a_damaged_checkpoint_is_stepped_over_in_one_line(tmp_path, capsys):
    """YAML's errors have several."""
    (tmp_path / "data" / "train" / "a#0").mkdir(parents=True)
    for i, frame in enumerate(tiny.frames(3)):
        cv2.imwrite(str(tmp_path / "data" / "train" / "a#0" / f"{i}.png"), frame)
    for number in (1, 2):
        tiny.checkpoint(tmp_path / "run" / f"checkpoint-{number:08d}")
        path = tmp_path / "run" / f"checkpoint-{number:08d}" / "config.yaml"
        record = json.loads(path.with_name("state.json").read_text())
        path.write_text("model: {a: [\n b\n")
        record["files"]["config.yaml"] = _fingerprint(path)
        path.with_name("state.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no whole checkpoint"):
        train.load_resumable(tmp_path / "run")
    assert len(capsys.readouterr().err.splitlines()) == 2


# Weights of LPIPS


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update({"conv3/b": np.array("x")}),
        lambda arrays: arrays.update({"head2/w": np.full_like(arrays["head2/w"], np.nan)}),
        lambda arrays: arrays.update({"head2/w": arrays["head2/w"][:-1]}),
        lambda arrays: arrays.update({"conv1/W": np.zeros((64, 3, 99, 99), np.float32)}),
        lambda arrays: arrays.update({"conv1/b": np.zeros((2, 2), np.float32)}),
        lambda arrays: arrays.update({"conv1/W": np.array(1 + 2j)}),
        lambda arrays: arrays.update({"conv1/W": np.array([None])}),
    ],
)
def test_lpips_weights_of_other_shapes_or_kinds(tmp_path, change):
    with np.load(bundled.LPIPS_ALEXNET) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(UserError, match=r"w\.npz: "):
        load_lpips(tmp_path / "w.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'shape': (",
        "(" * 200,
    ],
)
def test_arrays_that_lie(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        text = header.encode() + b"\n"
        file.writestr("conv1/W.npy", b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + b"\0" * 64)
    with pytest.raises(UserError, match="not a readable file of LPIPS weights"):
        load_lpips(tmp_path / "w.npz")


def test_zip_bomb_instead_of_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("conv1/W.npy", b"\0" * 10**7)
    with pytest.raises(UserError, match="larger than the file can hold"):
        load_lpips(tmp_path / "w.npz")


# Measures


@pytest.mark.parametrize(("width", "limit"), [(2, 1e308), (1e-9, 60), (1e-300, 1e300)])
def test_more_bins_than_anybody_needs(width, limit):
    with pytest.raises(UserError, match="more than 36000 bins"):
        make_axis(width, limit)


# Records


def record(**changes):
    frame = {"frame": 0, "file": "frames/a/000000.png", "references": [0], "l1": 0.1}
    row = {"clip": "a", "source": "a.mp4", "references": [0], "l1": 0.1, "frames": [frame], "digest": ""}
    for key, value in changes.items():
        (row if key in row else frame)[key] = value
    return json.dumps(row)


SETTINGS = {"weights": "w", "data": "d", "image_size": 32, "references": 1, "fusion": "mean", "pseudo": False}


def write_run(folder, line, **settings):
    (folder / "manifest.jsonl").write_text(line + "\n")
    (folder / "settings.json").write_text(json.dumps({"settings": {**SETTINGS, **settings}, "clips": 1}))
    return folder


def test_the_record_is_fine_as_it_is(tmp_path):
    assert read_run(write_run(tmp_path, record())).rows[0].clip == "a"


@pytest.mark.parametrize(
    "line",
    [
        record(clip="../../etc/cron.d/x"),  # eval.reconstruction writes a file of this name
        record(clip=".."),
        record(clip="/tmp/x"),
        record(file="/etc/passwd"),
        record(file="frames/../../../etc/passwd"),
        record(frame=-1),
        record(frame=0.5),
        record(frames=[]),
        record(l1=float("nan")),
        record(l1=True),
        record(references=5),
        "null",
        "[1]",
        "[" * 100_000,
    ],
)
def test_records_of_a_reconstruction(tmp_path, line):
    with pytest.raises(UserError, match="line 1 is not what"):
        read_run(write_run(tmp_path, line))


@pytest.mark.parametrize("settings", [{"image_size": "32"}, {"image_size": 0}, {"pseudo": 1}, {"x": 1}])
def test_settings_of_a_reconstruction(tmp_path, settings):
    with pytest.raises(UserError, match=r"settings\.json: line 1 is not what"):
        read_run(write_run(tmp_path, record(), **settings))


def test_deeply_nested_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_rows(tmp_path / "a.jsonl")


# Names


def test_names_that_are_no_text_are_written_and_printed(tmp_path):
    name = os.fsdecode(b"\xff\xfe")
    write_rows(tmp_path / "a.jsonl", [{"clip": name}])
    assert read_rows(tmp_path / "a.jsonl") == [{"clip": name}]
    code = f"from mrfomm.errors import run_command; run_command(lambda: print({name!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"\xff\xfe\n"


def test_frames_with_names_that_are_no_text_have_a_provenance(tmp_path):
    for folder, name in (("a", b"\xff.png"), ("b", b"\xfe.png")):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "0.png"), tiny.frames(1)[0])
        (tmp_path / folder / "0.png").rename(tmp_path / folder / os.fsdecode(name))
    assert provenance.clip_digest(tmp_path / "a") != provenance.clip_digest(tmp_path / "b")


# What a killed run left


def test_staging_folders_of_killed_runs_go_and_those_of_others_stay(tmp_path):
    target = tmp_path / "frames"
    (target / ".mrfomm-left").mkdir(parents=True)
    (target / ".mrfomm-left" / "half.png").write_text("half")
    with open_sink(target, 25) as first:
        assert not (target / ".mrfomm-left").exists()
        first.write(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(UserError, match="another run is at work there"), open_sink(target, 25):
            pytest.fail("must not be entered")
        first.write(np.zeros((8, 8, 3), np.uint8))
    with open_sink(tmp_path / "a.mp4", 25) as first:  # beside each other there is room for two
        first.write(np.zeros((8, 8, 3), np.uint8))
        with open_sink(tmp_path / "b.mp4", 25) as second:
            second.write(np.ones((8, 8, 3), np.uint8))
        first.write(np.zeros((8, 8, 3), np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "frames"]
    assert sorted(path.name for path in target.iterdir()) == ["000000.png", "000001.png"]
