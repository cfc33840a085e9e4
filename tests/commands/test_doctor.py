"""python -m mrfomm.doctor: finds what is broken or computes wrongly, and says it in lines, never in a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrfomm.commands import doctor, machine
from mrfomm.commands.trial import Trial
from mrfomm.errors import UserError

ROOT = Path(__file__).parent.parent.parent
WRONG = "F.sigmoid = lambda x, sigmoid=F.sigmoid: 0.9 * sigmoid(x)"  # the picture's last function, among others


def run(folder, *options, **environment):
    """Run it in a process that finds modules and programs of ``folder`` first."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PATH": path, **environment}
    words = [sys.executable, "-m", "mrfomm.doctor", *options]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def fake_cudnn(folder, statement, version="1.39.0"):
    """An extension that computes on the CPU after it has executed a statement."""
    code = "import os\nimport nnabla.functions as F\nfrom nnabla_ext.cpu import context as cpu\n"
    write(folder / "nnabla_ext" / "cudnn.py", f"{code}def context(device_id):\n    {statement}\n    return cpu()\n")
    name = "nnabla_ext_cuda120"
    write(
        folder / f"{name}-{version}.dist-info" / "METADATA",
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    )


@pytest.fixture
def only_cudnn(monkeypatch):
    """main() that compares nothing but cudnn with the reference; machines' things are left out."""
    there = {"nnabla": "1", "cudnn": "2"}
    looks = {name: (lambda name=name: there.get(name, ""), "") for name in machine.LOOKS}
    monkeypatch.setattr(doctor, "LOOKS", looks)
    return lambda *options: doctor.main(list(options))


@pytest.mark.slow
def test_a_sound_machine(tmp_path):
    """What computes by other code differs, by less than a hundredth of what is let pass."""
    done = run(tmp_path, "--json", XDG_CACHE_HOME=str(tmp_path / "cache"))
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["problems"]) == (0, True, [])
    assert report["machine"].keys() == machine.LOOKS.keys()
    assert "nnabla 1.39" in report["machine"]["nnabla"]
    assert str(tmp_path / "cache" / "mrfomm") in report["machine"]["cache, disk"]
    computed = report["computed"]
    assert computed.keys() >= {"nnabla", "CPU operators", "onnxruntime"}
    for name in computed.keys() - {"nnabla"}:
        assert 0 < computed[name]["grey levels"] < doctor.MOST["grey levels"] / 100
        assert computed[name].get("losses", 0) < doctor.MOST["losses"] / 100
    assert computed["CPU operators"]["gradient"] > 0
    assert [line for line in done.stderr.splitlines() if line.startswith("computing: ")] == [
        f"computing: {name}" for name in computed
    ]


def test_broken_packages_become_lines(tmp_path):
    for name in ("nnabla", "onnxruntime"):
        write(tmp_path / name / "__init__.py", "raise ImportError('lib' + __name__ + '.so:\\nno such file')")
    done = run(tmp_path)
    assert done.returncode == 1
    for name, extra in (("nnabla", ""), ("onnxruntime", "[onnx]")):
        remedy = f"install it again: pip install -c constraints.txt -e .{extra}"
        assert f"\n{name}: ImportError: lib{name}.so: no such file; {remedy}\n" in done.stdout
    assert "computing" not in done.stderr
    report = json.loads(run(tmp_path, "--json").stdout)
    assert (report["ok"], report["computed"], report["machine"]["nnabla"]) == (False, {}, "")
    assert report["machine"]["Python"]


