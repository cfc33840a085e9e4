"""Animation by onnxruntime, from the graphs that ``mrfomm.export`` writes; on a CPU many times faster than nnabla."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mrfomm.errors import AnyPath, UserError


def is_installed() -> bool:
    """Whether the extra `onnx` is there: the packages that export graphs and run them."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def default_threads() -> int:
    """One for each core that the process may use, or as many as OMP_NUM_THREADS asks for if that is less."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores, asked = len(affinity(0)) if affinity else os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


class Names(NamedTuple):
    """What a graph's values are called."""

    inputs: list[str]
    outputs: list[str]


class OnnxGraphs:
    """The graphs of an exported model, as ``animator.Graphs``. Each is loaded when it is first run, once.

    folder: with reference.onnx, keypoints.onnx and frame.onnx or breakdown.onnx. threads: that compute.
    """

    def __init__(self, folder: AnyPath, threads: int | None = None) -> None:
        self._folder = Path(folder)
        self._threads = threads or default_threads()
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``animator.Graphs``.

        Raises:
            UserError: the extra `onnx` is missing, or the file is missing or damaged.
        """
        outputs = self.names(name).outputs
        return dict(zip(outputs, self._session(name).run(outputs, inputs)))

    def names(self, name: str) -> Names:
        """The names of a graph's inputs and outputs; errors as of ``run``."""
        session = self._session(name)
        return Names(*([each.name for each in values] for values in (session.get_inputs(), session.get_outputs())))

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = self._open(self._folder / f"{name}.onnx")
        return self._sessions[name]

    def _open(self, path: Path) -> Any:
        onnxruntime = _import_onnxruntime()
        if not path.is_file():
            raise UserError(f"{path}: no such graph; write it with python -m mrfomm.export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # The arena keeps what a run needed for the next one; references are encoded once.
        options.enable_cpu_mem_arena = path.stem != "reference"
        # Waiting threads sleep: the cores are needed to decode and encode video meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise UserError(f"{path}: onnxruntime can't load it ({error}); delete it and export it again") from error


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"the onnx backend needs onnxruntime ({error}); pip install -e .[onnx]") from error
    return onnxruntime
