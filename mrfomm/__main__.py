"""The list of commands: `python -m mrfomm`."""

import argparse
from collections.abc import Sequence

from mrfomm.errors import command_parser, run_command

COMMANDS = {
    "python animate.py": "animate a face (installed: mrfomm-animate)",
    "python train.py": "train a model (mrfomm-train)",
    "python reconstruct.py": "rebuild test clips (mrfomm-reconstruct)",
    "python -m eval": "score models (mrfomm-eval)",
    "python -m mrfomm.app": "a page for the browser (mrfomm-app)",
    "python -m mrfomm.doctor": "what this machine has, and whether it computes right",
    "python -m mrfomm.data.prepare": "cut raw videos into face clips",
    "python -m mrfomm.heads": "render heads to train and score with",
    "python -m mrfomm.convert": "convert foreign weights",
    "python -m mrfomm.export": "export a model to ONNX",
    "python -m mrfomm.provenance": "what a result was made from",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; returns the exit code."""
    lines = [f"{name:<32}{text}" for name, text in COMMANDS.items()]
    text = "\n".join([*lines, "", "Each takes --help."])
    parser = command_parser(__doc__, "", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    run_command(main)