@pytest.mark.slow
def test_a_context_that_computes_wrongly_is_found(tmp_path, monkeypatch, capfd, only_cudnn):
    fake_cudnn(tmp_path, WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    assert only_cudnn("--json") == 1
    report = json.loads(capfd.readouterr().out)
    assert report["computed"]["cudnn"]["grey levels"] > 10
    (problem,) = report["problems"]
    assert problem.startswith("cudnn: differs from nnabla's own functions (grey levels ")
    assert problem.endswith("; use --context cpu, and report it")


@pytest.mark.slow
def test_the_same_context_computing_right_is_ok(tmp_path, monkeypatch, capfd, only_cudnn):
    fake_cudnn(tmp_path, "print('words of a library')")
    monkeypatch.syspath_prepend(tmp_path)
    assert only_cudnn() == 0
    out = capfd.readouterr().out
    assert out.endswith("\n\nok\n")
    assert "words" not in out


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("os.abort()", "cudnn: BrokenProcessPool: "),
        (
            "raise RuntimeError('an illegal\\ninstruction')",
            "cudnn: --context cudnn: GPU 0 doesn't work (an illegal i",
        ),
        ("F.softmax = lambda *_, **__: 1 / 0", "cudnn: ZeroDivisionError: division by zero; use --context cpu"),
        (
            "F.sigmoid = lambda x: x * float('nan')",
            "cudnn: ArithmeticError: the picture isn't finite; use",
        ),
    ],
)
def test_a_context_that_fails_becomes_a_line(tmp_path, monkeypatch, capfd, only_cudnn, statement, said):
    fake_cudnn(tmp_path, statement)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_apart", lambda name, apart=doctor._apart: STILL if name == "nnabla" else apart(name))
    assert only_cudnn() == 1
    assert capfd.readouterr().out.splitlines()[-1].startswith(said)


STILL = Trial(np.zeros((1, 3, 2, 2), np.float32), {"frame": 1.0, "step": 2.0}, {"a": 2.0, "b": 0.0}, 10.0)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"pictures": STILL.pictures + np.float32(0.9 / 255), "gradient": 10.09}, ""),
        ({"losses": {"a": 2.001, "b": 9e-6}}, ""),  # a loss that is 0 but for rounding
        ({"pictures": STILL.pictures + np.float32(2 / 255)}, "grey levels 2"),
        ({"losses": {"a": 2.01, "b": 0.0}}, "losses 0.005"),
        ({"losses": {"a": 2.0, "b": 0.1}}, "losses 10"),
        ({"gradient": 9.0}, "gradient 0.1"),
    ],
)
def test_how_much_is_too_much(changes, wrong):
    found = list(doctor.complaints("cudnn", doctor.numbers(STILL._replace(**changes), STILL)))
    line = f"cudnn: differs from nnabla's own functions ({wrong}); use --context cpu, and report it"
    assert found == ([line] if wrong else [])


def test_what_only_draws_is_compared_by_what_it_draws():
    assert doctor.numbers(Trial(STILL.pictures, {"frame": 3.0}), STILL) == {"frame": 3.0, "grey levels": 0.0}


def test_a_gpu(tmp_path, monkeypatch):
    """Its line, its extension's version, and a GPU that lies idle."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    line = "NVIDIA H200, 565.57.01, 9.0, 143771 MiB"
    write(tmp_path / "nvidia-smi", f"#!/bin/sh\necho '{line}'\n", 0o755)
    assert machine.LOOKS["GPU"][0]() == line
    with pytest.raises(UserError, match="the GPU does nothing"):
        machine.LOOKS["cudnn"][0]()
    fake_cudnn(tmp_path, "", "1.38.0")
    with pytest.raises(UserError, match="nnabla-ext-cuda120 1.38.0 doesn't fit nnabla; .*cuda120==1.39.0"):
        machine.LOOKS["cudnn"][0]()
    write(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'has failed'\nexit 9\n", 0o755)
    with pytest.raises(UserError, match="nvidia-smi says has failed"):
        machine.LOOKS["GPU"][0]()


def test_a_cuda_library_that_does_not_load(tmp_path, monkeypatch):
    fake_cudnn(tmp_path, "")
    write(tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8", "no library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match=r"libcudnn\.so\.8"):
        machine.LOOKS["cudnn"][0]()


def test_a_cache_that_can_not_be_written(tmp_path, monkeypatch):
    write(tmp_path / "file", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="the cache can't be written, .*; set XDG_CACHE_HOME"):
        machine.LOOKS["cache, disk"][0]()
