"""Animate a face from several references; see ``python animate.py --help``."""

from mrfomm.commands.animate import command

if __name__ == "__main__":
    command()
