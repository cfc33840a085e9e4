"""Animation by onnxruntime, from the graphs that ``mrfomm.export`` writes; on a CPU many times faster than nnabla."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from mrfomm.errors import UserError
from mrfomm.reenactment.animator import Breakdown, KeypointArrays


def is_installed():
    """Whether the extra `onnx` is there: the packages that export graphs and run them."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def default_threads():
    """One for each core that the process may use, or as many as OMP_NUM_THREADS asks for if that is less."""
    cores, asked = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


class OnnxGraphs:
    """The graphs of an exported model. Each is loaded when it is first run, once.

    Args:
        folder: with reference.onnx, keypoints.onnx and frame.onnx or breakdown.onnx.
        threads: that compute; by default as ``default_threads`` says.
    """

    def __init__(self, folder, threads=None):
        self._folder = Path(folder)
        self._threads = threads or default_threads()
        self._sessions = {}

    def run(self, name, inputs):
        """Run a graph: arrays by input name -> arrays by output name.

        Raises:
            UserError: the extra `onnx` is missing, or the file is missing or damaged.
        """
        if name not in self._sessions:
            self._sessions[name] = self._open(self._folder / f"{name}.onnx")
        session = self._sessions[name]
        outputs = [output.name for output in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, inputs)))

    def _open(self, path):
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


class OnnxAnimator:
    """Runs exported graphs on one set of references, like ``animation.Animator``.

    Args:
        graphs: OnnxGraphs.
        references: float32 [K,3,S,S] in [0,1], K >= 1.
        batch: driving frames per call of the network; it changes speed and memory only.
        breakdown: also compute each reference's contribution (runs breakdown.onnx instead of frame.onnx).
    """

    def __init__(self, graphs, references, batch=1, breakdown=False):
        if len(references) < 1:
            raise ValueError("at least one reference is needed")
        self._graphs = graphs
        self._batch = batch
        self._frame = "breakdown" if breakdown else "frame"
        self._references = graphs.run("reference", {"image": np.asarray(references, np.float32)})

    @property
    def reference_keypoints(self):
        """KeypointArrays of the K references."""
        return KeypointArrays(self._references["reference_value"], self._references["reference_jacobian"])

    def keypoints(self, frames):
        """Keypoints of driving frames float32 [N,3,S,S] in [0,1] -> KeypointArrays of N."""
        parts = self._in_batches(len(frames), lambda chunk: self._graphs.run("keypoints", {"image": frames[chunk]}))
        return KeypointArrays(parts["driving_value"], parts["driving_jacobian"])

    def render(self, keypoints):
        """Synthesise the pose of KeypointArrays of N -> float32 [N,3,S,S] in [0,1]."""
        return self._synthesise(keypoints)["prediction"]

    def render_breakdown(self, keypoints):
        """Like ``render``, with each reference's share -> (float32 [N,3,S,S], Breakdown)."""
        parts = self._synthesise(keypoints)
        return parts["prediction"], Breakdown(parts["warped"], parts["mask"])

    def frame_inputs(self, keypoints):
        """What frame.onnx reads: driving keypoints and the references' outputs, by name."""
        return {"driving_value": keypoints.value, "driving_jacobian": keypoints.jacobian, **self._references}

    def _synthesise(self, keypoints):
        def run(chunk):
            return self._graphs.run(
                self._frame, self.frame_inputs(KeypointArrays(*(part[chunk] for part in keypoints)))
            )

        return self._in_batches(len(keypoints.value), run)

    def _in_batches(self, count, run):
        """``run`` (slice -> arrays by name) over ``count`` items, the results joined."""
        parts = [run(slice(start, start + self._batch)) for start in range(0, count, self._batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _import_onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"the onnx backend needs onnxruntime ({error}); pip install -e .[onnx]") from error
    return onnxruntime
