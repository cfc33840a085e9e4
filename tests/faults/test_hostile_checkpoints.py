"""Checkpoints made to harm: each is refused in one line with exit code 2, before it runs, reads or fills anything.

The commands run here as users run them, but for the process; memory is limited to little more than they have already.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import yaml

from mrfomm import bundled
from mrfomm.commands import animate, train
from mrfomm.config import config_to_yaml
from mrfomm.convert import __main__ as convert
from mrfomm.errors import run_command
from mrfomm.training.run_folder import load_resumable

GOLDEN = Path(__file__).parent.parent / "golden" / "fomm-tiny"
HEAD_ROOM = 1 << 30  # bytes of address space; the largest claims here are thousands of times that
LEGACY_HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


@contextlib.contextmanager
def little_memory():
    """Context manager in which this process gets HEAD_ROOM more address space at most."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + HEAD_ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def files_below(folder):
    paths = (path for path in folder.rglob("*") if not path.is_dir() and path.exists() and path.name != ".lock")
    return {path: path.stat().st_size for path in paths}


@pytest.fixture
def refuse(tmp_path, capsys):
    """A function that runs a command, which must end as in the first line of this file; returns the line."""

    def refuse(main, *arguments):
        before = files_below(tmp_path)
        capsys.readouterr()
        with little_memory(), pytest.raises(SystemExit) as left:
            run_command(lambda: main([str(argument) for argument in arguments]))
        printed = capsys.readouterr()
        assert left.value.code == 2, printed.err
        told = (
            "stepping over a checkpoint: ",
            "data  ",
            "device  ",
            "folder  ",
            "model  ",
            "steps  ",
        )  # before it is met
        lines = [line for line in printed.err.splitlines() if not line.startswith(told)]
        assert len(lines) == 1, printed.err
        assert lines[0].startswith("error: ")
        assert printed.out == ""
        assert files_below(tmp_path) == before
        return lines[0]

    return refuse


# Pickles that run code


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def short(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def gadgets(command):
    """Pickles by kind, each of which runs a shell command, or imports a module "evil_module" that would."""
    call = text(command)
    python = text(f"import os; os.system({command!r})")
    system = b"cposix\nsystem\n"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return {
        "REDUCE": b"\x80\x02" + system + call + b"\x85R.",
        "REDUCE of exec": b"\x80\x02c__builtin__\nexec\n" + python + b"\x85R.",
        "REDUCE of eval of exec": b"\x80\x02c__builtin__\neval\n"
        + text(f"__import__('os').system({command!r})")
        + b"\x85R.",
        "REDUCE in protocol 0": b"cposix\nsystem\n(V" + command.encode() + b"\ntR.",
        "REDUCE of Popen": b"\x80\x02csubprocess\ncall\n(]"
        + b"".join(text(word) + b"a" for word in ("sh", "-c", command))
        + b"tR.",
        "GLOBAL of an unknown module": b"\x80\x02cevil_module\nanything\n.",
        "INST": b"\x80\x02(" + call + b"iposix\nsystem\n.",
        "OBJ": b"\x80\x02(" + system + call + b"o.",
        "BUILD": b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + system + b"sb" + call + b"b.",
        "STACK_GLOBAL": b"\x80\x04" + short("posix") + short("system") + b"\x93" + call + b"\x85R.",
        "STACK_GLOBAL of remembered strings": b"\x80\x04"
        + short("system")
        + b"\x94"
        + short("posix")
        + b"\x94h\x01h\x00\x93"
        + call
        + b"\x85R.",
        "STACK_GLOBAL of an unknown module": b"\x80\x04" + short("evil_module") + short("anything") + b"\x93.",
        "in a dictionary in a list": b"\x80\x02}"
        + text("generator")
        + b"]}"
        + text("w")
        + system
        + call
        + b"\x85Rsas.",
        "as the key of a dictionary": b"\x80\x02}" + system + call + b"\x85RK\x01s.",
        "as an argument of what is allowed": b"\x80\x02" + rebuild + b"(" + system + call + b"\x85RK\x00)))NtR.",
        "as a storage": b"\x80\x02("
        + text("storage")
        + system
        + call
        + b"\x85R"
        + text("0")
        + text("cpu")
        + b"K\x01tQ.",
        "behind a first STOP": b"\x80\x02}." + b"\x80\x02" + system + call + b"\x85R.",
    }


KINDS = list(gadgets(""))


def containers(pickled):
    """The pickle by itself, and where torch keeps one."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as entries:
        entries.writestr("archive/data.pkl", pickled)
        entries.writestr("archive/version", "3\n")
    return {
        "bare": pickled,
        "zip": archive.getvalue(),
        "legacy": LEGACY_HEAD + pickled + pickle.dumps([], 2),
        "legacy, first": pickled + LEGACY_HEAD,
        "legacy, third": LEGACY_HEAD[: LEGACY_HEAD.index(b"little_endian") - 8] + pickled + pickle.dumps({}, 2),
    }


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What every gadget would create."""
    marker = tmp_path / "ran"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\nanything = 1\n")
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield marker
    sys.modules.pop("evil_module", None)


class Unpickler(pickle.Unpickler):
    """Python's own, which knows nothing of storages, behind stand-ins for torch's names."""

    def persistent_load(self, identity):
        return identity

    def find_class(self, module, name):
        return dict if module.startswith("torch") else super().find_class(module, name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "behind a first STOP"])
