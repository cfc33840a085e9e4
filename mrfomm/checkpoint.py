"""Checkpoints: folders with the configuration, the parameters and, during training, everything a resumed run needs.

::

    checkpoint-00002000/
      config.yaml          the resolved configuration
      parameters.h5        every parameter, running statistics included (nnabla's own format)
      solver_NAME.h5       state of each solver (training only)
      state.json           step, and the size and SHA-256 of every other file

A folder is written under another name, synchronised, then renamed; it is renamed again before it is deleted: under its
final name it is whole, whenever the program is killed. What a killed run left under other names, ``tidy`` puts right.
``state.json`` lets a reader notice files that were damaged later.
"""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    NamedTuple,
)

import h5py
import nnabla as nn
import numpy as np
from nnabla.solver import Solver

from mrfomm.config import Config, config_from_dict, config_to_yaml, read_yaml
from mrfomm.errors import AnyPath, UserError
from mrfomm.h5_file import read_h5
from mrfomm.store import OLD, PARTIAL, own_name, sha256_of, synchronise, whole_file, whole_folder

PREFIX, BEST = "checkpoint-", "best"
_OLD_NAME = re.compile(rf"\.(.+?)(\.\d+)?\{OLD}")
_CHECKPOINT_FILE = re.compile(r"config\.yaml|state\.json|parameters\.h5|solver_\w+\.h5")
_MAX_TEXT_BYTES = 1 << 20  # of config.yaml and state.json, which have some thousand

Parameters = Mapping[str, nn.Variable | np.ndarray]  # by name


class Checkpoint(NamedTuple):
    """folder; config: Config; parameters: name -> float32 array; state: the numbers of state.json."""

    folder: Path
    config: Config
    parameters: dict[str, np.ndarray]
    state: dict[str, Any]


class ParameterTree:
    """A private set of nnabla parameters, apart from the global one.

    Graphs built inside ``with tree.scope():`` create and share parameters in this tree.
    """

    def __init__(self) -> None:
        self._root: dict[str, object] = {}

    def scope(self) -> AbstractContextManager[object]:
        """Context manager: ``nn.parameter_scope`` on this tree."""
        return nn.parameter_scope("", self._root)

    def all(self) -> dict[str, nn.Variable]:
        """Every parameter by name, running statistics included."""
        with self.scope():
            return dict(nn.get_parameters(grad_only=False))

    def trainable(self, *prefixes: str) -> dict[str, nn.Variable]:
        """The parameters that take gradients and whose name starts with one of the prefixes."""
        with self.scope():
            return {name: value for name, value in nn.get_parameters().items() if name.startswith(prefixes)}

    def assign(self, arrays: Mapping[str, np.ndarray], source: AnyPath, missing_allowed: Iterable[str] = ()) -> None:
        """Fill every parameter from arrays by name.

        Args:
            arrays: name -> array.
            source: named in errors.
            missing_allowed: prefixes of parameters that may keep their initial value when ``arrays`` lacks them.

        Raises:
            UserError: a parameter is missing, left over or of another shape.
        """
        parameters = self.all()
        optional = {name for name in parameters if name.startswith(tuple(missing_allowed)) and name not in arrays}
        shapes = {name: variable.shape for name, variable in parameters.items() if name not in optional}
        for name, array in check_arrays(arrays, shapes, source).items():
            parameters[name].d = np.asarray(array, np.float32)  # nnabla would take float64 over


def check_arrays(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: AnyPath
) -> Mapping[str, np.ndarray]:
    """The arrays, if they are finite and exactly those of ``shapes`` (name -> shape).

    Raises:
        UserError: a parameter is missing, left over, of another shape, or not finite.
    """
    for name in sorted(arrays.keys() - shapes.keys()):
        raise UserError(f"{source}: parameter {name} has no place in this model; the configuration doesn't fit")
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"{source}: parameter {name} is missing; the configuration doesn't fit the weights")
        if arrays[name].shape != tuple(shape):
            raise UserError(
                f"{source}: parameter {name} has shape {arrays[name].shape}, the configuration asks for {tuple(shape)}"
            )
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{source}: parameter {name} holds values that aren't finite; use other weights")
    return arrays


