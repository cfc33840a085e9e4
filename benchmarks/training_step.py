"""Time training steps: `python -m benchmarks.training_step --context cudnn`.

On random pictures; one JSON object for each configuration, number of references and stage, each in a process of its
own. Under mpirun the processes share the batch and average their gradients, as in training.

seconds: median of a step. host_share: how much of a step is neither forward nor backward nor update; for this the host
waits for the device after each of them, in steps that aren't timed otherwise. memory_mb: the process' peak on a CPU,
what is in use of a GPU.
"""

import collections
import importlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import nnabla as nn
import numpy as np

from benchmarks.timing import median_seconds
from mrfomm import bundled
from mrfomm.config import load_config
from mrfomm.data.loader import Batch
from mrfomm.errors import command_parser, run_command
from mrfomm.model.checkpoint import ParameterTree
from mrfomm.networks import ops
from mrfomm.runtime.context import CONTEXTS
from mrfomm.runtime.processes import start_processes
from mrfomm.training import step as steps
from mrfomm.training.trainer import Trainer

OVERRIDES = {
    "person-64": ["model.num_keypoints=10", "loss.separation=0"],  # FOMM's
    "heads-64": [],
    # VGG19's weights are the user's to bring; the discriminator is vox-adv's
    "vox-256": [
        "loss.perceptual_network=alexnet",
        "model.discriminator.spectral_norm=false",
        "model.discriminator.keypoint_input=true",
    ],
}


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
    add = parser.add_argument
    add("--context", choices=CONTEXTS, default="cpu", help="where to compute (%(default)s)")
    several = {"nargs": "+", "metavar": "NAME", "choices": OVERRIDES, "default": ["heads-64"]}
    add("--configs", **several, help=f"one of {', '.join(OVERRIDES)} (heads-64); vox-256 is slow on a CPU: --batch 1")
    add("--references", nargs="+", type=int, metavar="K", default=[1, 3], help="numbers of references (1 3)")
    add("--stages", nargs="+", type=int, choices=(1, 2), default=[1, 2], help="2 is with discriminator (both)")
    add("--batch", type=int, default=8, help="samples per step, of all processes (%(default)s)")
    add("--seconds", type=float, default=5, help="seconds to spend on each, 3 steps at least (%(default)s)")
    add("--profile", action="store_true", help="print each operator's share of a step, too")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    cases = list(itertools.product(args.configs, args.references, args.stages))
    if len(cases) == 1:
        measure(args, *cases[0])
        return 0
    same = ["--context", args.context, "--batch", args.batch, "--seconds", args.seconds, *["--profile"] * args.profile]
    for name, references, stage in cases:
        case = ["--configs", name, "--references", references, "--stages", stage, *same]
        command = [sys.executable, "-m", "benchmarks.training_step", *map(str, case)]
        if code := subprocess.run(command, cwd=Path(__file__).parent.parent).returncode:
            return code
    return 0


def measure(args, name, references, stage):
    """Time the steps of one case; prints JSON on rank 0."""
    overrides = [f"data.num_references={references}", f"model.fusion.mode={'patch' if references > 1 else 'mean'}"]
    overrides += [f"train.batch_size={args.batch}", f"train.discriminator={str(stage == 2).lower()}"]
    config = load_config(bundled.CONFIGS / f"{name}.yaml", [*OVERRIDES[name], *overrides])
    with start_processes(args.context) as communicator, tempfile.TemporaryDirectory() as folder:
        operators = communicator.synchronised(ops.fastest(nn.get_current_context()))
        loader = RandomBatches(config, args.batch // communicator.size)
        with ops.implementation(operators):
            perceptual = steps.load_perceptual(config.loss)
            trainer = Trainer(config, ParameterTree(), loader, communicator.share(folder), communicator, perceptual)

        def step():
            trainer.step(loader.batch)

        step()
        start = time.perf_counter()
        step()
        # the same number of steps in every process: each waits for the others' gradients
        count = int(communicator.share(max(3, args.seconds / (time.perf_counter() - start))))
        result = {"config": name, "references": references, "stage": stage, "batch": args.batch}
        result |= {"context": nn.get_current_context().backend[0], "processes": communicator.size}
        result["seconds"] = median_seconds(step, seconds=0, at_least=count)
        result["host_share"] = host_share(trainer, step, count)
        result["memory_mb"] = memory_mb()
        if args.profile:
            result["profile"] = profile(trainer.generator)
        if communicator.rank == 0:
            print(json.dumps(result))


def on_gpu():
    """Whether the current context computes on one."""
    return nn.get_current_context().backend[0].startswith("cudnn")


def wait_for_device():
    """Wait until a GPU has done what it was told."""
    if on_gpu():
        importlib.import_module("nnabla_ext.cuda").synchronize(nn.get_current_context().device_id)


def memory_mb():
    """MB in use of the GPU, where nnabla keeps what it has had; on a CPU the process' peak."""
    if not on_gpu():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", nn.get_current_context().device_id]
    return int(subprocess.run(["nvidia-smi", *query], check=True, capture_output=True).stdout)


def host_share(trainer, step, count):
    """The share of ``count`` steps that is not spent in forward, backward and update."""
    watch = Stopwatch()
    solvers = {name: TimedSolver(solver, watch) for name, solver in trainer._solvers.items()}
    differentiate = watch.timed(steps.differentiate)
    with mock.patch.object(steps, "differentiate", differentiate), mock.patch.dict(trainer._solvers, solvers):
        start = time.perf_counter()
        for _ in range(count):
            step()
        return 1 - watch.seconds / (time.perf_counter() - start)


class Stopwatch:
    """Adds up the seconds inside functions and until the device has done what they told it."""

    def __init__(self):
        self.seconds = 0.0

    def timed(self, function):
        """The function, with the watch running inside."""

        def run(*arguments):
            start = time.perf_counter()
            function(*arguments)
            wait_for_device()
            self.seconds += time.perf_counter() - start

        return run


class TimedSolver:
    """A solver whose ``update`` a Stopwatch times."""

    def __init__(self, solver, watch):
        self._solver, self.update = solver, watch.timed(solver.update)

    def __getattr__(self, name):
        return getattr(self._solver, name)


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
    run_command(main)
