"""LPIPS v0.1 (Zhang et al., CVPR 2018) on AlexNet or VGG16: features, and the distance between two sets of them.

The weights are a file of arrays: ``conv.../{W,b}`` of the backbone and ``head{1..5}/w`` [C], the learned weight of
every channel. ``scripts/make_lpips_weights.py`` makes it. They never enter nnabla's global parameters.
"""

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import nnabla as nn
import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.networks.perceptual import VGG16_COUNTS, alexnet_features, load_frozen, normalise, vgg16_features

LAYERS = 5
EPSILON = 1e-10  # LPIPS' own, in the channel normalisation
_MAX_EXPANSION = 16  # of compressed data; weights shrink by less
_REMEDY = "make the file with scripts/make_lpips_weights.py"


class Backbone(NamedTuple):
    """A network without its weights.

    features(x, parameters) -> five Variables; stages: the convolutions' names up to each of these; kernels: side of
    the kernels in each stage; smallest: side of an image.
    """

    name: str
    features: Callable[[nn.Variable, Mapping[str, nn.Variable]], list[nn.Variable]]
    stages: Sequence[Sequence[str]]
    kernels: tuple[int, ...]
    smallest: int


_VGG16_STAGES = [[f"conv{i}_{j}" for j in range(1, n + 1)] for i, n in enumerate(VGG16_COUNTS, start=1)]
BACKBONES = (
    Backbone("AlexNet", alexnet_features, [[f"conv{i}"] for i in range(1, 6)], (11, 5, 3, 3, 3), 31),
    Backbone("VGG16", vgg16_features, _VGG16_STAGES, (3, 3, 3, 3, 3), 16),
)


def load_lpips(path: AnyPath) -> "Lpips":
    """Read a file of LPIPS weights; UserError if it is missing, damaged, or of neither backbone."""
    check_is_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_EXPANSION * os.path.getsize(path):
                raise ValueError("its content is larger than the file can hold")
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as error:  # zipfile and numpy raise a dozen kinds
        raise UserError(
            f"{path}: not a readable file of LPIPS weights ({error}); make one with scripts/make_lpips_weights.py"
        ) from error
    return Lpips(arrays, path)


class Lpips:
    """The metric on one set of weights: name -> array; the names tell the backbone, ``source`` is named in errors.

    UserError: the names are not exactly those of AlexNet or VGG16 with five heads, the shapes don't fit each other, or
    values aren't finite.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], source: AnyPath = "LPIPS weights") -> None:
        self.backbone = _recognise(arrays, source)
        _check_arrays(arrays, self.backbone, source)
        self._heads = [np.asarray(arrays[f"head{i}/w"], np.float64) for i in range(1, LAYERS + 1)]
        self._parameters = load_frozen({name: array for name, array in arrays.items() if name.startswith("conv")})
        self._image: nn.Variable | None = None
        self._outputs: list[nn.Variable] = []

    def features(self, images: np.ndarray) -> list[np.ndarray]:
        """The raw ReLU activations that LPIPS compares, before its channel normalisation.

        images: uint8 [N,H,W,3] RGB of any size from ``backbone.smallest`` up, else a UserError -> five float32 arrays
        [N,C,h,w].
        """
        count, height, width, _ = images.shape
        if min(height, width) < self.backbone.smallest:
            raise UserError(
                f"images of {width}x{height} pixels: LPIPS with {self.backbone.name} needs {self.backbone.smallest} on "
                "a side; give larger ones"
            )
        image = self._prepare((count, 3, height, width))
        image.d = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255  # [N,3,H,W]
        nn.forward_all(self._outputs, clear_no_need_grad=True)
        return [output.d.copy() for output in self._outputs]

    def distance(self, features_a: Sequence[np.ndarray], features_b: Sequence[np.ndarray]) -> np.ndarray:
        """LPIPS between features, two lists of five arrays [N,C,h,w] that may be averages over images -> float64 [N].

        The squared difference of unit vectors over channels, weighted, averaged over space, summed over the layers.
        """
        layers = zip(self._heads, map(_unit, features_a), map(_unit, features_b))
        shares = [np.einsum("c,nchw->nhw", head, (a - b) ** 2).mean(axis=(1, 2)) for head, a, b in layers]
        return np.sum(shares, axis=0)

    def __call__(self, images_a: np.ndarray, images_b: np.ndarray) -> np.ndarray:
        """LPIPS of image pairs: two uint8 [N,H,W,3] -> float64 [N]."""
        return self.distance(self.features(images_a), self.features(images_b))

    def _prepare(self, shape: tuple[int, ...]) -> nn.Variable:
        """Build the graph for a shape, unless it is the one that stands; returns its input."""
        if self._image is None or self._image.shape != shape:
            self._image = nn.Variable(shape)
            # LPIPS scales [-1,1] by (x - shift) / scale with shift (-.030,-.088,-.188) and scale (.458,.448,.450): on
            # [0,1] these are ImageNet's mean and standard deviation.
            self._outputs = self.backbone.features(normalise(self._image), self._parameters)
            for output in self._outputs:
                output.persistent = True
        return self._image


def _recognise(arrays: Mapping[str, np.ndarray], source: AnyPath) -> Backbone:
    for backbone in BACKBONES:
        names = {f"{name}/{part}" for names in backbone.stages for name in names for part in ("W", "b")}
        if set(arrays) == names | {f"head{i}/w" for i in range(1, LAYERS + 1)}:
            return backbone
    raise UserError(f"{source}: not the arrays of LPIPS with {' or '.join(b.name for b in BACKBONES)}; {_REMEDY}")


def _check_arrays(arrays: Mapping[str, np.ndarray], backbone: Backbone, source: AnyPath) -> None:
    """Refuse arrays that can't be the backbone's: every layer takes what the one before it gives."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for number, (names, side) in enumerate(zip(backbone.stages, backbone.kernels), start=1):
        for name in names:
            inputs, channels = channels, arrays[f"{name}/b"].size
            shapes |= {f"{name}/W": (channels, inputs, side, side), f"{name}/b": (channels,)}
        shapes[f"head{number}/w"] = (channels,)
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype.kind != "f" or array.shape != shape or not np.isfinite(array).all():
            problem = f"{name} should have finite numbers and the shape {shape}, its own is {array.shape}"
            raise UserError(f"{source}: {problem}; {_REMEDY}")


def _unit(x: np.ndarray) -> np.ndarray:
    """Channel vectors of length 1: [N,C,h,w] -> float64 [N,C,h,w]."""
    x = np.asarray(x, np.float64)
    return x / (np.sqrt((x**2).sum(axis=1, keepdims=True)) + EPSILON)
