"""Train a tiny model for five steps, in any number of processes, and write what came of it.

Run by test_processes.py: ``mpirun -n 2 python five_steps.py RESULT.npz``.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import nnabla as nn
import numpy as np
import tiny

from mrfomm.data.loader import Batch
from mrfomm.model.checkpoint import ParameterTree
from mrfomm.networks import ops
from mrfomm.runtime.context import seed_initialisers
from mrfomm.runtime.processes import start_processes
from mrfomm.training.trainer import Trainer

STEPS = 5
BATCH = 4  # over all processes
CONFIG = tiny.config(
    data={"num_references": 3},
    loss={"scales": [1, 0.5, 0.25]},
    train={"batch_size": BATCH, "discriminator": True, "learning_rate": 2e-4},
)


class NoLoader(NamedTuple):
    """Stands in for the loader, which Trainer.step doesn't ask."""

    steps_per_epoch: int = STEPS
    broken: tuple = ()


def global_batch(step):
    """Batch of BATCH samples, each of its own moving blob."""
    samples = [tiny.frames(4, seed=BATCH * step + i).transpose(0, 3, 1, 2) for i in range(BATCH)]  # [K+1,3,H,W]
    samples = np.stack(samples).astype(np.float32) / 255
    return Batch(np.ascontiguousarray(samples[:, :-1]), np.ascontiguousarray(samples[:, -1]))


def share(batch, communicator):
    """This process' samples of a global batch."""
    size = BATCH // communicator.size
    start = communicator.rank * size
    return Batch(*(array[start : start + size] for array in batch[:2]))


def five_steps(communicator, folder):
    """Train -> arrays by name: gradients and running statistics after the first step, losses of all steps."""
    seed_initialisers(7 + communicator.rank)  # the trainer has to make the ranks equal
    tree = ParameterTree()
    result, losses = {}, []
    with ops.implementation(communicator.synchronised(ops.fastest(nn.get_current_context()))):
        trainer = Trainer(CONFIG, tree, NoLoader(), folder, communicator)
    for step in range(STEPS):
        losses.append(trainer.step(share(global_batch(step), communicator)))
        if step == 0:
            result.update({f"gradient/{name}": v.g.copy() for name, v in tree.trainable("").items()})
            result.update({f"state/{name}": v.d.copy() for name, v in tree.all().items() if not v.need_grad})
    result.update({f"loss/{name}": np.array([row[name] for row in losses]) for name in losses[0]})
    return result


if __name__ == "__main__":
    with start_processes("cpu") as processes:
        result = Path(sys.argv[1])
        arrays = five_steps(processes, result.parent)
        if processes.rank == 0:
            np.savez(result, **arrays)
