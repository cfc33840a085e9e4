"""All measures in one command: `python -m eval COMMAND ...`, or mrfomm-eval."""

from collections.abc import Sequence

from mrfomm.__main__ import run_one, scores
from mrfomm.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, or list them all; returns the exit code."""
    return run_one(dict(scores()), __doc__, arguments)


def command() -> None:
    """The console command."""
    run_command(main)


if __name__ == "__main__":
    command()
