"""Options that several commands have."""

import argparse

from mrfomm.reenactment.backends import BACKENDS
from mrfomm.runtime import CONTEXTS


def add_computing(parser: argparse.ArgumentParser, batch: int) -> None:
    """Add where and by what a model is run, with the default number of driving frames per call."""
    add = parser.add_argument
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs it (auto: onnx on a CPU, if installed)")
    add("--batch", type=int, default=batch, metavar="N", help="frames per call of the network (%(default)s)")
