"""Convert weights: `python -m mrfomm.convert vox-cpk.pth.tar -o weights/vox`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mrfomm.convert import conversion
from mrfomm.convert.download import PUBLISHED, fetch, published
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model.checkpoint import save_checkpoint, save_parameters

DETAILS = """
Sources: checkpoints of FOMM's PyTorch code (.pth.tar; read without torch) and of Sony's nnabla-examples (.h5), which
become a checkpoint folder for --weights and --init; VGG19 of torchvision (.pth) or of nnabla-examples (vgg19.h5), which
becomes one .h5 file for loss.perceptual_weights. --download fetches FOMM's published files first: vox or vox-adv,
hundreds of megabytes, kept beside DEST. Addresses and checksums stand in a YAML file (--sources); the publishers name
a checksum for vox-adv alone. The real files were never fetched by this project, which has no network.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[--config YAML] -o DEST (SRC | --download NAME)", epilog=DETAILS)
    add = parser.add_argument
    add("source", metavar="SRC", nargs="?", help="weights to convert")
    add("-o", "--output", metavar="DEST", help="checkpoint folder, or .h5 file for VGG19 (weights/NAME)")
    add("--config", metavar="YAML", help="configuration of the weights: ours, or the one they came with (vox-256)")
    add("--download", metavar="NAME", help="published weights to fetch in place of SRC: vox or vox-adv (none)")
    add("--sources", metavar="YAML", default=PUBLISHED, help="addresses and checksums of published weights (bundled)")
    add("--checksum", metavar="KIND:HEX", help="md5: or sha256: of the file to fetch (as in YAML)")
    args = parser.parse_args(arguments)
    if (args.source is None) == (args.download is None) or not (args.output or args.download):
        parser.error("give SRC and -o DEST, or --download NAME")
    if args.checksum and not args.download:
        parser.error("--checksum: is for --download")
    return args


def trained_on(args: argparse.Namespace) -> str:
    """What the converted model will say of itself."""
    is_vox = args.download in ("vox", "vox-adv")  # --sources may have others
    return "talking heads (VoxCeleb)" if is_vox else f"what {Path(args.source).name} was trained on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    args.output = args.output or str(Path("weights", args.download))
    if args.download:
        args.source = fetch(published(args.download, args.sources, args.checksum), Path(args.output).parent)
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
        save_checkpoint(
            args.output, config, parameters, {"source": Path(args.source).name, "trained_on": trained_on(args)}
        )
    print(args.output)
    return 0


if __name__ == "__main__":
    run_command(main)
