"""Pack a checkpoint for shipping: `python scripts/ship_weights.py RUN/checkpoint-NUMBER -o mrfomm/assets/heads-patch`.

Half precision and no solver states: a sixth of the size. Pictures change by less than a grey level
(docs/model-card.md). A model trained with one reference has not learned to fuse; it gets the mode ``mean``.
What the model knows is kept; --trained-on and --expect say it anew. After the default model, export it again:
`python -m mrfomm.export mrfomm/assets/heads-patch -o mrfomm/assets/heads-patch-onnx --breakdown --half`.
"""

import dataclasses

import numpy as np

from mrfomm.config.knowledge import Knowledge
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model.checkpoint import load_checkpoint, save_checkpoint
from mrfomm.training.step import GENERATOR_SIDE

KEPT = ("step", "source", *Knowledge._fields)


def halve(parameters):
    """Parameters by name in float16.

    Raises:
        UserError: a value has no place in half precision.
    """
    with np.errstate(over="ignore"):
        halves = {name: np.asarray(value, np.float16) for name, value in parameters.items()}
    for name, value in halves.items():
        if not np.isfinite(value).all():
            raise UserError(f"{name}: too large for half precision; ship the checkpoint as it is")
    return halves


def without_fusion(config, parameters):
    """Config and parameters for the mode ``mean``, as an untrained fusion unit gives it."""
    model = dataclasses.replace(config.model, fusion=dataclasses.replace(config.model.fusion, mode="mean"))
    kept = {name: value for name, value in parameters.items() if not name.startswith("fusion/")}
    return dataclasses.replace(config, model=model), kept


def main(arguments=None):
    parser = command_parser(__doc__, "-o DIR CKPT")
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint or run folder")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument("--trained-on", metavar="TEXT", help="what the pictures showed, and their size")
    parser.add_argument("--expect", metavar="TEXT", help="what comes of pictures of another kind")
    options = parser.parse_args(arguments)
    checkpoint = load_checkpoint(options.checkpoint)
    generator_side = {k: v for k, v in checkpoint.parameters.items() if k.startswith(GENERATOR_SIDE)}
    config, parameters = checkpoint.config, halve(generator_side)
    if config.data.num_references == 1:
        config, parameters = without_fusion(config, parameters)
    origin = {name: value for name, value in checkpoint.state.items() if name in KEPT}
    told = {"trained_on": options.trained_on, "expect": options.expect}
    origin.update({name: text for name, text in told.items() if text is not None})
    save_checkpoint(options.output, config, parameters, origin)


if __name__ == "__main__":
    run_command(main)
