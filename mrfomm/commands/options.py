"""Options that several commands have."""

import argparse

from mrfomm.config import FUSION_MODES
from mrfomm.errors import UserError
from mrfomm.reenactment.backends import BACKENDS
from mrfomm.runtime import CONTEXTS


def add_context(parser: argparse.ArgumentParser) -> None:
    """Add where to compute."""
    parser.add_argument("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")


def add_computing(parser: argparse.ArgumentParser, batch: int | None = None) -> None:
    """Add where and by what a model is run, and, with a default, the number of driving frames per call."""
    add_context(parser)
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (auto: onnx on CPUs, if there)")
    if batch is not None:
        text = "driving frames per call of the network (%(default)s)"
        add("--batch", type=batch_size, default=batch, metavar="N", help=text)


def batch_size(text: str) -> int:
    """The number of --batch; a UserError if it is none."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch {text}: give a number of frames, at least 1")
    return int(text)


def add_fusion(parser: argparse.ArgumentParser) -> None:
    """Add how references are fused."""
    text = f"how references are fused: {', '.join(FUSION_MODES)} or your MODULE:FUNCTION (as trained)"
    parser.add_argument("--fusion", type=fusion_mode, metavar="MODE", help=text)


def fusion_mode(name: str) -> str:
    """A fusion mode that the user has named on the command line. One of the user's own is imported.

    Raises:
        ArgumentTypeError: none has this name. UserError: it can't be imported.
    """
    if ":" in name:
        from mrfomm.networks.fusion import FusionError, plug

        try:
            plug(name)
        except FusionError as error:
            raise UserError(f"fusion mode {error}") from error
    elif name not in FUSION_MODES:
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(FUSION_MODES)})")
    return name
