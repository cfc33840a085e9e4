"""Training: the generator's graph, the discriminator's graph, and the loop around them.

One step, as in FOMM: the generator side (generator, fusion, motion, keypoint detector) is updated first; in stage 2 the
discriminator then learns from the same prediction, detached, so that the generator runs once.
"""

import contextlib
import hashlib
import itertools
import math
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Protocol,
)

import nnabla as nn
import nnabla.solvers as S
import numpy as np
from nnabla.solver import Solver
from tqdm import tqdm

from mrfomm.checkpoint import (
    BEST,
    Checkpoint,
    ParameterTree,
    check_arrays,
    checkpoint_name,
    list_checkpoints,
    remove_old_checkpoints,
    save_checkpoint,
    set_aside,
    set_later_aside,
    verify_checkpoint,
)
from mrfomm.config import Config, TrainConfig, config_to_yaml
from mrfomm.data.loader import Batch
from mrfomm.data.workers import STOP_SIGNALS
from mrfomm.errors import UserError
from mrfomm.h5_file import read_h5
from mrfomm.media.pictures import tile, training_row
from mrfomm.model import encode_references, judge, kept, keypoints_of, repeat_each, synthesise
from mrfomm.networks.geometry import downsample
from mrfomm.networks.ops import warp
from mrfomm.reenactment.animator import Animator, images_to_array
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.store import whole_file
from mrfomm.training.equivariance import Deformation, deform_grid, draw_deformation, equivariance_losses, mirrored
from mrfomm.training.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_adversarial_loss,
    image_pyramid,
    perceptual_loss,
    pixel_loss,
    separation_loss,
    warp_loss,
)
from mrfomm.training.watch import RunLog

if TYPE_CHECKING:
    from mrfomm.runtime.processes import Communicator

GENERATOR_SIDE = ("generator/", "fusion/", "motion/", "keypoints/")
DISCRIMINATOR_SIDE = ("discriminator/",)
ADAM_BETAS = (0.5, 0.999)  # FOMM
_ORDER = ("train.seed", "data.num_repeats", "data.id_sampling")

HeldOut = tuple[np.ndarray, np.ndarray]  # references uint8 [K,S,S,3], driving uint8 [N,S,S,3] of a clip


