"""Going on from a checkpoint: the position in the data, the solvers' states, the best model so far."""

import math
import operator
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nnabla.solver import Solver

from mrfomm.config import Config
from mrfomm.data.loader import Loader
from mrfomm.errors import UserError
from mrfomm.model.checkpoint import BEST, Checkpoint, check_arrays, read_h5
from mrfomm.training.run_folder import Progress, best_state, position

# what decides, besides the clips, which samples an epoch has and their order
_ORDER = ("train.seed", "data.num_repeats", "data.id_sampling")


def resumed_position(checkpoint: Checkpoint, config: Config, loader: Loader) -> Progress:
    """The Progress with as many samples of the epoch done as in a Checkpoint, of whatever size its batches are.

    Raises:
        UserError: they fill no whole number of batches, or leave no step where there were some left to make.
    """
    progress, before = position(checkpoint.folder, checkpoint.state), checkpoint.config
    size, old_size = config.train.batch_size, before.train.batch_size
    samples = progress.batch * old_size
    if samples % size:
        raise UserError(
            f"train.batch_size was {old_size}, is {size}: the {samples} samples done in epoch {progress.epoch + 1} "
            f"are not a whole number of batches; give a size that divides {samples}"
        )
    progress = progress._replace(batch=samples // size)
    orders = [(key, *map(operator.attrgetter(key), (before, config))) for key in _ORDER]
    changed = [f"{key} was {old}, is {new}" for key, old, new in orders if old != new]
    if checkpoint.state.get("training", loader.digest) != loader.digest:
        changed.insert(0, "the training clips have changed")
    if changed or size != old_size:
        _check_steps_left(progress, config.train.epochs, loader.steps_per_epoch)
    if changed:
        since = (
            f": epoch {progress.epoch + 1} goes on after {samples} samples of another order, some of them seen before"
        )
        print("; ".join(changed) + (since if samples else ""), file=sys.stderr)
    return progress


def _check_steps_left(progress: Progress, epochs: int, steps: int) -> None:
    if progress.epoch + 1 == epochs and progress.batch >= steps:
        raise UserError(
            f"{progress.batch} batches of the last epoch are done, and now it has {steps}: no step is left; raise "
            "train.epochs, or leave data and batch size as they were"
        )


def best_so_far(run: Path, step: int, validation: str) -> float:
    """The validation error of the folder's best model; infinite if there is none, or of other held-out clips.

    One of a later step than the run's is told on stderr. ``validation``: digest of the held-out clips.
    """
    state = best_state(run)
    if state is None or state.get("validation") != validation:
        return math.inf
    if state["step"] > step:
        later = f"is of step {state['step']}; it stays until a validation finds a better one"
        print(f"{run / BEST}: {later}", file=sys.stderr)
    return float(state["best"])


def load_states(solver: Solver, path: Path) -> None:
    """Load a solver's states, after a look at what the file holds: nnabla would follow links out of it.

    Raises:
        UserError: missing or unreadable file, or not the states of this solver's parameters.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; this checkpoint can't be resumed, start from it with --init")
    arrays = read_h5(path)
    check_arrays(arrays, {name: value.shape for name, value in _states(solver)}, path)
    for name, value in arrays.items():
        if name.endswith("/t") and not 0 <= value < 1 << 31:
            raise UserError(f"{path}: {name} is {value}, not a number of steps; start from the weights with --init")
    solver.load_states(str(path))


def _states(solver: Solver) -> Iterator[tuple[str, np.ndarray]]:
    """Name in the file and value of each of a solver's states."""
    for name, state in solver.get_states().items():
        yield f"{name}/t", np.array(state.t)
        yield from ((f"{name}/{key}", value) for key, value in state.pstate.items())
