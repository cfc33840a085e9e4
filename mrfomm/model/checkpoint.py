"""Parameters, and the files they are kept in: nnabla's ``.h5`` and checkpoint folders.

::

    checkpoint-00002000/
      config.yaml          the resolved configuration
      parameters.h5        every parameter, running statistics included (nnabla's own format)
      solver_NAME.h5       state of each solver (training only)
      state.json           step, what the model knows, and the size and SHA-256 of every other file

A folder is whole under its final name, see ``store.whole_folder``; ``state.json`` tells which file was damaged later.
"""

import contextlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import nnabla as nn
import numpy as np
from nnabla.solver import Solver

from mrfomm.config import Config, config_from_dict, config_to_yaml, read_yaml
from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.store import sha256_of, synchronise, whole_file, whole_folder

PREFIX, BEST = "checkpoint-", "best"
_CHECKPOINT_FILE = re.compile(r"config\.yaml|state\.json|parameters\.h5|solver_\w+\.h5")
_MAX_TEXT_BYTES = 1 << 20  # of config.yaml and state.json, which have some thousand
_MAX_EXPANSION = 16  # of compressed data; weights shrink by less

Parameters = Mapping[str, nn.Variable | np.ndarray]  # by name


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds; parameters: name -> array; state: the numbers of state.json."""

    folder: Path
    config: Config
    parameters: dict[str, np.ndarray]
    state: dict[str, Any]


class ParameterTree:
    """A private set of nnabla parameters: graphs built inside ``with tree.scope():`` create and share them."""

    def __init__(self) -> None:
        self._root: dict[str, object] = {}

    def scope(self) -> contextlib.AbstractContextManager[object]:
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

    def assign(self, arrays: Mapping[str, np.ndarray], source: AnyPath) -> None:
        """Fill every parameter from arrays by name.

        Raises:
            UserError: a parameter is missing, left over or of another shape; the source is named.
        """
        parameters = self.all()
        shapes = {name: value.shape for name, value in parameters.items()}
        for name, array in check_arrays(arrays, shapes, source).items():
            parameters[name].d = np.asarray(array, np.float32)  # nnabla would take float64 over


def check_arrays(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: AnyPath
) -> Mapping[str, np.ndarray]:
    """The arrays, if they are finite and exactly those of ``shapes`` (name -> shape); else a UserError."""
    for name in sorted(arrays.keys() - shapes.keys()):
        raise UserError(f"{source}: parameter {name} has no place in this model; the configuration doesn't fit")
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"{source}: parameter {name} is missing; the configuration doesn't fit the weights")
        if arrays[name].shape != tuple(shape):
            found = f"has shape {arrays[name].shape}, the configuration asks for {tuple(shape)}"
            raise UserError(f"{source}: parameter {name} {found}")
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{source}: parameter {name} holds values that aren't finite; use other weights")
    return arrays


# Folders


def save_checkpoint(
    folder: AnyPath,
    config: Config,
    parameters: Parameters,
    state: Mapping[str, object] | None = None,
    solvers: Mapping[str, Solver] | None = None,
) -> None:
    """Write a checkpoint folder in one step; an older checkpoint there is replaced at the end.

    ``state``: JSON-able numbers to keep (step and the like). ``solvers``: by name.

    Raises:
        UserError: the folder can't be written (no room, no permission), or holds something else.
    """
    _check_replaceable(Path(folder))
    with whole_folder(os.path.realpath(folder)) as aside:  # a link stays
        (aside / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        write_h5(aside / "parameters.h5", parameters)
        for name, solver in (solvers or {}).items():
            write_states(aside / f"solver_{name}.h5", solver)
        files = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
        manifest = json.dumps({"state": state or {}, "files": files}, indent=1)
        (aside / "state.json").write_text(manifest, encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            synchronise(path)


def _check_replaceable(folder: Path) -> None:
    """Refuse to put a checkpoint where there is anything but one."""
    try:
        others = sorted(name for name in os.listdir(folder) if not _CHECKPOINT_FILE.fullmatch(name))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UserError(f"{folder}: is not a folder; choose a new folder") from error
    if others:
        raise UserError(f"{folder}: holds something other than a checkpoint ({others[0]}); choose a new folder")


def load_checkpoint(path: AnyPath) -> Checkpoint:
    """Read a checkpoint: a folder of one, or a run folder's best or else newest. A UserError names what is missing or
    damaged."""
    folder = find_checkpoint(path)
    state = verify_checkpoint(folder)["state"]
    config = config_from_dict(read_yaml(folder / "config.yaml"), folder / "config.yaml")
    return Checkpoint(folder, config, read_h5(folder / "parameters.h5"), state)


def find_checkpoint(path: AnyPath) -> Path:
    """The checkpoint folder that ``path`` means: itself, or a run folder's best or else newest checkpoint."""
    path = Path(path)
    if (path / "state.json").is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a checkpoint folder or a run folder")
    if not path.is_dir():
        remedy = "turn foreign weights into one: python -m mrfomm.convert"
        raise UserError(f"{path}: is a file, not a checkpoint folder; {remedy}")
    if (path / BEST / "state.json").is_file():
        return path / BEST
    if (path / "export.json").is_file():
        raise UserError(f"{path}: is an exported model, for animation only; give the checkpoint it was made of")
    found = list_checkpoints(path)
    if not found:
        raise UserError(f"{path}: holds no checkpoint (no state.json, no {PREFIX}*); give the folder of one")
    return found[-1]