class Batches(Protocol):
    """What a Trainer takes its data from, such as ``data.loader.Loader``.

    broken: names of the clips left out. digest: of the names and sizes of all clips.
    """

    steps_per_epoch: int
    broken: set[str]
    digest: str

    def epoch(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """The batches of an epoch, from a step on."""


class Progress(NamedTuple):
    """Where a run stands: epoch, batches done in it, and steps done in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


def learning_rate(train: TrainConfig, epoch: int) -> float:
    """The learning rate of an epoch: x 0.1 at every milestone passed (paper, section 4)."""
    return train.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)


class GeneratorStep:
    """The generator side's graph for batches of a fixed size.

    Args:
        config: Config.
        batch: samples per step of this process.
        perceptual: parameters of the frozen perceptual network, or None.
    """

    def __init__(self, config: Config, batch: int, perceptual: Mapping[str, nn.Variable] | None) -> None:
        size, count = config.model.image_size, config.data.num_references
        self.references = nn.Variable((batch, count, 3, size, size))
        self.driving = nn.Variable((batch, 3, size, size))
        self.grid = nn.Variable((batch, size, size, 2))
        self.theta = nn.Variable((batch, 2, 3))
        self.control = nn.Variable((batch, config.loss.tps_points**2))

        encoded = encode_references(self.references, config.model, training=True)
        self.driving_keypoints = keypoints_of(self.driving, config.model, training=True)
        self.synthesis = synthesise(encoded, self.driving_keypoints, config.model, training=True)
        self.losses = dict(self._losses(config, perceptual, encoded.image))
        self.total = sum(self.losses.values())
        for variable in self.losses.values():
            variable.persistent = True
        self.prediction = kept(self.synthesis.prediction)
        self.driving_points = kept(self.driving_keypoints.value)
        others = (self.synthesis.occlusion, self.synthesis.mask, encoded.keypoints.value)
        self._shown = (self.prediction, self.driving_points, *(kept(variable) for variable in others))

    def _losses(
        self, config: Config, perceptual: Mapping[str, nn.Variable] | None, reference_images: nn.Variable
    ) -> Iterator[tuple[str, nn.Variable]]:
        loss, prediction = config.loss, self.synthesis.prediction
        predictions = image_pyramid(prediction, loss.scales)
        targets = image_pyramid(self.driving, loss.scales)
        if perceptual is not None:
            yield (
                "perceptual",
                loss.perceptual * perceptual_loss(predictions, targets, loss.perceptual_network, perceptual),
            )
        if loss.pixel:
            yield "pixel", loss.pixel * pixel_loss(predictions, targets)
        if loss.equivariance_value or loss.equivariance_jacobian:
            transformed = keypoints_of(warp(self.driving, self.grid), config.model, training=True)
            value, jacobian = equivariance_losses(self.driving_keypoints, transformed, self.theta, self.control)
            yield "equivariance_value", loss.equivariance_value * value
            yield "equivariance_jacobian", loss.equivariance_jacobian * jacobian
        if loss.separation:
            apart = separation_loss(self.driving_keypoints.value, loss.separation_distance)
            yield "separation", loss.separation * apart
        if loss.warp:
            driving = repeat_each(downsample(self.driving, config.model.motion.scale), config.data.num_references)
            yield "warp", loss.warp * warp_loss(reference_images, self.synthesis.motion.deformation, driving)
        if config.train.discriminator:
            points = self.driving_keypoints.value.get_unlinked_variable(need_grad=False)
            generated = judge(prediction, points, config.model, fixed=True)
            real = judge(self.driving, points, config.model, fixed=True)
            yield "adversarial", loss.adversarial * generator_adversarial_loss(generated.score)
            yield "feature_matching", loss.feature_matching * feature_matching_loss(generated.features, real.features)

    def run(self, batch: Batch, deformation: Deformation) -> dict[str, float]:
        """Forward and backward for a Batch and a Deformation: fills the gradients, returns the losses as floats."""
        self.references.d, self.driving.d = batch.references, batch.driving
        self.theta.d, self.control.d = deformation
        self.grid.d = mirrored(deform_grid(deformation, *self.driving.shape[2:]))
        nn.forward_all([self.total, *self._shown], clear_no_need_grad=True)
        self.total.backward(clear_buffer=True)
        return {name: float(variable.d) for name, variable in self.losses.items()}

    def picture(self, samples: int = 4) -> np.ndarray:
        """A picture of the last batch: one row a sample (see ``visualize.training_row``)."""
        prediction, driving_points, occlusion, mask, reference_points = (variable.d for variable in self._shown)
        batch, count = self.references.shape[:2]
        points = reference_points.reshape(batch, count, -1, 2)  # [B,K,n,2]
        rows = [
            training_row(
                self.references.d[i],
                self.driving.d[i],
                prediction[i],
                occlusion[i],
                mask[i],
                points[i],
                driving_points[i],
            )
            for i in range(min(samples, batch))
        ]
        return tile(rows)


class DiscriminatorStep:
    """The discriminator's graph on the prediction and keypoints of a GeneratorStep, both detached."""

    def __init__(self, config: Config, generator: GeneratorStep) -> None:
        prediction = generator.prediction.get_unlinked_variable(need_grad=False)
        points = generator.driving_points.get_unlinked_variable(need_grad=False)
        real = judge(generator.driving, points, config.model)
        generated = judge(prediction, points, config.model)
        self.loss = config.loss.adversarial * discriminator_loss(real.score, generated.score)
        self.loss.persistent = True

    def run(self) -> dict[str, float]:
        """Forward and backward after the generator's step: fills the gradients, returns the loss."""
        self.loss.forward(clear_no_need_grad=True)
        self.loss.backward(clear_buffer=True)
        return {"discriminator": float(self.loss.d)}


class Trainer:
    """The training loop.

    Args:
        config: Config.
        tree: ParameterTree; missing parameters are created with nnabla's current random state.
        loader: see Batches.
        folder: of the run; checkpoints and what ``watch`` writes go there.
        communicator: see ``runtime``.
        perceptual: parameters of the frozen perceptual network, or None.
        validation: list of (references uint8 [K,S,S,3], driving uint8 [N,S,S,3]) of held-out clips.
    """

    def __init__(
        self,
        config: Config,
        tree: ParameterTree,
        loader: Batches,
        folder: Path,
        communicator: "Communicator",
        perceptual: Mapping[str, nn.Variable] | None = None,
        validation: Sequence[HeldOut] = (),
    ) -> None:
        self.config = config
        self.progress = Progress()
        self.best = math.inf
        self._is_saved = False  # whether the newest checkpoint is of this step
        self._batch: Batch | None = None  # the last one
        self._tree = tree
        self._loader = loader
        self._folder = folder
        self._communicator = communicator
        self._validation = validation
        self._validation_digest = digest_of(validation)
        self._run_log = RunLog(folder, config.train.tensorboard and communicator.rank == 0)
        local_batch = config.train.batch_size // communicator.size
        with tree.scope():
            self.generator = GeneratorStep(config, local_batch, perceptual)
            self.discriminator = DiscriminatorStep(config, self.generator) if config.train.discriminator else None
        communicator.broadcast(tree.all())
        self._solvers = {"generator": self._solver(GENERATOR_SIDE)}
        if self.discriminator:
            self._solvers["discriminator"] = self._solver(DISCRIMINATOR_SIDE)

    def _solver(self, prefixes: tuple[str, ...]) -> Solver:
        solver = S.Adam(self.config.train.learning_rate, *ADAM_BETAS)
        solver.set_parameters(self._tree.trainable(*prefixes))
        return solver

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a Checkpoint of the same configuration: parameters, solvers, position in the data.

        What the run's folder holds of later steps is put out of the way, but for the best model, which stays until
        another is better. It is looked for anew where the held-out clips are others than before, as errors over them
        can't be compared.

        Raises:
            UserError: the checkpoint lacks something, it doesn't fit, or the position in the data can't be kept.
        """
        self._tree.assign(checkpoint.parameters, checkpoint.folder)
        for name, solver in self._solvers.items():
            path = checkpoint.folder / f"solver_{name}.h5"
            if not path.is_file():
                raise UserError(f"{path}: missing; this checkpoint can't be resumed, start from it with --init")
            _load_states(solver, path)
        self.progress = self._same_position(checkpoint)
        self.best = self._communicator.share(self._best_so_far())
        if checkpoint.state.get("validation") != self._validation_digest:
            print("the held-out clips are others than before: best/ is looked for anew", file=sys.stderr)
        self._is_saved = checkpoint.folder.name == checkpoint_name(self.progress.step)
        if self._communicator.rank == 0:
            set_later_aside(self._folder, self.progress.step)
            self._run_log.rewind(self.progress.step)

    def _same_position(self, checkpoint: Checkpoint) -> Progress:
        """The Progress with as many samples of the epoch done as in a Checkpoint, of whatever size its batches are.

        Raises:
            UserError: they fill no whole number of batches, or leave no step where there were some left to make.
        """
        progress, train = _position(checkpoint.folder, checkpoint.state), self.config.train
        before = checkpoint.config
        samples, size = progress.batch * before.train.batch_size, train.batch_size
        if samples % size:
            raise UserError(
                f"train.batch_size was {before.train.batch_size}, is {size}: the {samples} samples done in epoch "
                f"{progress.epoch + 1} are no whole number of batches; give a size that divides {samples}"
            )
        progress = progress._replace(batch=samples // size)
        changed = [
            f"{key} was {old}, is {new}"
            for key, old, new in zip(_ORDER, _order(before), _order(self.config))
            if old != new
        ]
        if checkpoint.state.get("training", self._loader.digest) != self._loader.digest:
            changed.insert(0, "the training clips are others than before")
        if changed or size != before.train.batch_size:
            self._check_steps_left(progress)
        if changed:
            since = (
                f"epoch {progress.epoch + 1} goes on after {samples} samples of another order, some of them seen before"
            )
            print("; ".join(changed) + (f": {since}" if samples else ""), file=sys.stderr)
        return progress

    def _check_steps_left(self, progress: Progress) -> None:
        steps, epochs = self._loader.steps_per_epoch, self.config.train.epochs
        if progress.epoch + 1 == epochs and progress.batch >= steps:
            raise UserError(
                f"{progress.batch} batches of the last epoch are done, and now it has {steps}: no step is left; raise "
                "train.epochs, or leave data and batch size as they were"
            )

    def _best_so_far(self) -> float:
        """The validation error of the folder's best model; infinite if there is none, or of other held-out clips."""
        state = self._best_state()
        if state is None or state.get("validation") != self._validation_digest:
            return math.inf
        if state["step"] > self.progress.step:
            best = self._folder / BEST
            print(
                f"{best}: is of step {state['step']}; it stays until a validation finds a better one", file=sys.stderr
            )
        return float(state["best"])

    def _best_state(self) -> Mapping[str, Any] | None:
        """What state.json of the folder's best model tells; None without a whole one."""
        try:
            state: Mapping[str, Any] = verify_checkpoint(self._folder / BEST)["state"]
            _position(self._folder / BEST, state)
        except UserError:
            return None
        return state

    def run(self) -> bool:
        """Train to the last epoch, or until a signal asks to stop, then save. Returns whether it is done.

        A checkpoint of step 0 shows at once whether there is room for one, and lets any later moment be resumed.
        """
        with _StopRequest() as stop, contextlib.closing(self._run_log):
            self._begin()
            for epoch in range(self.progress.epoch, self.config.train.epochs):
                if not self._run_epoch(epoch, stop):
                    self.save()
                    print(
                        f"stopped; step {self.progress.step} is saved, go on with --resume {self._folder}",
                        file=sys.stderr,
                    )
                    return False
            self.save()
        return True

    def _begin(self) -> None:
        if not self._is_saved:
            self.save()
        if self.progress.epoch >= self.config.train.epochs:
            print(
                f"all {self.config.train.epochs} epochs are done; --set train.epochs=NUMBER for more", file=sys.stderr
            )
        if self._communicator.rank == 0:
            with whole_file(self._folder / "config.yaml") as path:
                path.write_text(config_to_yaml(self.config), encoding="utf-8")

    def _run_epoch(self, epoch: int, stop: "_StopRequest") -> bool:
        train = self.config.train
        for solver in self._solvers.values():
            solver.set_learning_rate(learning_rate(train, epoch))
        first = self.progress.batch
        bar = tqdm(
            total=self._loader.steps_per_epoch,
            initial=first,
            desc=f"epoch {epoch + 1}/{train.epochs}",
            unit="step",
            disable=self._communicator.rank > 0,
        )
        with bar:
            for batch in self._batches(epoch, first):
                losses, self._batch = self.step(batch), batch
                self.progress = Progress(epoch, self.progress.batch + 1, self.progress.step + 1)
                bar.update()
                bar.set_postfix(loss=f"{sum(losses.values()):.3f}", img_s=f"{self._rate(bar):.1f}", refresh=False)
                self._after_step(losses)
                if self._communicator.any(stop.requested):
                    return False
        self.progress = Progress(epoch + 1, 0, self.progress.step)
        return True

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The loader's. Where it fails, the steps made are saved; several processes can't agree on that any more."""
        try:
            yield from self._loader.epoch(epoch, first)
        except UserError:
            if self._communicator.size == 1:
                self.save()
            raise

    def _rate(self, bar: tqdm) -> float:
        elapsed = bar.format_dict["elapsed"]
        return self.config.train.batch_size * (bar.n - bar.initial) / elapsed if elapsed else 0.0

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of both sides; returns the losses by name, averaged over the processes."""
        deformation = self._deformation()
        solver = self._solvers["generator"]
        solver.zero_grad()
        losses = self.generator.run(batch, deformation)
        self._update(solver, losses, batch)
        if self.discriminator:
            solver = self._solvers["discriminator"]
            solver.zero_grad()
            judged = self.discriminator.run()
            self._update(solver, judged, batch)
            losses.update(judged)
        mean = self._communicator.mean(np.array(list(losses.values())))
        return dict(zip(losses, (float(value) for value in mean)))

    def _deformation(self) -> Deformation:
        """This process' share of the global batch's deformations, drawn anew from the seed and the step."""
        train, loss = self.config.train, self.config.loss
        rng = np.random.default_rng([train.seed, self.progress.step])
        whole = draw_deformation(rng, train.batch_size, loss.tps_sigma_affine, loss.tps_sigma, loss.tps_points)
        share = train.batch_size // self._communicator.size
        start = self._communicator.rank * share
        return type(whole)(*(array[start : start + share] for array in whole))

    def _update(self, solver: Solver, losses: dict[str, float], batch: Batch) -> None:
        self._communicator.average_gradients(solver.get_parameters())
        if solver.check_inf_or_nan_grad() or not all(np.isfinite(value) for value in losses.values()):
            raise self._report_non_finite(solver, losses, batch)
        solver.update()

    def _report_non_finite(self, solver: Solver, losses: dict[str, float], batch: Batch) -> UserError:
        path = self._folder / f"non-finite-step{self.progress.step:08d}-rank{self._communicator.rank}.npz"
        with whole_file(path) as aside:
            np.savez_compressed(aside, references=batch.references, driving=batch.driving)
        names = [name for name, value in losses.items() if not np.isfinite(value)]
        names += [name for name, value in solver.get_parameters().items() if not np.isfinite(value.g).all()]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return self._diverged(f"{shown}; the batch is in {path}")

    def _diverged(self, what: str) -> UserError:
        """The error for weights that give no finite numbers: none such count as a checkpoint to go on from."""
        same = self._folder / checkpoint_name(self.progress.step)
        with contextlib.suppress(UserError):  # several processes may try
            if same.is_dir():
                set_aside(same, "diverged")
        left = [path.name for path in list_checkpoints(self._folder)[::-1] if path != same]
        best = self._best_state()
        if best and best["step"] != self.progress.step:
            left.append(BEST)
        remedy = f"go on from {left[0]} by --resume {self._folder / left[0]}" if left else "begin anew"
        further = f", or further back from {', '.join(left[1:])}" if left[1:] else ""
        return UserError(
            f"step {self.progress.step}: not finite: {what}; {remedy} with a lower train.learning_rate{further}"
        )

    def _after_step(self, losses: dict[str, float]) -> None:
        train, step = self.config.train, self.progress.step
        if step % train.log_every == 0:
            norm = gradient_norm(self._solvers["generator"].get_parameters())
            broken = self._communicator.union(self._loader.broken)  # each process meets clips of its own
            self._log({**losses, "gradient_norm": norm, "broken_clips": len(broken)})
        if step % train.picture_every == 0 and self._communicator.rank == 0:
            self._run_log.picture(step, self.generator.picture())
        if step % train.validate_every == 0 and self._validation:
            self._validate()
        if step % train.checkpoint_every == 0:
            self.save()

    def _log(self, values: Mapping[str, float]) -> None:
        """Write the values to the log (rank 0)."""
        if self._communicator.rank == 0:
            rate = self._solvers["generator"].learning_rate()
            self._run_log.write(self.progress.step, self.progress.epoch, {"learning_rate": rate, **values})

    def _validate(self) -> None:
        """Mean L1 of held-out clips, driven by their own frames; keeps the best model."""
        error = self._communicator.mean(np.array([reconstruction_error(self.config, self._tree, self._validation)]))[0]
        if not np.isfinite(error):
            raise self._diverged("validation_l1")
        self._log({"validation_l1": float(error)})
        if error < self.best:
            self.best = float(error)
            self.save(BEST)

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint (rank 0) and delete the oldest beyond ``train.keep_checkpoints``.

        Raises:
            UserError: it can't be written, or the model's pictures of the last batch aren't finite.
        """
        if self._communicator.rank == 0:
            if self._batch and not name and not is_finite(self.config, self._tree, self._batch):
                raise self._diverged("the model's pictures")
            state = {
                **self.progress._asdict(),
                "best": self.best,
                "validation": self._validation_digest,
                "training": self._loader.digest,
            }
            folder = self._folder / (name or checkpoint_name(self.progress.step))
            save_checkpoint(folder, self.config, self._tree.all(), state, self._solvers)
            remove_old_checkpoints(self._folder, self.config.train.keep_checkpoints)
        self._communicator.barrier()


def _load_states(solver: Solver, path: Path) -> None:
    """Load a solver's states, after a look at what the file holds: nnabla would follow links out of it.

    Raises:
        UserError: unreadable file, or not the states of this solver's parameters.
    """
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


def _position(folder: Path, state: Mapping[str, Any]) -> Progress:
    """The Progress that the state of a checkpoint in a folder tells, which holds a validation error too."""
    values: list[Any] = [state.get(field) for field in Progress._fields]
    if not all(type(value) is int and value >= 0 for value in values) or type(state.get("best")) not in (int, float):
        raise UserError(f"{folder / 'state.json'}: doesn't tell where a training run stands; start from it with --init")
    return Progress(*values)


def _order(config: Config) -> tuple[object, ...]:
    """What decides, besides the clips, which samples an epoch has and their order: the values of ``_ORDER``."""
    return config.train.seed, config.data.num_repeats, config.data.id_sampling


def digest_of(clips: Iterable[HeldOut]) -> str:
    """SHA-256 of the pictures of held-out clips, which decides whether two validation errors can be compared."""
    digest = hashlib.sha256()
    for pictures in itertools.chain.from_iterable(clips):
        digest.update(repr(pictures.shape).encode())
        digest.update(pictures.tobytes())
    return digest.hexdigest()


def reconstruction_error(config: Config, tree: ParameterTree, clips: Iterable[HeldOut]) -> float:
    """Mean |prediction - driving| over clips, each a (references uint8 [K,S,S,3], driving uint8 [N,S,S,3])."""
    errors = []
    for references, driving in clips:
        animator = Animator(NnablaGraphs(config.model, tree), images_to_array(references), batch=4)
        frames = images_to_array(driving)
        errors.append(np.abs(animator.render(animator.keypoints(frames)) - frames).mean())
    return float(np.mean(errors))


def is_finite(config: Config, tree: ParameterTree, batch: Batch) -> bool:
    """Whether the model draws a finite picture of a batch's first sample."""
    animator = Animator(NnablaGraphs(config.model, tree), batch.references[0])
    return bool(np.isfinite(animator.render(animator.keypoints(batch.driving[:1]))).all())


def gradient_norm(parameters: Mapping[str, nn.Variable]) -> float:
    """Euclidean norm of all gradients together."""
    return float(np.sqrt(sum(float(np.vdot(value.g, value.g)) for value in parameters.values())))


class _StopRequest:
    """Turns STOP_SIGNALS into a flag read between steps; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "_StopRequest":
        self._old = {number: signal.signal(number, self._note) for number in STOP_SIGNALS if not _is_nohup(number)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def _is_nohup(number: int) -> bool:
    """Whether the run was started so as to outlive its terminal."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
