"""Rebuild test clips from a few of their own frames; see ``python reconstruct.py --help``."""

from mrfomm.commands.reconstruct import command

if __name__ == "__main__":
    command()