def save_checkpoint(
    folder: AnyPath,
    config: Config,
    parameters: Parameters,
    state: Mapping[str, object] | None = None,
    solvers: Mapping[str, Solver] | None = None,
) -> None:
    """Write a checkpoint folder in one step (an existing checkpoint is replaced at the end).

    Args:
        folder: its final path.
        config: Config.
        parameters: name -> Variable or array.
        state: JSON-able numbers to keep (step and the like).
        solvers: name -> nnabla solver.

    Raises:
        UserError: the folder can't be written (no room, no permission), or holds something else.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    with whole_folder(os.path.realpath(folder)) as aside:  # a link stays
        (aside / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        write_h5(aside / "parameters.h5", parameters)
        for name, solver in (solvers or {}).items():
            write_states(aside / f"solver_{name}.h5", solver)
        files = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
        (aside / "state.json").write_text(
            json.dumps({"state": state or {}, "files": files}, indent=1), encoding="utf-8"
        )


def _check_replaceable(folder: Path) -> None:
    """Refuse to put a checkpoint where there is anything but one."""
    try:
        others = sorted(name for name in os.listdir(folder) if not _CHECKPOINT_FILE.fullmatch(name))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UserError(f"{folder}: is no folder; choose a new folder") from error
    if others:
        raise UserError(f"{folder}: holds something else than a checkpoint ({others[0]}); choose a new folder")


def save_parameters(path: AnyPath, parameters: Parameters) -> None:
    """Write parameters (name -> Variable or array) as one .h5 file, in one step.

    Raises:
        UserError: the file can't be written.
    """
    with whole_file(path) as aside:
        write_h5(aside, parameters)
        synchronise(aside)


def write_h5(path: AnyPath, parameters: Parameters) -> None:
    """Write parameters (name -> Variable or array) in nnabla's format."""
    variables = {
        name: value if isinstance(value, nn.Variable) else nn.Variable.from_numpy_array(value)
        for name, value in parameters.items()
    }
    _write_h5(path, lambda file: nn.save_parameters(file, variables, extension=".h5"))


def write_states(path: AnyPath, solver: Solver) -> None:
    """Write the states of a solver's parameters as nnabla's ``solver.save_states`` does."""

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as root:
            for index, (name, state) in enumerate(solver.get_states().items()):
                group = root.create_group(name)
                group.attrs["index"] = index
                group["t"] = state.t
                for order, (key, value) in enumerate(state.pstate.items()):
                    group[key] = value.data.get_data("r")
                    group[key].attrs["index"] = order

    _write_h5(path, write)


