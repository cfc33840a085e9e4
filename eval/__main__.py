"""All measures in one command: `python -m eval COMMAND ...`, or mrfomm-eval."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from mrfomm.errors import command_parser, run_command, started_as

COMMANDS = {
    "bins": "motion transfer scored in bins of the head's angle",
    "reconstruction": "what reconstruct has rebuilt, scored",
    "pairs": "two folders of pictures, or two videos, compared",
    "pose": "the head's angles in a clip, estimated",
    "report": "results as one self-contained HTML file",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace: the command, and what is left for it to parse."""
    listed = "\n".join(f"  {name:<24}{text}" for name, text in COMMANDS.items())
    parser = command_parser(
        __doc__,
        "COMMAND ...",
        description=f"{__doc__ or ''}\n\n{listed}",
        epilog="`%(prog)s COMMAND --help` lists the options of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    module = importlib.import_module(f".{args.command}", __package__)  # each needs other extras, and takes its time
    sys.argv[0] = f"{started_as()} {args.command}"  # the name that its help goes by
    return module.main(args.rest)


def command() -> None:
    """The console command."""
    run_command(main)


if __name__ == "__main__":
    command()
