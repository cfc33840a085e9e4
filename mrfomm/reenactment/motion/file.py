"""Motion files: the poses of a driving clip, kept to drive with again, without any picture of the driver.

An ``.npz`` of arrays, nothing of it pickled::

    version    1
    fps        frames per second
    value, jacobian            int16 [N,n,2] and [N,n,2,2]: how many steps each number has grown since the frame before
    value_step, jacobian_step  the size of a step
    probe      float32 [n,6]: what the model's keypoint detector finds in a picture that is always the same

Keypoints mean something to the detector that found them alone. The probe tells detectors apart whatever library runs
them, and lets models that share one share motion files.
"""

import io
import os
import zipfile
from typing import NamedTuple

import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.reenactment.motion.transfer import KeypointArrays
from mrfomm.store import whole_file

MOTION_SUFFIX = ".npz"
_VERSION = 1
_MOST_BYTES = 1 << 26  # of the file and of each of its arrays: hours of motion
_STEPS = 32767  # int16's, for the largest number
_SAME_PROBE = 0.05  # libraries and half precision differ by less, detectors by a hundred times as much


class Motion(NamedTuple):
    """The poses of a driving clip. fps: frames per second; probe: float32 [n,6], the mark of their detector; name: what
    to call it in what is said."""

    keypoints: KeypointArrays
    fps: float
    probe: np.ndarray
    name: str = "motion"

    def check_detector(self, probe: np.ndarray) -> None:
        """Raise UserError unless ``probe`` is of the detector that found these keypoints."""
        if self.probe.shape != probe.shape or not np.abs(self.probe - probe).max() < _SAME_PROBE:
            raise UserError(f"{self.name}: made with another model; give its --weights, or drive by the clip itself")


def probe_picture(size: int) -> np.ndarray:
    """uint8 [size,size,3]: a blob off the middle of a slope, which no detector finds symmetrical."""
    y, x = np.mgrid[:size, :size] / size
    blob = np.exp(-((x - 0.4) ** 2 + 2 * (y - 0.55) ** 2) / 0.03)
    return (40 + 80 * np.stack([x, y, 1 - x], -1) + 130 * blob[..., None]).astype(np.uint8)


def save_motion(path: AnyPath, motion: Motion) -> None:
    """Write a motion file; numbers are rounded to a 32767th of the largest one. A UserError if that can't be done."""
    if not all(np.isfinite(array).all() for array in motion.keypoints):
        raise UserError(f"{path}: not written, as the keypoints are not finite; try other --weights")
    arrays: dict[str, object] = {"version": _VERSION, "fps": motion.fps, "probe": motion.probe}
    for name, array in motion.keypoints._asdict().items():
        step = np.float32(max(np.abs(array).max(), 1e-6) / _STEPS)
        steps = np.round(array / step).astype(np.int16)
        arrays[name] = np.diff(steps, axis=0, prepend=np.zeros_like(steps[:1]))  # a sum modulo 2^16 undoes it
        arrays[f"{name}_step"] = step
    with whole_file(path) as aside:
        np.savez_compressed(aside, **arrays)  # type: ignore[arg-type]


def load_motion(path: AnyPath) -> Motion:
    """Read what ``save_motion`` wrote; UserError if it is missing, damaged or something else."""
    check_is_file(path)
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise ValueError("too large")
        return _checked(_read(path), str(path))
    except Exception as error:  # zipfile, zlib and NumPy raise of almost every kind
        problem = f"damaged or not a motion file ({error}); write it again with --save-motion"
        raise UserError(f"{path}: {problem}") from error


def _read(path: AnyPath) -> dict[str, np.ndarray]:
    """The arrays by name; none is larger than the limit, and none is unpickled."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in ("version", "fps", "probe", "value", "value_step", "jacobian", "jacobian_step"):
            entry = archive.getinfo(f"{name}.npy")
            if entry.file_size > _MOST_BYTES:
                raise ValueError(f"{name} is too large")
            arrays[name] = np.lib.format.read_array(io.BytesIO(archive.read(entry)), allow_pickle=False)
    return arrays


def _checked(arrays: dict[str, np.ndarray], name: str) -> Motion:
    if int(arrays["version"]) != _VERSION:
        raise ValueError(f"version {int(arrays['version'])}")
    count, points, _ = arrays["value"].shape
    shapes = {"value": (count, points, 2), "jacobian": (count, points, 2, 2)}
    parts = []
    for part, shape in shapes.items():
        steps, step = arrays[part], np.float32(arrays[f"{part}_step"])
        if not count or not points or steps.shape != shape or steps.dtype != np.int16 or not 0 < step < np.inf:
            raise ValueError(f"its {part} is none")
        parts.append(np.cumsum(steps, axis=0, dtype=np.int16).astype(np.float32) * step)
    fps, probe = float(arrays["fps"]), arrays["probe"].astype(np.float32)
    if not 0.01 <= fps <= 1000 or probe.shape != (points, 6):
        raise ValueError("its rate or probe is none")
    return Motion(KeypointArrays(*parts), fps, probe, name)
