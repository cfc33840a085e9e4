"""All commands in one: `python -m mrfomm COMMAND ...`, or mrfomm."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence

from mrfomm.errors import command_parser, run_command, started_as

COMMANDS = {
    "animate": ("mrfomm.commands.animate", "animate a face"),
    "train": ("mrfomm.commands.train", "train a model"),
    "reconstruct": ("mrfomm.commands.reconstruct", "rebuild test clips from a few of their own frames"),
    "app": ("mrfomm.app.__main__", "serve a page for the browser that animates a face"),
    "doctor": ("mrfomm.commands.doctor", "say what this machine has, and whether it computes right"),
    "prepare": ("mrfomm.data.prepare", "cut raw videos into face clips"),
    "heads": ("mrfomm.heads.__main__", "render heads to train and score with"),
    "convert": ("mrfomm.convert.__main__", "convert foreign weights"),
    "export": ("mrfomm.commands.export", "export a model to ONNX"),
    "provenance": ("mrfomm.media.provenance", "say what a result was made from"),
}
SCORES = {
    "bins": "score motion transfer in bins of the head's angle",
    "reconstruction": "score what reconstruct has rebuilt",
    "pairs": "compare two folders of pictures",
    "pose": "estimate the head's angles in a clip",
    "report": "put results into one self-contained HTML file",
}


def scores() -> Iterator[tuple[str, tuple[str, str]]]:
    """Those of ``SCORES`` that are there, with module and text. They are of the package eval, in a wheel mrfomm_eval;
    nothing here imports it."""
    package = next(filter(importlib.util.find_spec, ("mrfomm_eval", "eval")), None)
    for name, text in SCORES.items() if package else ():
        if spec := importlib.util.find_spec(f"{package}.{name}"):
            yield name, (spec.name + (".__main__" if spec.submodule_search_locations else ""), text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, or list them all; returns the exit code."""
    return run_one({**COMMANDS, **dict(scores())}, __doc__, arguments)


def run_one(commands: Mapping[str, tuple[str, str]], doc: str | None, arguments: Sequence[str] | None) -> int:
    """Run one of commands, each with module and text, or list them; returns the exit code."""
    listed = "\n".join(f"  {name:<16}{text}" for name, (_, text) in commands.items())
    parser = command_parser(
        doc,
        "COMMAND ...",
        description=f"{doc or ''}\n\n{listed}",
        epilog="`%(prog)s COMMAND --help` lists the options of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=commands, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    module = importlib.import_module(commands[args.command][0])
    sys.argv[0] = f"{started_as()} {args.command}"  # the name that its help goes by
    code: int = module.main(args.rest)
    return code


def command() -> None:
    """The console command."""
    run_command(main)


if __name__ == "__main__":
    command()