def _write_h5(path: AnyPath, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` make a file in memory, then write that: on a full disk, the HDF5 library itself may crash."""
    buffer = io.BytesIO()
    write(buffer)
    Path(path).write_bytes(buffer.getbuffer())


def load_checkpoint(path: AnyPath) -> Checkpoint:
    """Read a checkpoint: a folder of one, or a run folder's best or else newest.

    Raises:
        UserError: no checkpoint there, or it is damaged; the message names the file.
    """
    folder = find_checkpoint(path)
    manifest = verify_checkpoint(folder)
    config = config_from_dict(read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    return Checkpoint(folder, config, read_h5(folder / "parameters.h5"), manifest["state"])


def run_of(path: AnyPath) -> Path:
    """The run folder that ``path`` means: itself, or the one around a checkpoint that is named."""
    path = Path(path)
    named = path.name == BEST or path.name.startswith(PREFIX)
    return path.parent if named and (path.parent / "config.yaml").is_file() else path


def load_resumable(path: AnyPath) -> Checkpoint:
    """A run's newest whole checkpoint, or one that is named; damaged ones are told on stderr and stepped over.

    Raises:
        UserError: the run has no whole checkpoint, or the one that is named isn't.
    """
    run = run_of(path)
    if run != Path(path):
        return load_checkpoint(path)
    folders = list_checkpoints(run)[::-1]
    for folder in folders:
        try:
            return load_checkpoint(folder)
        except UserError as error:
            print(f"stepping over a checkpoint: {' '.join(str(error).split())}", file=sys.stderr)
    other = f"go on from {run / BEST}" if (run / BEST).is_dir() else "start anew with --output"
    raise UserError(f"{run}: no whole checkpoint to resume from ({len(folders)} damaged); {other}")


def find_checkpoint(path: AnyPath) -> Path:
    """The checkpoint folder that ``path`` means: itself, or a run folder's best or else newest checkpoint."""
    path = Path(path)
    if (path / "state.json").is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a checkpoint folder or a run folder")
    if not path.is_dir():
        raise UserError(
            f"{path}: is a file, not a checkpoint folder; turn foreign weights into one: python -m mrfomm.convert"
        )
    best = path / BEST
    candidates = ([best] if (best / "state.json").is_file() else []) + list_checkpoints(path)[::-1]
    if not candidates:
        raise UserError(f"{path}: holds no checkpoint (no state.json, no {PREFIX}*); give the folder of one")
    return candidates[0]


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint of a step; later ones come later in the alphabet."""
    return f"{PREFIX}{step:08d}"


def list_checkpoints(run: AnyPath) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    run = Path(run)
    paths = run.iterdir() if run.is_dir() else ()  # glob() would take a folder that can't be listed for an empty one
    return sorted(path for path in paths if path.name.startswith(PREFIX) and path.is_dir())


def remove_old_checkpoints(run: AnyPath, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints of a run folder.

    Raises:
        UserError: one can't be deleted.
    """
    for folder in list_checkpoints(run)[:-keep]:
        aside = own_name(folder, PARTIAL)
        try:
            folder.rename(aside)  # so that none stands there half deleted
            shutil.rmtree(aside)
        except OSError as error:
            raise UserError(f"{folder}: can't delete this old checkpoint ({error}); see to its permissions") from error


def tidy(run: AnyPath) -> None:
    """Put right what a killed run left in its folder: half-written files go, a checkpoint half replaced comes back.

    Raises:
        UserError: something can't be renamed or deleted.
    """
    run = Path(run)
    try:
        for old in run.glob(f".*{OLD}"):
            named = _OLD_NAME.fullmatch(old.name)
            if named and not (run / named[1]).exists():
                old.rename(run / named[1])
        for path in (*run.glob(f".*{OLD}"), *run.glob(f".*{PARTIAL}"), *run.rglob(f"{PARTIAL}-*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise UserError(f"{run}: can't clear away what a killed run left ({error}); see to its permissions") from error


def set_later_aside(run: AnyPath, step: int) -> None:
    """Rename the checkpoints after a step to ``later-NAME``, or ``damaged-NAME`` if they are; tell it on stderr.

    Otherwise they would count as the newest, and the others would be deleted as old.
    """
    for later in (path for path in list_checkpoints(run) if path.name > checkpoint_name(step)):
        try:
            load_checkpoint(later)
        except UserError:
            set_aside(later, "damaged")
        else:
            print(f"{later}: is of a later step; kept as {set_aside(later, 'later').name}", file=sys.stderr)


def set_aside(folder: Path, why: str) -> Path:
    """Rename a checkpoint to ``WHY-NAME``, so that it doesn't count as one; returns its new path."""
    aside = folder.with_name(f"{why}-{folder.name}")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
    except OSError as error:
        raise UserError(f"{folder}: can't rename this {why} checkpoint ({error}); move it away") from error
    return aside


def verify_checkpoint(folder: AnyPath) -> dict[str, Any]:
    """Check every file of a checkpoint against state.json and return its content.

    Raises:
        UserError: naming the first file that is missing or damaged.
    """
    folder = Path(folder)
    for name in ("state.json", "config.yaml"):
        if (folder / name).is_file() and (folder / name).stat().st_size > _MAX_TEXT_BYTES:
            raise UserError(f"{folder / name}: larger than a checkpoint's can be; use another checkpoint")
    path = folder / "state.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")
        files = manifest["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
        if not isinstance(manifest["state"], dict) or not {"config.yaml", "parameters.h5"} <= set(expected):
            raise ValueError("incomplete")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint's; use another checkpoint") from error
    for name, (size, digest) in expected.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint; use another checkpoint")
        if path.stat().st_size != size or sha256_of(path) != digest:
            raise UserError(f"{path}: damaged (checksum differs from state.json); use another checkpoint")
    return manifest


def _fingerprint(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}
