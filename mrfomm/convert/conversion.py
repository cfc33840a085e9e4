"""Convert weights: `python -m mrfomm.convert vox-cpk.pth.tar -o weights/vox`."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mrfomm.checkpoint import ParameterTree, save_checkpoint, save_parameters
from mrfomm.config import Config, ModelConfig, config_from_dict, load_config, read_yaml
from mrfomm.convert.name_map import (
    NNABLA_EXAMPLES_IGNORED,
    UPSTREAM_IGNORED,
    VGG19_IGNORED,
    architecture_of,
    check_antialias,
    config_from_upstream,
    nnabla_examples_names,
    translate,
    upstream_arrays,
    upstream_names,
    vgg19_names,
    without_module,
)
from mrfomm.convert.torch_file import read_torch
from mrfomm.errors import AnyPath, UserError, check_is_file, command_parser
from mrfomm.h5_file import read_h5
from mrfomm.model import create_parameters
from mrfomm.networks import ops
from mrfomm.networks.perceptual import vgg19_shapes

DETAILS = """
Sources: checkpoints of FOMM's PyTorch code (.pth.tar; read without torch) and of Sony's nnabla-examples (.h5), which
become a checkpoint folder for --weights and --init; VGG19 of torchvision (.pth) or of nnabla-examples (vgg19.h5), which
becomes one .h5 file for loss.perceptual_weights.
"""
DEFAULT_FUSION = "occlusion"  # what K references can use without any trained fusion


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[--config YAML] -o DEST SRC", epilog=DETAILS)
    parser.add_argument("source", metavar="SRC", help="weights to convert")
    parser.add_argument(
        "-o", "--output", metavar="DEST", required=True, help="checkpoint folder, or .h5 file for VGG19"
    )
    parser.add_argument("--config", metavar="YAML", help="ours, or the one the weights came with (default: vox-256)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    source = read_source(args.source)
    if is_vgg19(source):
        if args.config:
            raise UserError(f"{args.source}: is VGG19, which takes no --config; leave it out")
        convert_vgg19(source, args.source, Path(args.output))
    else:
        config = read_config(args.config) if args.config else vox_config(source)
        if "generator" in source:
            parameters = from_upstream(source, config.model, args.source)
        else:
            parameters = from_nnabla_examples(source, config.model, args.source)
        save_checkpoint(args.output, config, parameters, {"source": Path(args.source).name})
    print(args.output)
    return 0


def read_source(path: AnyPath) -> dict[str, Any]:
    """The content of a weight file: torch's nested dictionary, or an HDF5 file's name -> array."""
    check_is_file(path)
    return read_h5(path) if h5py.is_hdf5(path) else without_module(read_torch(path))


def is_vgg19(source: dict[str, Any]) -> bool:
    """Whether the content is VGG19's weights, of either layout."""
    return "features.0.weight" in source or "conv1/conv/W" in source


def read_config(path: AnyPath) -> Config:
    """The Config of --config: our own format, or that of FOMM and nnabla-examples (with model_params)."""
    if "model_params" in read_yaml(path):
        return for_foreign_weights(config_from_dict(config_from_upstream(read_yaml(path), path), path).model)
    return load_config(path)


def vox_config(source: dict[str, Any]) -> Config:
    """The Config of FOMM's published models: vox-256, or vox-adv-256 if the discriminator has no spectral norm."""
    model = ModelConfig()
    discriminator = source.get("discriminator")  # of whatever kind; upstream_arrays refuses what is no state_dict
    names = discriminator if isinstance(discriminator, dict) else ()
    if names and not any(str(name).endswith("weight_orig") for name in names):
        adversarial = dataclasses.replace(model.discriminator, spectral_norm=False, keypoint_input=True)
        model = dataclasses.replace(model, discriminator=adversarial)
    return for_foreign_weights(model)


def for_foreign_weights(model: ModelConfig) -> Config:
    """A Config with the ModelConfig and the fusion that needs no training."""
    return Config(model=dataclasses.replace(model, fusion=dataclasses.replace(model.fusion, mode=DEFAULT_FUSION)))


def from_upstream(checkpoint: dict[str, Any], model: ModelConfig, origin: AnyPath) -> dict[str, np.ndarray]:
    """Our parameters by name from a checkpoint of FOMM's PyTorch code."""
    arrays = upstream_arrays(checkpoint, origin)
    architecture = architecture_of(model, arrays)
    shapes = parameter_shapes(model, bool(architecture.discriminator_blocks))
    parameters = translate(arrays, upstream_names(architecture), shapes, UPSTREAM_IGNORED, origin)
    check_antialias(arrays, model, origin)
    return parameters


def from_nnabla_examples(arrays: dict[str, np.ndarray], model: ModelConfig, origin: AnyPath) -> dict[str, np.ndarray]:
    """Our parameters by name from a checkpoint of nnabla-examples."""
    architecture = architecture_of(model, arrays)
    shapes = parameter_shapes(model, bool(architecture.discriminator_blocks))
    return translate(arrays, nnabla_examples_names(architecture), shapes, NNABLA_EXAMPLES_IGNORED, origin)


def parameter_shapes(model: ModelConfig, discriminator: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a ModelConfig's parameters, without those of a learned fusion (foreign weights have none)."""
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        create_parameters(model, discriminator)
    return {name: value.shape for name, value in tree.all().items() if not name.startswith("fusion/")}


def convert_vgg19(source: dict[str, Any], origin: AnyPath, destination: Path) -> None:
    """Write VGG19's convolutions up to relu5_1 as one .h5 file."""
    if destination.suffix != ".h5":
        raise UserError(f"{destination}: VGG19 becomes one file; give a name that ends in .h5")
    names = vgg19_names(source, origin)
    parameters = translate(source, names, vgg19_shapes(), VGG19_IGNORED, origin)
    save_parameters(destination, parameters)
