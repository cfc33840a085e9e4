"""Options that several commands have."""

import argparse

from mrfomm.config import FUSION_MODES
from mrfomm.errors import UserError
from mrfomm.reenactment.backends import BACKENDS
from mrfomm.runtime import CONTEXTS


def add_computing(parser: argparse.ArgumentParser, batch: int) -> None:
    """Add where and by what a model is run, with the default number of driving frames per call."""
    add = parser.add_argument
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (auto: onnx on CPUs, if there)")
    add("--batch", type=int, default=batch, metavar="N", help="driving frames per call of the network (%(default)s)")


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
