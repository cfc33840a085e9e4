"""Foreign weights as parameters of ours: what the file holds, the configuration that fits, the translation."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import h5py

from mrfomm.config import Config, ModelConfig, load_config, read_yaml
from mrfomm.convert import name_map
from mrfomm.convert.name_map import Arrays, translate
from mrfomm.convert.torch_file import read_torch
from mrfomm.convert.upstream_config import config_from_upstream
from mrfomm.errors import AnyPath, check_is_file
from mrfomm.model import create_parameters
from mrfomm.model.checkpoint import ParameterTree, read_h5
from mrfomm.networks import ops
from mrfomm.networks.perceptual import vgg19_shapes

DEFAULT_FUSION = "occlusion"  # what K references can use without any trained fusion


def read_source(path: AnyPath) -> dict[str, Any]:
    """The content of a weight file: torch's nested dictionary, or an HDF5 file's name -> array."""
    check_is_file(path)
    return read_h5(path) if h5py.is_hdf5(path) else name_map.without_module(read_torch(path))


def is_vgg19(source: dict[str, Any]) -> bool:
    """Whether the content is VGG19's weights, of either layout."""
    return "features.0.weight" in source or "conv1/conv/W" in source


def read_config(path: AnyPath) -> Config:
    """The Config of --config: our own format, or that of FOMM and nnabla-examples (with model_params)."""
    values = read_yaml(path)
    if "model_params" not in values:
        return load_config(path)
    return _for_foreign_weights(config_from_upstream(values, path))


def vox_config(source: dict[str, Any]) -> Config:
    """The Config of FOMM's published models: vox-256, or vox-adv-256 if the discriminator has no spectral norm."""
    model = ModelConfig()
    discriminator = source.get("discriminator")  # of whatever kind; upstream_arrays refuses what is no state_dict
    names = discriminator if isinstance(discriminator, dict) else ()
    if names and not any(str(name).endswith("weight_orig") for name in names):
        adversarial = dataclasses.replace(model.discriminator, spectral_norm=False, keypoint_input=True)
        model = dataclasses.replace(model, discriminator=adversarial)
    return _for_foreign_weights(model)


def _for_foreign_weights(model: ModelConfig) -> Config:
    """A Config with the ModelConfig and the fusion that needs no training."""
    return Config(model=dataclasses.replace(model, fusion=dataclasses.replace(model.fusion, mode=DEFAULT_FUSION)))


def our_parameters(source: dict[str, Any], model: ModelConfig, origin: AnyPath) -> Arrays:
    """Our parameters by name from a checkpoint of nnabla-examples, or of FOMM's PyTorch code (with a "generator")."""
    if "generator" not in source:
        shapes = parameter_shapes(model, source)
        names = name_map.nnabla_examples_names(shapes)
        return translate(source, names, shapes, name_map.NNABLA_EXAMPLES_IGNORED, origin)
    arrays = name_map.upstream_arrays(source, origin)
    shapes = parameter_shapes(model, arrays)
    parameters = translate(arrays, name_map.upstream_names(shapes), shapes, name_map.UPSTREAM_IGNORED, origin)
    name_map.check_antialias(arrays, model, origin)
    return parameters


def parameter_shapes(model: ModelConfig, source: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters that foreign weights have: a learned fusion's never, a discriminator's if
    ``source`` names one."""
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        create_parameters(model, any(name.startswith("discriminator") for name in source))
    return {name: value.shape for name, value in tree.all().items() if not name.startswith("fusion/")}


def vgg19_parameters(source: Arrays, origin: AnyPath) -> Arrays:
    """VGG19's convolutions up to relu5_1, by our names."""
    names = name_map.vgg19_names(source, origin)
    return translate(source, names, vgg19_shapes(), name_map.VGG19_IGNORED, origin)
