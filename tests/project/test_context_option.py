"""`pytest --context cudnn`, without a GPU: an extension that fails, and one that computes on the CPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import nnabla as nn
import pytest
from conftest import ON_GPU
from tolerance import CUDNN, order_of_sums

ROOT = Path(__file__).parent.parent.parent


def run(folder, *words, extension=None):
    """pytest in a process that finds the text of an extension first."""
    if extension is not None:
        (folder / "nnabla_ext").mkdir()
        (folder / "nnabla_ext" / "cudnn.py").write_text(extension, encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-p", "no:cacheprovider", "--context", "cudnn", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_gpu_that_does_not_work_is_told_in_a_line(tmp_path):
    done = run(tmp_path, extension="raise ImportError('libcuda.so.1:\\nno such file')")
    line = "Exit: --context cudnn: GPU 0 doesn't work (libcuda.so.1: no such file); use --context cpu\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.skipif(importlib.util.find_spec("nnabla_ext.cudnn") is not None, reason="the extension is installed")
def test_a_missing_extension_is_told_in_a_line(tmp_path):
    done = run(tmp_path, "tests/networks/test_fusion.py")
    line = "Exit: --context cudnn: nnabla's CUDA extension is missing; pip install -c constraints.txt -e .[cuda]\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


EXTENSION = """
import nnabla as nn
def context(device_id):
    return nn.Context(["cpu:float"], "CpuCachedArray", "7")
"""
PROBE = """
def pytest_sessionfinish():
    import nnabla as nn
    from mrfomm.runtime.context import choose_context, use_context
    with use_context("cpu"):
        print("devices", choose_context("auto").device_id, nn.get_current_context().device_id)
    print("outside", nn.get_current_context().device_id)
"""


def test_others_are_left_out_and_commands_compute_there(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    files = ["networks/test_fusion.py", "networks/test_hopper.py", "eval/test_lpips.py", "training/test_trainer.py"]
    words = ["-p", "probe", "-s", "--collect-only", "tests/media", *(f"tests/{name}" for name in files)]
    done = run(tmp_path, *words, extension=EXTENSION)
    assert done.returncode == 0
    assert "tests of tests/eval, tests/networks, tests/training on the GPU; all others are left out\n" in done.stdout
    names = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert names == {f"tests/{name}" for name in files} - {"tests/networks/test_hopper.py"}
    assert "::test_it_learns\n" in done.stdout
    assert "::test_resumed_run" not in done.stdout  # compares bits
    assert "devices 7 7\noutside 7\n" in done.stdout


def test_the_files_are_there():
    for folder, names in ON_GPU.items():
        for name in names.split():
            assert (ROOT / "tests" / folder / f"test_{name}.py").is_file()


def test_tolerance():
    assert order_of_sums() == 0
    assert order_of_sums(1e-6) == 1e-6
    with nn.context_scope(nn.Context(["cudnn:float", "cuda:float", "cpu:float"], "CudaCachedArray", "0")):
        assert order_of_sums() == order_of_sums(1e-6) == CUDNN
        assert order_of_sums(1e-3) == 1e-3
