"""The training loop: batches -> step -> log, pictures, validation, checkpoints."""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import nnabla.solvers as S
import numpy as np
from nnabla.solver import Solver
from tqdm import tqdm

from mrfomm.config import Config, TrainConfig, config_to_yaml
from mrfomm.data.loader import Batch, Loader
from mrfomm.errors import UserError
from mrfomm.model.checkpoint import BEST, Checkpoint, ParameterTree, save_checkpoint
from mrfomm.runtime.overlap import read_ahead
from mrfomm.runtime.processes import Communicator
from mrfomm.runtime.stopping import stop_requests
from mrfomm.store import whole_file
from mrfomm.training.equivariance import Deformation, draw_deformation
from mrfomm.training.resuming import best_so_far, load_states, resumed_position
from mrfomm.training.run_folder import (
    Progress,
    checkpoint_name,
    diverged,
    remove_old_checkpoints,
    set_later_aside,
    tell_stopped,
)
from mrfomm.training.step import (
    DISCRIMINATOR_SIDE,
    GENERATOR_SIDE,
    DiscriminatorStep,
    Frozen,
    GeneratorStep,
    figures_of,
)
from mrfomm.training.validation import HeldOut, digest_of, is_finite, reconstruction_error
from mrfomm.training.watch import TOTAL, RunLog

ADAM_BETAS = (0.5, 0.999)  # FOMM


def learning_rate(train: TrainConfig, epoch: int) -> float:
    """The learning rate of a step in an epoch: x 0.1 at every milestone passed (paper, section 4)."""
    return train.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)


