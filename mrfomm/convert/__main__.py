"""Convert weights: `python -m mrfomm.convert vox-cpk.pth.tar -o weights/vox`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mrfomm.convert import conversion
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model.checkpoint import save_checkpoint, save_parameters

DETAILS = """
Sources: checkpoints of FOMM's PyTorch code (.pth.tar; read without torch) and of Sony's nnabla-examples (.h5), which
become a checkpoint folder for --weights and --init; VGG19 of torchvision (.pth) or of nnabla-examples (vgg19.h5), which
becomes one .h5 file for loss.perceptual_weights.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[--config YAML] -o DEST SRC", epilog=DETAILS)
    add = parser.add_argument
    add("source", metavar="SRC", help="weights to convert")
    add("-o", "--output", metavar="DEST", required=True, help="checkpoint folder, or .h5 file for VGG19")
    add("--config", metavar="YAML", help="configuration of the weights: ours, or the one they came with (vox-256)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    source = conversion.read_source(args.source)
    if conversion.is_vgg19(source):
        if args.config:
            raise UserError(f"{args.source}: is VGG19, which takes no --config; leave it out")
        if Path(args.output).suffix != ".h5":
            raise UserError(f"{args.output}: VGG19 becomes one file; give a name that ends in .h5")
        save_parameters(args.output, conversion.vgg19_parameters(source, args.source))
    else:
        config = conversion.read_config(args.config) if args.config else conversion.vox_config(source)
        parameters = conversion.our_parameters(source, config.model, args.source)
        save_checkpoint(args.output, config, parameters, {"source": Path(args.source).name})
    print(args.output)
    return 0


if __name__ == "__main__":
    run_command(main)
