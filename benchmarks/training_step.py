"""One training step, timed in a process (or several) of its own: `python -m benchmarks.training_step --profile`.

64x64, expansion 16, K = 3, equivariance and AlexNet's perceptual loss, on random pictures. Prints one JSON object.
Under mpirun the processes share the batch and average their gradients, as in training.
"""

import collections
import json
import tempfile
import time

import nnabla as nn
import numpy as np

from benchmarks.timing import median_seconds
from mrfomm import bundled
from mrfomm.checkpoint import ParameterTree
from mrfomm.config import load_config
from mrfomm.data.loader import Batch
from mrfomm.errors import command_parser
from mrfomm.networks import ops
from mrfomm.runtime.processes import start_processes
from mrfomm.training.step import load_perceptual
from mrfomm.training.trainer import Trainer


class RandomBatches:
    """Stands in for a Loader: one batch of random pictures."""

    broken = ()
    steps_per_epoch = 1

    def __init__(self, config, batch):
        size, rng = config.model.image_size, np.random.default_rng(0)
        references = rng.random((batch, config.data.num_references, 3, size, size), np.float32)
        self.batch = Batch(references, rng.random((batch, 3, size, size), np.float32))


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="samples per step, of all processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="seconds to measure for (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="also each operator's share of a step")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Time the step; prints JSON on rank 0."""
    args = parse_arguments(arguments)
    overrides = [f"train.batch_size={args.batch}", "train.validation_clips=0"]
    overrides += ["model.num_keypoints=10", "loss.separation=0"]  # FOMM's
    config = load_config(bundled.CONFIGS / "person-64.yaml", overrides)
    with start_processes("cpu") as communicator, tempfile.TemporaryDirectory() as folder:
        operators = communicator.synchronised(ops.fastest(nn.get_current_context()))
        with ops.implementation(operators):
            loader = RandomBatches(config, args.batch // communicator.size)
            trainer = Trainer(
                config, ParameterTree(), loader, communicator.share(folder), communicator, load_perceptual(config.loss)
            )

        def step():
            return trainer.step(loader.batch)

        step()
        start = time.perf_counter()
        step()
        # the same number of steps in every process: each waits for the others' gradients
        count = int(communicator.share(max(3, args.seconds / (time.perf_counter() - start))))
        result = {"seconds": median_seconds(step, seconds=0, at_least=count), "processes": communicator.size}
        if args.profile:
            result["profile"] = profile(trainer.generator)
        if communicator.rank == 0:
            print(json.dumps(result))


def profile(generator, repeats=3):
    """Seconds by operator and direction: ``"Convolution backward" -> 0.31``; what is under 0.1 per cent is left out."""
    clock = _Clock()
    for _ in range(repeats):
        nn.forward_all([generator.total], clear_no_need_grad=True, **clock.hooks("forward"))
        generator.total.backward(clear_buffer=True, **clock.hooks("backward"))
    seconds = {name: value / repeats for name, value in clock.seconds.most_common()}
    floor = sum(seconds.values()) / 1000
    return {name: value for name, value in seconds.items() if value > floor}


class _Clock:
    """Adds up the time between nnabla's hooks before and after each function."""

    def __init__(self):
        self.seconds = collections.Counter()
        self._start = 0.0

    def hooks(self, direction):
        def before(_):
            self._start = time.perf_counter()

        def after(function):
            self.seconds[f"{function.info.type_name} {direction}"] += time.perf_counter() - self._start

        return {"function_pre_hook": before, "function_post_hook": after}


if __name__ == "__main__":
    main()
