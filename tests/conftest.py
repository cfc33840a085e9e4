"""Set-up shared by all tests: what has to be in place before nnabla or mpirun is first used, and ``--context``."""

import logging
import os

import pytest

# nnabla greets on the root logger when it is imported.
logging.getLogger("nnabla").setLevel(logging.WARNING)

# Open MPI refuses to run as root, which is who tests are in a container.
if os.geteuid() == 0:
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

# The files, by folder, that --context cudnn runs, but for tests marked ``cpu``. Those compare bits of two trainings,
# which a GPU's atomic sums change; or they go backward through a batch norm with running statistics, which no training
# does, and of which a Hopper GPU dies (docs/scaling.md).
ON_GPU = {
    "networks": "blocks discriminator fusion generator geometry keypoints motion parity perceptual",
    "training": "equivariance losses resuming trainer training_wiring",
    "eval": "lpips",
    "reenactment": "animator",
}


def pytest_addoption(parser):
    parser.addoption("--context", choices=("cpu", "cudnn"), default="cpu", help="where networks compute (cpu)")


def pytest_configure(config):
    """With --context cudnn put all on the GPU: graphs that tests build, commands that they tell to use the CPU."""
    if config.getoption("context") == "cpu":
        return
    import nnabla as nn

    from mrfomm.errors import UserError
    from mrfomm.runtime import context

    try:
        gpu = context.choose_context("cudnn")
    except UserError as error:
        pytest.exit(str(error), returncode=2)
    nn.set_default_context(gpu)
    context.choose_context = lambda *_, **__: gpu


def pytest_collection_modifyitems(config, items):
    if config.getoption("context") == "cudnn":
        others = [item for item in items if not is_for_gpu(item)]
        items[:] = [item for item in items if is_for_gpu(item)]
        config.hook.pytest_deselected(items=others)


def is_for_gpu(item):
    names = ON_GPU.get(item.path.parent.name, "").split()
    return item.path.stem.removeprefix("test_") in names and not item.get_closest_marker("cpu")


def pytest_report_collectionfinish(config, items):
    if config.getoption("context") == "cudnn":
        folders = ", ".join(sorted({f"tests/{item.path.parent.name}" for item in items}))
        return f"--context cudnn: {len(items)} tests of {folders or 'no folder'} on the GPU; all others are left out"
    return None