def test_the_gadgets_work(marker, kind):
    """With Python's own unpickler: otherwise the test below could pass because its pickles do nothing."""
    with contextlib.suppress(TypeError):  # of what follows the call
        Unpickler(io.BytesIO(gadgets(f"touch '{marker}'")[kind])).load()
    assert marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_never_runs(tmp_path, marker, refuse, kind):
    for container, content in containers(gadgets(f"touch '{marker}'")[kind]).items():
        path = tmp_path / "evil.pth.tar"
        path.write_bytes(content)
        line = refuse(convert.main, path, "-o", tmp_path / "out")
        assert line.startswith(f"error: {path}: "), container
        for command in (animate.main, train.main):
            option = "--weights" if command is animate.main else "--init"
            assert "is a file, not a checkpoint folder" in refuse(command, option, path, "--output", tmp_path / "out")
        assert not marker.exists(), container
        assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    "value",
    [
        {"generator": 5},
        {"generator": [1]},
        {"generator": {}, "discriminator": 3},
        {"generator": {}, "discriminator": {1: 2}},
        {"generator": {1: 2}},
        {"generator": {"a": {"b": {}}}, "kp_detector": None},
        {"features.0.weight": "text"},
        {"conv1/conv/W": {}},
        {},
    ],
    ids=repr,
)
def test_dictionaries_of_nonsense(tmp_path, refuse, value):
    path = tmp_path / "odd.pth"
    path.write_bytes(containers(pickle.dumps(value, 2))["zip"])
    assert refuse(convert.main, path, "-o", tmp_path / "out.h5").startswith(f"error: {path}: ")


# Zip archives


def golden_zip(change):
    """The golden checkpoint's entries (name -> bytes) after a change, and a ZipFile that is still open."""
    with zipfile.ZipFile(GOLDEN / "checkpoint-zip.pth.tar") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    archive = zipfile.ZipFile(file, "w")
    change(entries)
    for name, data in entries.items():
        archive.writestr(name, data)
    return archive, file


def convert_golden(refuse, tmp_path, archive, file):
    archive.close()
    path = tmp_path / "c.pth.tar"
    path.write_bytes(file.getvalue())
    return refuse(convert.main, path, "-o", tmp_path / "out" / "c", "--config", GOLDEN / "config.yaml")


def largest(entries):
    return max((name for name in entries if "/data/" in name), key=lambda name: len(entries[name]))


@pytest.mark.parametrize("claim", [1 << 31, 1 << 40, 1 << 62])
@pytest.mark.parametrize("which", ["pickle", "storage"])
def test_entries_that_claim_to_be_huge(tmp_path, refuse, which, claim):
    archive, file = golden_zip(lambda entries: None)
    for info in archive.infolist():
        if info.filename.endswith("data.pkl") if which == "pickle" else "/data/" in info.filename:
            info.file_size = info.compress_size = claim
    assert "is larger than the file" in convert_golden(refuse, tmp_path, archive, file)


