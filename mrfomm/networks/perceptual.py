"""Frozen classification networks whose features the perceptual loss and LPIPS compare.

Their parameters live in a dictionary of their own (``nn.parameter_scope("", parameters)``), never in a checkpoint.
"""

from collections.abc import Mapping, Sequence

import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.networks import ops

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

VGG19_LAYERS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 1))  # channels and convolutions per stage, to relu5_1
VGG16_COUNTS = (2, 2, 3, 3, 3)  # convolutions per stage
ALEXNET_LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride and padding of each convolution


def normalise(image: Variable, mean: np.ndarray = IMAGENET_MEAN, std: np.ndarray = IMAGENET_STD) -> Variable:
    """(image - mean) / std per channel: [N,3,H,W]."""
    shift = Variable.from_numpy_array(np.reshape(mean, (1, 3, 1, 1)))
    factor = Variable.from_numpy_array(1 / np.reshape(std, (1, 3, 1, 1)))
    return (image - shift) * factor


def vgg19_features(x: Variable, parameters: Mapping[str, Variable]) -> list[Variable]:
    """VGG19's relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of a normalised image [N,3,H,W].

    Five Variables, [N,64,H,W] to [N,512,H/16,W/16]; the parameters are ``vgg19/conv{stage}_{i}/{W,b}``.
    """
    return [stage[0] for stage in _vgg_stages(x, parameters, "vgg19/", [count for _, count in VGG19_LAYERS])]


def vgg16_features(x: Variable, parameters: Mapping[str, Variable]) -> list[Variable]:
    """VGG16's relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 (torchvision's VGG16, the other network of LPIPS).

    Of a normalised image [N,3,H,W] of at least 16 pixels a side, with 64, 128, 256, 512, 512 channels; the parameters
    are ``conv{stage}_{i}/{W,b}``.
    """
    return [stage[-1] for stage in _vgg_stages(x, parameters, "", VGG16_COUNTS)]


def alexnet_features(x: Variable, parameters: Mapping[str, Variable]) -> list[Variable]:
    """AlexNet's five ReLU outputs (torchvision's AlexNet, the default network of LPIPS).

    Of a normalised image [N,3,H,W] of at least 31 pixels a side, with 64, 192, 384, 256, 256 channels; the parameters
    are ``conv{1..5}/{W,b}``.
    """
    features = []
    for i, (stride, pad) in enumerate(ALEXNET_LAYERS, start=1):
        if i in (2, 3):
            x = F.max_pooling(x, kernel=(3, 3), stride=(2, 2))
        x = F.relu(_convolution(x, parameters, f"conv{i}", pad, stride))
        features.append(x)
    return features


def vgg19_shapes() -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of the part of VGG19 that is used."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = 3
    for stage, (channels, count) in enumerate(VGG19_LAYERS, start=1):
        for i in range(1, count + 1):
            shapes[f"vgg19/conv{stage}_{i}/W"] = (channels, width, 3, 3)
            shapes[f"vgg19/conv{stage}_{i}/b"] = (channels,)
            width = channels
    return shapes


def load_frozen(arrays: Mapping[str, np.ndarray]) -> dict[str, Variable]:
    """Arrays by name -> Variables by name that take no gradient."""
    return {name: Variable.from_numpy_array(np.asarray(array, np.float32)) for name, array in arrays.items()}


def _vgg_stages(
    x: Variable, parameters: Mapping[str, Variable], scope: str, counts: Sequence[int]
) -> list[list[Variable]]:
    """The ReLU outputs of a VGG by stage."""
    stages: list[list[Variable]] = []
    for stage, count in enumerate(counts, start=1):
        if stage > 1:
            x = F.max_pooling(x, kernel=(2, 2))
        stages.append([])
        for i in range(1, count + 1):
            x = F.relu(_convolution(x, parameters, f"{scope}conv{stage}_{i}", pad=1))
            stages[-1].append(x)
    return stages


def _convolution(x: Variable, parameters: Mapping[str, Variable], name: str, pad: int, stride: int = 1) -> Variable:
    return ops.raw_convolution(x, parameters[f"{name}/W"], parameters[f"{name}/b"], pad, stride)
