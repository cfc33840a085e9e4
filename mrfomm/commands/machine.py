"""What this machine has, for `python -m mrfomm.doctor`. Nothing is imported before its turn, as it may be broken."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mrfomm.errors import UserError


def _packages(*names: str) -> str:
    """Versions of packages, which are imported; "" if one isn't installed."""
    if not all(map(importlib.util.find_spec, names)):
        return ""
    return ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in names)


def _python() -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "as many")
    return f"{platform.python_version()} at {sys.executable}, {len(os.sched_getaffinity(0))} cores, {threads} threads"


def _cpu_operators() -> str:
    from mrfomm.networks import cpu, ops

    versions = _packages("numba")
    if not versions or os.environ.get(ops.SWITCH) == "0":
        return ""
    if reason := cpu.unavailable_reason():
        raise ImportError(reason)
    return f"{versions}, oneDNN {importlib.metadata.version('onednn-cpu-gomp')}"


def _gpu() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise UserError(f"nvidia-smi says {done.stdout or done.stderr}; mend NVIDIA's driver, or use --context cpu")
    return "; ".join(done.stdout.splitlines())


def _cuda() -> str:
    """nnabla's extension, which must be of nnabla's version, and pip's CUDA libraries, which must load."""
    installed = importlib.metadata.distributions()
    versions = {str(each.metadata["Name"]).replace("_", "-"): each.version for each in installed}
    found = [name for name in versions if name.startswith("nnabla-ext-cuda")]
    if not found and shutil.which("nvidia-smi"):
        raise UserError("not installed, so the GPU does nothing; pip install -e .[cuda,mpi]")
    for name in found:
        if versions[name] != versions["nnabla"]:
            raise UserError(f"{name} {versions[name]} doesn't fit nnabla; pip install {name}=={versions['nnabla']}")
    libraries = importlib.import_module("mrfomm.runtime.context").load_cuda_wheels() if found else []
    return ", ".join([*(f"{name} {versions[name]}" for name in found), *libraries])


def _mpi() -> str:
    versions = _packages("mpi4py")
    if versions:
        importlib.import_module("mpi4py").rc.initialize = False  # it is asked for its name only
        library = importlib.import_module("mpi4py.MPI").Get_library_version().partition(",")[0]
        places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        versions += f", {library}, {shutil.which('mpirun', path=places) or 'no mpirun'}"
    return versions


def _disk() -> str:
    root = importlib.import_module("mrfomm.onnx.graphs").cache_root()
    if root.name != "mrfomm":
        raise UserError(f"the cache can't be written, {root} stands in; set XDG_CACHE_HOME to a folder of yours")
    free = shutil.disk_usage(root).free / 1e9
    if free < 1:
        raise UserError(f"{root}: {free:.1f} GB free; make room, or set XDG_CACHE_HOME to another disk")
    return f"{root}, {free:.0f} GB free; {Path.cwd()}, {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB"


# What to look at: its text, "" if it isn't there, or an exception; and the extra that brings it.
LOOKS: dict[str, tuple[Callable[[], str], str]] = {
    "Python": (_python, ""),
    "nnabla": (partial(_packages, "nnabla", "numpy"), ""),
    "CPU operators": (_cpu_operators, "[cpu]"),
    "onnxruntime": (partial(_packages, "onnx", "onnxruntime"), "[onnx]"),
    "GPU": (_gpu, "[cuda]"),  # name, driver, compute capability, memory
    "cudnn": (_cuda, "[cuda]"),
    "MPI": (_mpi, "[mpi]"),
    "FFmpeg": (partial(_packages, "av"), ""),  # whose libraries PyAV brings
    "cache, disk": (_disk, ""),
}