@pytest.mark.parametrize("which", ["pickle", "storage"])
def test_zip_bombs(tmp_path, refuse, which):
    """64 MB of zeros in 64 kB."""
    names = []

    def drop(entries):
        names.append(pickle_of(entries) if which == "pickle" else largest(entries))
        del entries[names[0]]

    archive, file = golden_zip(drop)
    archive.writestr(names[0], bytes(64 << 20), zipfile.ZIP_DEFLATED)
    assert "is compressed; load and save it again with PyTorch" in convert_golden(refuse, tmp_path, archive, file)


def pickle_of(entries):
    return next(name for name in entries if name.endswith("data.pkl"))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_entry_twice(tmp_path, refuse):
    archive, file = golden_zip(lambda entries: None)
    archive.writestr(pickle_of(archive.namelist()), b"\x80\x02}.")
    assert "two zip entries have the same name" in convert_golden(refuse, tmp_path, archive, file)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "archive/../../escaped", "archive\\..\\..\\escaped"])
def test_paths_in_a_zip_lead_nowhere(tmp_path, name):
    """Nothing is unpacked to disk: entries that no tensor names are not even read."""
    archive, file = golden_zip(lambda entries: None)
    archive.writestr(name, b"escaped")
    archive.close()
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    (folder / "c.pth.tar").write_bytes(file.getvalue())
    assert (
        convert.main([str(folder / "c.pth.tar"), "-o", str(folder / "out"), "--config", str(GOLDEN / "config.yaml")])
        == 0
    )
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "c.pth.tar",
        *("config.yaml", "parameters.h5", "state.json"),
    }
    assert not Path("/tmp/escaped").exists()