def list_checkpoints(run: AnyPath) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    paths = Path(run).iterdir() if Path(run).is_dir() else ()  # glob() would take one that can't be listed for empty
    return sorted(path for path in paths if path.name.startswith(PREFIX) and path.is_dir())


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """The content of state.json; a UserError if it is missing or damaged."""
    path = Path(folder, "state.json")
    for text in (path, path.with_name("config.yaml")):
        if text.is_file() and text.stat().st_size > _MAX_TEXT_BYTES:
            raise UserError(f"{text}: larger than a checkpoint's can be; use another checkpoint")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")
        files, state = manifest["files"], manifest["state"]
        complete = all({"size", "sha256"} <= entry.keys() for entry in files.values()) and isinstance(state, dict)
        if not complete or not {"config.yaml", "parameters.h5"} <= files.keys():
            raise ValueError("incomplete")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint's; use another checkpoint") from error
    return manifest


def verify_checkpoint(folder: AnyPath) -> dict[str, Any]:
    """``read_manifest``; a UserError names the first file of the checkpoint that isn't as it says."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = Path(folder, name)
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint; use another checkpoint")
        if path.stat().st_size != entry["size"] or sha256_of(path) != entry["sha256"]:
            raise UserError(f"{path}: damaged (checksum differs from state.json); use another checkpoint")
    return manifest


def _fingerprint(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


# HDF5 files


def save_parameters(path: AnyPath, parameters: Parameters) -> None:
    """Write parameters as one .h5 file, in one step; a UserError tells that it can't be written."""
    with whole_file(path) as aside:
        write_h5(aside, parameters)
        synchronise(aside)


def write_h5(path: AnyPath, parameters: Parameters) -> None:
    """Write parameters in nnabla's format."""
    values = {
        name: value if isinstance(value, nn.Variable) else nn.Variable.from_numpy_array(value)
        for name, value in parameters.items()
    }
    with _made_in_memory(path) as file:
        nn.save_parameters(file, values, extension=".h5")


def write_states(path: AnyPath, solver: Solver) -> None:
    """Write the states of a solver's parameters as nnabla's ``solver.save_states`` does."""
    with _made_in_memory(path) as file, h5py.File(file, "w") as root:
        for index, (name, state) in enumerate(solver.get_states().items()):
            group = root.create_group(name)
            group.attrs["index"] = index
            group["t"] = state.t
            for order, (key, value) in enumerate(state.pstate.items()):
                group[key] = value.data.get_data("r")
                group[key].attrs["index"] = order


@contextlib.contextmanager
def _made_in_memory(path: AnyPath) -> Iterator[BinaryIO]:
    """A file in memory, written out at the end: on a full disk, the HDF5 library itself may crash."""
    buffer = io.BytesIO()
    yield buffer
    Path(path).write_bytes(buffer.getbuffer())


def read_h5(path: AnyPath) -> dict[str, np.ndarray]:
    """Every array of an HDF5 file by name, in the order of the names: ``a/b/W`` is the dataset of that path.

    Nothing outside the file is touched: links and data that lead elsewhere are refused.

    Raises:
        UserError: unreadable or damaged file, a soft or external link, external or virtual data, something other than
            numbers, or arrays larger than the file can hold.
    """
    check_is_file(path)
    try:
        with h5py.File(path, "r") as file:
            datasets = sorted(_datasets(file, path))
            room = os.stat(path).st_size * _MAX_EXPANSION
            for name, dataset in datasets:
                room -= math.prod(dataset.shape) * dataset.dtype.itemsize
                if room < 0:
                    raise UserError(f"{path}: {name} is larger than the file can hold; fetch the file again")
            return {name: np.asarray(dataset[()]) for name, dataset in datasets}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # all of these are h5py's
        raise UserError(f"{path}: can't be read as HDF5 ({error}); fetch the file again") from error


def _datasets(file: h5py.File, path: AnyPath) -> Iterator[tuple[str, h5py.Dataset]]:
    """Name and dataset of every array; walks without recursion, and along hard links only."""
    visited, pending = {_address(file)}, [("", file)]
    while pending:
        prefix, group = pending.pop()
        for key in group:
            name, link = prefix + key, group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UserError(f"{path}: {name} is a {type(link).__name__}; use a file without links")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                _check_numbers(item, f"{path}: {name}")
                yield name, item
            elif isinstance(item, h5py.Group) and _address(item) not in visited:
                visited.add(_address(item))
                pending.append((f"{name}/", item))
            else:
                raise UserError(f"{path}: {name} is neither array nor a group of its own; use another file")


def _address(group: h5py.Group) -> int:
    return h5py.h5o.get_info(group.id).addr


def _check_numbers(dataset: h5py.Dataset, place: str) -> None:
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{place} has its data in another file; use a file that holds it")
    if dataset.shape is None or dataset.dtype.kind not in "fiub":
        raise UserError(f"{place} holds {dataset.dtype}, not numbers; use a file of nnabla parameters")
