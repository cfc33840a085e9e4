"""The choice of where to compute, and of the communicator. What needs several processes is in test_processes.py."""

import importlib.util
import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nnabla as nn
import nnabla.communicators
import nnabla.functions as F
import nnabla_ext
import numpy as np
import pytest

from mrfomm.errors import UserError
from mrfomm.networks import ops
from mrfomm.runtime import context
from mrfomm.runtime import processes as runtime

ROOT = Path(__file__).parent.parent.parent
no_extension = pytest.mark.skipif(
    importlib.util.find_spec("nnabla_ext.cudnn") is not None, reason="nnabla's CUDA extension is installed"
)


@pytest.fixture
def broken_extension(monkeypatch, tmp_path):
    """nnabla's CUDA extension as it is without a driver: there, but its import prints and fails."""
    package = tmp_path / "nnabla_ext" / "cudnn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('no list of GPUs')\nraise ImportError('libcuda.so.1: no such\\nfile')")
    monkeypatch.setattr(nnabla_ext, "__path__", [*nnabla_ext.__path__, str(package.parent)])


@no_extension
def test_one_process_without_gpu_is_silent_and_leaves_mpi_alone():
    code = (
        "import sys; from mrfomm.runtime.processes import start_processes\n"
        "with start_processes('auto') as communicator: assert communicator.size == 1\n"
        "assert 'mpi4py' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@no_extension
def test_cudnn_without_extension():
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e \.\[cuda\]"):
        context.choose_context("cudnn")


def test_a_module_called_nvidia_has_no_libraries(tmp_path, monkeypatch):
    """Pip's wheels make a package of that name; a file nvidia.py has no folders to look in."""
    (tmp_path / "nvidia.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    context.load_cuda_wheels()


def test_auto_warns_if_the_extension_does_not_work(broken_extension, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        chosen = context.choose_context("auto", device=3)
    assert chosen.backend == ["cpu:float"]
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 3 doesn't work (libcuda.so.1: no such file); computing on the CPU"
    ]
    assert capsys.readouterr() == ("", "")


def test_cudnn_says_why_it_does_not_work(broken_extension):
    with pytest.raises(UserError, match=r"GPU 0 doesn't work \(libcuda\.so\.1: no such file\); use --context cpu"):
        context.choose_context("cudnn")


def test_start_of_one_process(monkeypatch):
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    with runtime.start_processes("cpu") as communicator:
        assert nn.get_current_context().backend == ["cpu:float"]
        assert (communicator.rank, communicator.size) == (0, 1)
        assert communicator.synchronised(ops.NNABLA) is ops.NNABLA
        assert communicator.share("value") == "value"
        assert communicator.any(True)
        assert not communicator.any(False)


def test_mpirun_without_mpi4py(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e \.\[mpi\]"), runtime.start_processes("cpu"):
        pass


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_mpi4py_of_another_mpi(monkeypatch, variable):
    """Otherwise each of the processes would train alone, all into one folder."""
    monkeypatch.setenv(variable, "4")
    fake = SimpleNamespace(COMM_WORLD=SimpleNamespace(size=1))
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=fake))
    with pytest.raises(UserError, match="started 4 processes, mpi4py sees 1"), runtime.start_processes("cpu"):
        pass


@pytest.mark.parametrize(
    ("affinities", "threads"),
    [
        ([{0, 1, 2, 3, 4, 5, 6, 7}] * 2, "4"),
        ([{0, 1}, {2, 3}], "2"),  # bound to cores of their own
        ([{0, 1}] * 4, "1"),
    ],
)
def test_cores_are_shared(monkeypatch, affinities, threads):
    local = SimpleNamespace(size=len(affinities), allgather=lambda mine: affinities)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that its old value comes back after the test
    del os.environ["OMP_NUM_THREADS"]
    runtime._share_cores(local)
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    runtime._share_cores(local)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_what_comes_before_the_start_is_printed_by_the_first_process(monkeypatch, capsys):
    """And the others, whose leaving would end the first one, wait for it."""
    waits = []
    monkeypatch.setattr(runtime.time, "sleep", waits.append)
    for rank in "01":
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        with pytest.raises(SystemExit), runtime.first_process_speaks():
            sys.exit(print("rank", rank, file=sys.stderr))
    assert capsys.readouterr().err == "rank 0\n"
    assert len(waits) == 1


def test_sets_are_united():
    world = SimpleNamespace(rank=0, size=2, allgather=lambda mine: [mine, {"b", "c"}])
    assert runtime.MpiProcesses(world, None).union({"a", "b"}) == {"a", "b", "c"}
    assert runtime.Communicator().union({"a"}) == {"a"}


def test_mixed_contexts_are_refused():
    world = SimpleNamespace(allgather=lambda mine: [mine, "cudnn:float"])
    with pytest.raises(UserError, match="some processes have a GPU"):
        runtime._agreed_context("cpu", world, 0)


def test_nccl_gets_what_nnabla_documents(monkeypatch):
    """No GPU is needed to see that the calls fit nnabla's signatures, and that gradients are averaged, not summed."""
    calls = []
    signature = inspect.signature(F.sync_batch_normalization)

    class FakeNccl:
        def __init__(self, context):
            calls.append(context.device_id)

        def init(self):
            calls.append("init")

        def all_reduce(self, data, division=False, inplace=False, group="world"):
            calls.append((data, division))

    monkeypatch.setattr(nnabla.communicators, "MultiProcessDataParallelCommunicator", FakeNccl)
    monkeypatch.setattr(F, "sync_batch_normalization", lambda *args, **kw: calls.append(signature.bind(*args, **kw)))
    world = SimpleNamespace(rank=5, size=8)
    communicator = runtime.NcclProcesses(world, None, nn.Context(["cudnn:float"], "CudaCachedArray", "1"))
    assert (communicator.rank, communicator.size) == (5, 8)
    parameters = {name: nn.Variable((2,), need_grad=True) for name in ("b", "a")}
    communicator.average_gradients(parameters)
    x, s = nn.Variable((2, 3, 4, 4)), nn.Variable((1, 3, 1, 1))
    operators = communicator.synchronised(ops.NNABLA)
    operators.batch_normalization(x, s, s, s, s, True, False)
    device, init, (gradients, division), sync = calls
    assert (device, init) == ("1", "init")
    assert division
    assert [gradient.data.shape for gradient in gradients] == [(2,), (2,)]
    assert gradients[0] == parameters["a"].grad
    assert sync.arguments["group"] == "world"
    assert sync.arguments["axes"] == [1]
    assert sync.arguments["batch_stat"] is True
    assert sync.arguments["eps"] == 1e-5
    assert sync.arguments["decay_rate"] == 0.9
    calls.clear()
    assert operators.batch_normalization(x, s, s, s, s, False, False).parent.info.type_name == "BatchNormalization"
    assert not calls  # inference needs no other process


def test_seeded_initialisers_repeat():
    draws = []
    for _ in range(2):
        context.seed_initialisers(4)
        draws.append(nn.random.prng.rand(3))
    np.testing.assert_array_equal(*draws)