def test_storage_keys_that_are_paths(tmp_path, refuse):
    """The pickle asks for the storage ../../secret, which lies beside the checkpoint."""
    (tmp_path / "secret").write_bytes(bytes(4))
    name = text("storage") + b"ctorch\nFloatStorage\n" + text("../../secret") + text("cpu") + b"K\x01"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + name + b"tQK\x00K\x01\x85K\x01\x85\x89NtR"
    path = tmp_path / "c.pth"
    path.write_bytes(containers(b"\x80\x02}" + text("w") + tensor + b"s.")["zip"])
    assert "zip entry 'archive/data/../../secret' is missing" in refuse(convert.main, path, "-o", tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_foreign_weights_that_are_not_finite_are_named(tmp_path, refuse, value):
    def spoil(entries):
        name = largest(entries)
        entries[name] = entries[name][:-4] + struct.pack("<f", value)

    assert "has values that are not finite" in convert_golden(refuse, tmp_path, *golden_zip(spoil))


# Our own checkpoint folders


def sign(folder):
    """Bring sizes and checksums of state.json up to date, as who made the checkpoint would."""
    manifest = json.loads((folder / "state.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "state.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of one step, with solver states."""
    folder = tmp_path_factory.mktemp("finished")
    options = [
        "loss.perceptual_network=none",
        "loss.pixel=10",
        "data.workers=0",
        "train.epochs=1",
        "data.num_repeats=1",
    ]
    options += ["train.keep_checkpoints=1", "train.batch_size=1", "train.discriminator=false", "data.root=bundled"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.VALUES))
    where = ["--config", folder / "tiny.yaml", "--output", folder / "run", "--context", "cpu", "--set", *options]
    assert train.main([str(part) for part in where]) == 0
    return load_resumable(folder / "run").folder


@pytest.fixture
def checkpoint(tmp_path, finished_run):
    """A checkpoint of a run to spoil; its run folder is the parent."""
    folder = tmp_path / "run" / finished_run.name
    folder.mkdir(parents=True)
    for path in finished_run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def finished_config(checkpoint):
    """A configuration that fits the checkpoint as it was."""
    path = checkpoint.parent.parent / "tiny.yaml"
    path.write_text(config_to_yaml(tiny.config(train={"batch_size": 1})))
    return path


def refused_everywhere(refuse, checkpoint, named, resumes=True):
    """Every command that takes weights refuses them and names what is wrong."""
    out = checkpoint.parent.parent / "out"
    assert named in refuse(animate.main, "--weights", checkpoint, "--output", out / "a.mp4")
    init = ["--config", finished_config(checkpoint), "--data", bundled.SAMPLE_DATA, "--init", checkpoint]
    assert named in refuse(train.main, *init, "--output", out / "run", "--context", "cpu")
    if resumes:
        assert "no whole checkpoint" in refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")


def external_link(file, name, secret):
    file[name] = h5py.ExternalLink(str(secret), "/x")


def soft_link(file, name, secret):
    file[name] = h5py.SoftLink("/somewhere")


def virtual_data(file, name, secret):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (3,))
    file.create_virtual_dataset(name, layout)


def external_storage(file, name, secret):
    file.create_dataset(name, (3,), "f4", external=[(str(secret), 0, 12)])


ELSEWHERE = pytest.mark.parametrize("make", [external_link, soft_link, virtual_data, external_storage])


def replace_data(path, make, secret):
    """Put something else in the place of a file's first array; returns the array's name."""
    with h5py.File(path, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        del file[names[0]]
        make(file, names[0], secret)
    return names[0]


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3, dtype=np.float32)
    return path


@ELSEWHERE
def test_weights_that_lie_in_another_file(checkpoint, secret, refuse, make):
    name = replace_data(checkpoint / "parameters.h5", make, secret)
    sign(checkpoint)
    refused_everywhere(refuse, checkpoint, f"parameters.h5: {name} ")


@ELSEWHERE
def test_solver_states_that_lie_in_another_file(checkpoint, secret, refuse, make):
    """nnabla's own reading of a solver's states would follow them."""
    name = replace_data(checkpoint / "solver_generator.h5", make, secret)
    sign(checkpoint)
    line = refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")
    assert f"solver_generator.h5: {name} " in line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file, name: file[name].__setitem__(..., np.nan), "aren't finite"),
        (lambda file, name: file.move(name, f"{name}-else"), "has no place"),
        (lambda file, name: file.__delitem__(name), "is missing"),
        (lambda file, name: file.create_dataset("extra/t", data=1), "extra/t has no place"),
    ],
    ids=["NaN", "renamed", "missing", "extra"],
)
def test_solver_states_that_do_not_fit(checkpoint, refuse, change, problem):
    with h5py.File(checkpoint / "solver_generator.h5", "r+") as file:
        change(file, "generator/first/conv/W/mean")
    sign(checkpoint)
    assert problem in refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")


@pytest.mark.parametrize("count", [-1, 1 << 40])
def test_solver_steps_that_can_not_be(checkpoint, refuse, count):
    with h5py.File(checkpoint / "solver_generator.h5", "r+") as file:
        file["generator/first/conv/W/t"][...] = count
    sign(checkpoint)
    assert "W/t is" in refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_named(checkpoint, refuse, value):
    with h5py.File(checkpoint / "parameters.h5", "r+") as file:
        file["generator/first/conv/W"][0, 0, 0, 0] = value
    sign(checkpoint)
    refused_everywhere(refuse, checkpoint, "generator/first/conv/W holds values that aren't finite", resumes=False)
    assert "aren't finite" in refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")


def test_weights_that_claim_to_be_huge(checkpoint, refuse):
    with h5py.File(checkpoint / "parameters.h5", "r+") as file:
        del file["generator/first/conv/W"]
        file.create_dataset("generator/first/conv/W", shape=(1 << 20, 1 << 20), dtype="f4")
    sign(checkpoint)
    refused_everywhere(refuse, checkpoint, "generator/first/conv/W is larger than the file can hold")


def test_weights_that_unpack_to_gigabytes(checkpoint, refuse):
    with h5py.File(checkpoint / "parameters.h5", "r+") as file:
        del file["generator/first/conv/W"]
        file.create_dataset(
            "generator/first/conv/W", shape=(1 << 28,), dtype="f4", compression="gzip", chunks=(1 << 20,), fillvalue=0
        )[: 1 << 20] = 1
    sign(checkpoint)
    refused_everywhere(refuse, checkpoint, "generator/first/conv/W is larger than the file can hold")


HUGE = {
    "generator": {"expansion": 65536, "max_features": 65536},
    "keypoints": {"expansion": 65536, "max_features": 65536},
    "motion": {"expansion": 65536, "max_features": 65536},
    "num_keypoints": 1000,
}


@pytest.mark.parametrize("key", HUGE)
def test_a_configuration_of_huge_networks_takes_no_memory(checkpoint, refuse, key):
    """Shapes are compared with the weights before memory is taken: these would need up to 150 GB a layer."""
    values = yaml.safe_load((checkpoint / "config.yaml").read_text())
    model = values["model"]
    model[key] = {**model[key], **HUGE[key]} if isinstance(HUGE[key], dict) else HUGE[key]
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(values))
    sign(checkpoint)
    out = checkpoint.parent.parent / "out.mp4"
    assert "the configuration" in refuse(animate.main, "--weights", checkpoint, "--output", out)
    assert "the configuration" in refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("model", {"image_size": 1 << 30}),
        ("model", {"num_keypoints": 10**9}),
        ("model", {"discriminator": {"blocks": 10**9}}),
        ("model", {"generator": {"bottleneck_blocks": 10**9}}),
        ("model", {"generator": {"max_features": 10**30}}),
        ("model", {"generator": {"expansion": -5}}),
        ("model", {"fusion": {"kernel": 10**9 + 1}}),
        ("parent", "../../secret.yaml"),
        ("parent", "/etc/passwd"),
    ],
    ids=str,
)
def test_absurd_configurations(checkpoint, refuse, section, values):
    content = yaml.safe_load((checkpoint / "config.yaml").read_text())
    content[section] = tiny.merged(content.get(section) or {}, values) if isinstance(values, dict) else values
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(content))
    sign(checkpoint)
    (checkpoint.parent.parent / "secret.yaml").write_text("secret: 1\n")
    refused_everywhere(refuse, checkpoint, f"config.yaml: {'unknown key parent' if section == 'parent' else 'model.'}")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "{" * 100_000,
        " " * (2 << 20),
        '{"state": {}, "files": {}}',
        '{"state": {}, "files": {"config.yaml": [], "parameters.h5": []}}',
        '{"state": {}, "files": {"config.yaml": {"size": 1e400, "sha256": ""}, "parameters.h5": {}}}',
        "1" * 100_000,
        "\0",
        "null",
    ],
    ids=lambda content: f"{content[:20]!r} and so on, {len(content)} characters",
)
def test_manifests_of_nonsense(checkpoint, refuse, content):
    (checkpoint / "state.json").write_text(content)
    refused_everywhere(refuse, checkpoint, f"{checkpoint.name}/")


@pytest.mark.parametrize("name", ["../../secret.h5", "/etc/passwd", "..", "", "sub/parameters.h5"])
def test_manifests_that_name_other_files(checkpoint, secret, refuse, name):
    manifest = json.loads((checkpoint / "state.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": ""}
    (checkpoint / "state.json").write_text(json.dumps(manifest))
    refused_everywhere(refuse, checkpoint, "missing from the checkpoint")


@pytest.mark.parametrize(
    "state", [{}, {"step": "1"}, {"step": -1}, {"epoch": 1.5}, {"batch": None}, {"best": "x"}, {"step": True}], ids=str
)
def test_positions_that_can_not_be(checkpoint, refuse, state):
    manifest = json.loads((checkpoint / "state.json").read_text())
    manifest["state"] = {**manifest["state"], **state} if state else {}
    (checkpoint / "state.json").write_text(json.dumps(manifest))
    line = refuse(train.main, "--resume", checkpoint.parent, "--context", "cpu")
    assert "state.json: doesn't tell where a training run stands" in line


@pytest.mark.parametrize("how", ["pipe", "loop", "device", "folder"])
@pytest.mark.parametrize("name", ["state.json", "config.yaml", "parameters.h5"])
def test_files_that_are_none(checkpoint, refuse, name, how):
    path = checkpoint / name
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)  # who opens it waits for ever
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if how == "loop" else "/dev/zero")
    refused_everywhere(refuse, checkpoint, checkpoint.name)


def test_what_is_spoilt_here_was_whole(tmp_path, checkpoint):
    """Without a change, every command takes the checkpoint that the tests above spoil."""
    (tmp_path / "refs").mkdir()
    sign(checkpoint)
    assert train.main(["--resume", str(checkpoint.parent), "--context", "cpu"]) == 0
    options = ["--driving", str(bundled.SAMPLE_DRIVING), "--no-audio", "--backend", "nnabla", "--context", "cpu"]
    assert animate.main(["--weights", str(checkpoint), "--output", str(tmp_path / "a.mp4"), *options]) == 0
