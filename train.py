"""Train a model; see ``python train.py --help``."""

from mrfomm.commands.train import command

if __name__ == "__main__":
    command()
