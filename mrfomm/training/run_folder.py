"""The folder of a training run: which checkpoint to go on from, and which ones to put out of the way."""

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mrfomm.config import Config
from mrfomm.errors import AnyPath, UserError, named, started_as
from mrfomm.model.checkpoint import BEST, PREFIX, Checkpoint, list_checkpoints, load_checkpoint, verify_checkpoint
from mrfomm.store import OLD, PARTIAL, own_name

_OLD_NAME = re.compile(rf"\.(.+?)(\.\d+)?\{OLD}")


class Progress(NamedTuple):
    """Where a run stands: epoch, batches done in it, and steps done in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint of a step; later ones come later in the alphabet."""
    return f"{PREFIX}{step:08d}"


def run_of(path: AnyPath) -> Path:
    """The run folder that ``path`` means: itself, or the one around a checkpoint that is named."""
    path = Path(path)
    is_checkpoint = path.name == BEST or path.name.startswith(PREFIX)
    return path.parent if is_checkpoint and (path.parent / "config.yaml").is_file() else path


def load_resumable(path: AnyPath) -> Checkpoint:
    """A run's newest whole checkpoint, or one that is named; damaged ones are told on stderr and stepped over.

    A UserError tells that the run has no whole checkpoint, or that the one named isn't.
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
    other = f"go on from {run / BEST}" if (run / BEST).is_dir() else "start over with --output"
    raise UserError(f"{run}: no whole checkpoint to resume from ({len(folders)} damaged); {other}")


def remove_old_checkpoints(run: AnyPath, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints of a run folder; a UserError tells which one can't be."""
    for folder in list_checkpoints(run)[:-keep]:
        aside = own_name(folder, PARTIAL)
        with named(folder, "can't delete this old checkpoint", "check its permissions"):
            folder.rename(aside)  # so that none stands there half deleted
            shutil.rmtree(aside)


def tidy(run: AnyPath) -> None:
    """Put right what a killed run left in its folder: half-written files go, a checkpoint half replaced comes back.

    A UserError tells that something can't be renamed or deleted.
    """
    run = Path(run)
    with named(run, "can't clear away what a killed run left", "check its permissions"):
        for old in run.glob(f".*{OLD}"):
            name = _OLD_NAME.fullmatch(old.name)
            if name and not (run / name[1]).exists():
                old.rename(run / name[1])
        for path in (*run.glob(f".*{OLD}"), *run.glob(f".*{PARTIAL}"), *run.rglob(f"{PARTIAL}-*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    with named(folder, f"can't rename this {why} checkpoint", "move it away"):
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
    return aside


def diverged(run: Path, step: int, what: str) -> UserError:
    """The error for weights that give no finite numbers at a step: none such count as a checkpoint to go on from."""
    same = run / checkpoint_name(step)
    with contextlib.suppress(UserError):  # several processes may try
        if same.is_dir():
            set_aside(same, "diverged")
    left = [path.name for path in list_checkpoints(run)[::-1] if path != same]
    best = best_state(run)
    if best and best["step"] != step:
        left.append(BEST)
    remedy = f"go on from {left[0]} by --resume {run / left[0]}" if left else "start over"
    further = f", or further back from {', '.join(left[1:])}" if left[1:] else ""
    return UserError(f"step {step}: not finite: {what}; {remedy} with a lower train.learning_rate{further}")


def best_state(run: Path) -> dict[str, Any] | None:
    """What state.json of the folder's best model tells; None without a whole one."""
    try:
        state = verify_checkpoint(run / BEST)["state"]
        position(run / BEST, state)
    except UserError:
        return None
    return state


def position(folder: Path, state: Mapping[str, Any]) -> Progress:
    """The Progress that the state of a checkpoint in a folder tells; a UserError where it tells none."""
    values: list[Any] = [state.get(key) for key in Progress._fields]
    if not all(type(value) is int and value >= 0 for value in values) or type(state.get("best")) not in (int, float):
        raise UserError(f"{folder / 'state.json'}: doesn't tell where a training run stands; start from it with --init")
    return Progress(*values)


def tell_stopped(config: Config, run: Path, step: int, processes: int) -> None:
    """Tell which step is saved, and the command that goes on."""
    print(f"stopped; step {step} is saved, go on with --resume {run}", file=sys.stderr)
    print(f"    {resuming_command(config, run, processes)}", file=sys.stderr)


def resuming_command(config: Config, run: Path, processes: int) -> str:
    """The command that goes on with a run, for a shell."""
    program = f"mpirun -n {processes} {started_as()}" if processes > 1 else started_as()
    words = ["--resume", str(run)]
    if ":" in config.model.fusion.mode:  # it is imported only if it is named
        words += ["--set", f"model.fusion.mode={config.model.fusion.mode}"]
    return f"{program} {shlex.join(words)}"