class Trainer:
    """The training loop of one process, which writes into the run's folder if it is the first.

    Parameters that the tree lacks are created with nnabla's current random state. The loader gives this process' share
    of the batches. ``perceptual``: see ``step.load_perceptual``. ``validation``: see ``validation.held_out``.
    """

    def __init__(
        self,
        config: Config,
        tree: ParameterTree,
        loader: Loader,
        folder: Path,
        communicator: Communicator,
        perceptual: Frozen | None = None,
        validation: Sequence[HeldOut] = (),
    ) -> None:
        self.config, self.progress, self.best = config, Progress(), math.inf
        self._tree, self._loader, self._folder, self._communicator = tree, loader, folder, communicator
        self._validation, self._validation_digest = validation, digest_of(validation)
        self._is_saved = False  # whether the newest checkpoint is of this step
        self._batch: Batch | None = None  # the last one
        self._run_log = RunLog(folder, config.train.tensorboard and communicator.rank == 0)
        with tree.scope():
            self.generator = GeneratorStep(config, config.train.batch_size // communicator.size, perceptual)
            self.discriminator = DiscriminatorStep(config, self.generator) if config.train.discriminator else None
        communicator.broadcast(tree.all())
        self._solvers, self._losses = {"generator": self._solver(GENERATOR_SIDE)}, self.generator.losses
        if self.discriminator:
            self._solvers["discriminator"] = self._solver(DISCRIMINATOR_SIDE)
            self._losses = {**self._losses, "discriminator": self.discriminator.loss}
        sides = (solver.get_parameters() for solver in self._solvers.values())
        self._figures = figures_of(self._losses.values(), sides)

    def _solver(self, prefixes: tuple[str, ...]) -> Solver:
        solver = S.Adam(self.config.train.learning_rate, *ADAM_BETAS)
        solver.set_parameters(self._tree.trainable(*prefixes))
        return solver

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a Checkpoint of the same model: parameters, solvers, position in the data.

        What the run's folder holds of later steps is put out of the way, but for the best model, which stays until
        another is better. It is looked for anew where the held-out clips are others than before, as errors over them
        can't be compared.

        Raises:
            UserError: the checkpoint lacks something, it doesn't fit, or the position in the data can't be kept.
        """
        self._tree.assign(checkpoint.parameters, checkpoint.folder)
        for name, solver in self._solvers.items():
            load_states(solver, checkpoint.folder / f"solver_{name}.h5")
        self.progress = resumed_position(checkpoint, self.config, self._loader)
        step = self.progress.step
        self.best = self._communicator.share(best_so_far(self._folder, step, self._validation_digest))
        if checkpoint.state.get("validation") != self._validation_digest:
            print("the held-out clips have changed: best/ is chosen again", file=sys.stderr)
        self._is_saved = checkpoint.folder.name == checkpoint_name(step)
        if self._communicator.rank == 0:
            set_later_aside(self._folder, step)
            self._run_log.rewind(step)

    def run(self) -> bool:
        """Train to the last epoch, or until a signal asks to stop, then save. Returns whether it is done.

        A checkpoint of step 0 shows at once whether there is room for one, and lets any later moment be resumed.
        """
        with stop_requests(self._communicator.rank == 0) as requests, contextlib.closing(self._run_log):
            with self._bar() as bar:
                self._begin(bar)
                epochs = range(self.progress.epoch, self.config.train.epochs)
                finished = all(self._run_epoch(epoch, requests, bar) for epoch in epochs)
            self.save()
            if not finished:
                tell_stopped(self.config, self._folder, self.progress.step, self._communicator.size)
        return finished

    def _begin(self, bar: tqdm) -> None:
        epochs = self.config.train.epochs
        if not self._is_saved:
            bar.set_postfix_str("saving it")
            self.save()
        if self.progress.epoch >= epochs:
            tqdm.write(f"all {epochs} epochs are done; --set train.epochs=NUMBER for more", file=sys.stderr)
        if self._communicator.rank == 0:
            with whole_file(self._folder / "config.yaml") as path:
                path.write_text(config_to_yaml(self.config), encoding="utf-8")
        self._communicator.doing(f"step {self.progress.step + 1}")

    def _run_epoch(self, epoch: int, requests: Sequence[int], bar: tqdm) -> bool:
        """Returns whether it came to its end: a request to stop is heeded after each step."""
        bar.set_description(f"epoch {epoch + 1}/{self.config.train.epochs}")
        if self._batch is None:
            bar.set_postfix_str("first step: compiling, making room")
        with contextlib.closing(self._batches(epoch)) as batches:
            for batch in batches:
                losses, self._batch = self.step(batch), batch
                self.progress = Progress(epoch, self.progress.batch + 1, self.progress.step + 1)
                total = sum(losses[name] for name in self.generator.losses)
                bar.set_postfix(loss=f"{total:.3f}", img_s=f"{self._rate(bar):.1f}", refresh=False)
                bar.update()
                self._after_step({TOTAL: total, **losses})
                if self._communicator.any(bool(requests)):
                    return False
        self.progress = Progress(epoch + 1, 0, self.progress.step)
        return True

    def _bar(self) -> tqdm:
        """Of the whole run, so that the time left is its time."""
        steps, quiet = self._loader.steps_per_epoch, self._communicator.rank > 0
        total, done = steps * self.config.train.epochs, steps * self.progress.epoch + self.progress.batch
        return tqdm(total=total, initial=done, desc=f"step {self.progress.step}", unit="step", disable=quiet)

    def _rate(self, bar: tqdm) -> float:
        elapsed = bar.format_dict["elapsed"]
        return self.config.train.batch_size * (bar.n + 1 - bar.initial) / elapsed if elapsed else 0.0

    def _batches(self, epoch: int) -> Generator[Batch, None, None]:
        """The loader's, the next one made during a step.

        Where it fails, the steps made are saved; several processes can't agree on that any more.
        """
        try:
            yield from read_ahead(self._loader.epoch(epoch, self.progress.batch), depth=1)
        except UserError:
            if self._communicator.size == 1:
                self.save()
            raise

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of both sides; returns the losses by name, averaged over the processes.

        Raises:
            UserError: a loss or a gradient isn't finite; the parameters may have taken that on already.
        """
        self._update("generator", functools.partial(self.generator.run, batch, self._deformation()))
        if self.discriminator:
            self._update("discriminator", self.discriminator.run)
        self._figures.forward()
        if not np.isfinite(self._figures.d).all():
            self._check_finite(batch)
        mean = self._communicator.mean(self._figures.d[: len(self._losses)].astype(np.float64))
        return dict(zip(self._losses, map(float, mean)))

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of all gradients of the generator side in the last step."""
        return math.sqrt(self._figures.d[len(self._losses)])

    def _deformation(self) -> Deformation:
        """This process' share of the global batch's deformations, drawn anew from the seed and the step."""
        train, loss = self.config.train, self.config.loss
        rng = np.random.default_rng([train.seed, self.progress.step])
        whole = draw_deformation(rng, train.batch_size, loss.tps_sigma_affine, loss.tps_sigma, loss.tps_points)
        share = train.batch_size // self._communicator.size
        start = self._communicator.rank * share
        return Deformation(*(array[start : start + share] for array in whole))

    def _update(self, side: str, run: Callable[[], None]) -> None:
        """Let one side learn from its ``run``, which fills its gradients."""
        solver = self._solvers[side]
        solver.set_learning_rate(learning_rate(self.config.train, self.progress.epoch))
        solver.zero_grad()
        run()
        self._communicator.average_gradients(solver.get_parameters())
        solver.update()

    def _check_finite(self, batch: Batch) -> None:
        """Keep the batch and end, unless only the square of a gradient was too large a number."""
        names = [name for name, loss in self._losses.items() if not np.isfinite(loss.d)]
        for solver in self._solvers.values():
            names += [name for name, value in solver.get_parameters().items() if not np.isfinite(value.g).all()]
        if not names:
            return
        path = self._folder / f"non-finite-step{self.progress.step:08d}-rank{self._communicator.rank}.npz"
        with whole_file(path) as aside:
            np.savez_compressed(aside, **batch._asdict())
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise self._diverged(f"{shown}; the batch is in {path}")

    def _diverged(self, what: str) -> UserError:
        return diverged(self._folder, self.progress.step, what)

    def _after_step(self, losses: Mapping[str, float]) -> None:
        train, step = self.config.train, self.progress.step
        if step % train.log_every == 0:
            broken = self._communicator.union(self._loader.broken)  # each process meets clips of its own
            self._log({**losses, "gradient_norm": self.gradient_norm, "broken_clips": len(broken)})
        if step % train.validate_every == 0 and self._validation:
            self._validate()
        if (step == 1 or step % train.picture_every == 0) and self._communicator.rank == 0:  # with the curves
            self._run_log.picture(step, self.generator.picture())
        if step % train.checkpoint_every == 0:
            self.save()
        self._communicator.doing(f"step {step + 1}")

    def _log(self, values: Mapping[str, float]) -> None:
        if self._communicator.rank == 0:
            rate = self._solvers["generator"].learning_rate()
            self._run_log.write(self.progress.step, self.progress.epoch, {"learning_rate": rate, **values})

    def _validate(self) -> None:
        """Mean L1 of held-out clips, driven by their own frames; keeps the best model."""
        self._communicator.doing(f"the validation after step {self.progress.step}")
        own = reconstruction_error(self.config, self._tree, self._validation)
        error = float(self._communicator.mean(np.array([own]))[0])
        if not math.isfinite(error):
            raise self._diverged("validation_l1")
        self._log({"validation_l1": error})
        if error < self.best:
            self.best = error
            self.save(BEST)

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint (rank 0) and delete the oldest beyond ``train.keep_checkpoints``.

        Raises:
            UserError: it can't be written, or the model's pictures of the last batch aren't finite.
        """
        self._communicator.doing(f"saving step {self.progress.step}")
        if self._communicator.rank == 0:
            if self._batch and not name and not is_finite(self.config, self._tree, self._batch):
                raise self._diverged("the model's pictures")
            digests = {"validation": self._validation_digest, "training": self._loader.digest}
            state = {**self.progress._asdict(), "best": self.best, **digests, "trained_on": self._trained_on()}
            folder = self._folder / (name or checkpoint_name(self.progress.step))
            save_checkpoint(folder, self.config, self._tree.all(), state, self._solvers)
            remove_old_checkpoints(self._folder, self.config.train.keep_checkpoints)
        self._communicator.barrier()

    def _trained_on(self) -> str:
        """What the model will say that it knows, see ``Knowledge``."""
        data, size = self.config.data, self.config.model.image_size
        return f"{data.about or f'clips of {data.root}'}, {size}x{size} pixels"
