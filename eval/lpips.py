"""LPIPS v0.1 (Zhang et al., CVPR 2018) on AlexNet or VGG16: features, and the distance between two sets of them.

The weights are a file of arrays: ``conv.../{W,b}`` of the backbone and ``head{1..5}/w`` [C], the learned weight of
every channel. ``scripts/make_lpips_weights.py`` makes it. They never enter nnabla's global parameters.
"""

import functools
import math
import operator
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import nnabla as nn
import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.networks.perceptual import VGG16_COUNTS, alexnet_features, load_frozen, normalise, vgg16_features

LAYERS = 5
EPSILON = 1e-10  # LPIPS' own, in the channel normalisation
_MAX_EXPANSION = 16  # of compressed data; weights shrink by less
_BROKEN_NPZ = (  # what zipfile and numpy raise
    OSError,
    EOFError,
    ValueError,
    IndexError,
    KeyError,
    RuntimeError,
    OverflowError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Backbone(NamedTuple):
    """A network without its weights.

    name; features(x, parameters) -> five Variables; stages: the names of the convolutions up to each of these; kernels:
    side of each convolution's kernel; smallest: side of an image.
    """

    name: str
    features: Callable[[nn.Variable, Mapping[str, nn.Variable]], list[nn.Variable]]
    stages: tuple[tuple[str, ...], ...]
    kernels: tuple[int, ...]
    smallest: int

    @property
    def convolutions(self) -> list[str]:
        """The names of all convolutions, in their order."""
        return [name for names in self.stages for name in names]


_VGG16_STAGES = tuple(tuple(f"conv{i}_{j}" for j in range(1, n + 1)) for i, n in enumerate(VGG16_COUNTS, start=1))
BACKBONES = (
    Backbone("AlexNet", alexnet_features, tuple((f"conv{i}",) for i in range(1, 6)), (11, 5, 3, 3, 3), 31),
    Backbone("VGG16", vgg16_features, _VGG16_STAGES, (3,) * sum(VGG16_COUNTS), 16),
)


def load_lpips(path: AnyPath) -> "Lpips":
    """Read a file of LPIPS weights -> Lpips.

    Raises:
        UserError: missing, damaged, or the arrays are not those of one of the two backbones.
    """
    check_is_file(path)
    try:
        arrays = _read_npz(path)
    except _BROKEN_NPZ as error:
        raise UserError(
            f"{path}: not a readable file of LPIPS weights ({error}); make one with scripts/make_lpips_weights.py"
        ) from error
    return Lpips(arrays, path)


def _read_npz(path: AnyPath) -> dict[str, np.ndarray]:
    """Name -> array of numpy's zip file. Unlike ``np.load`` it takes no more memory than the file can fill."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_EXPANSION * os.path.getsize(path):
            raise ValueError("its content is larger than the file can hold")
        return {entry.filename[: -len(".npy")]: _read_array(archive, entry) for entry in archive.infolist()}


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{entry.filename} is of a later format than weights need")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind != "f" or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError(f"{entry.filename} holds no weights")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if by_columns else "C")


class Lpips:
    """The metric on one set of weights.

    Args:
        arrays: name -> array; the names tell the backbone.
        source: named in errors.

    Raises:
        UserError: the names are not exactly those of AlexNet or VGG16 with five heads, the shapes don't fit each other,
            or values aren't finite.
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

        Args:
            images: uint8 [N,H,W,3] RGB of any size from ``backbone.smallest`` up.

        Returns:
            list of five float32 arrays [N,C,h,w].

        Raises:
            UserError: the images are too small for the backbone.
        """
        count, height, width, _ = images.shape
        if min(height, width) < self.backbone.smallest:
            raise UserError(
                f"images of {width}x{height} pixels: LPIPS with {self.backbone.name} needs "
                f"{self.backbone.smallest} on a side; give larger ones"
            )
        image = self._prepare((count, 3, height, width))
        image.d = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255  # [N,3,H,W]
        nn.forward_all(self._outputs, clear_no_need_grad=True)
        return [output.d.copy() for output in self._outputs]

    def distance(self, features_a: Sequence[np.ndarray], features_b: Sequence[np.ndarray]) -> np.ndarray:
        """LPIPS between features: the squared difference of unit vectors over channels, weighted, averaged over space.

        Args:
            features_a, features_b: two lists of five arrays [N,C,h,w], which may be averages over several images.

        Returns:
            float64 [N]: the sum over the layers.
        """
        return functools.reduce(operator.add, map(_layer_distance, self._heads, features_a, features_b))

    def __call__(self, images_a: np.ndarray, images_b: np.ndarray) -> np.ndarray:
        """LPIPS of image pairs: two uint8 [N,H,W,3] -> float64 [N]."""
        return self.distance(self.features(images_a), self.features(images_b))

    def _prepare(self, shape: tuple[int, ...]) -> nn.Variable:
        """Build the graph for a shape, unless it is the one that stands; returns its input."""
        if self._image is not None and self._image.shape == shape:
            return self._image
        self._image = nn.Variable(shape)
        # LPIPS scales [-1,1] by (x - shift) / scale with shift (-.030,-.088,-.188) and scale (.458,.448,.450): on [0,1]
        # these are ImageNet's mean and standard deviation.
        self._outputs = self.backbone.features(normalise(self._image), self._parameters)
        for output in self._outputs:
            output.persistent = True
        return self._image


def _recognise(arrays: Mapping[str, np.ndarray], source: AnyPath) -> Backbone:
    """The Backbone whose arrays these are."""
    heads = {f"head{i}/w" for i in range(1, LAYERS + 1)}
    for backbone in BACKBONES:
        names = {f"{name}/{part}" for name in backbone.convolutions for part in ("W", "b")}
        if set(arrays) == names | heads:
            return backbone
    raise UserError(
        f"{source}: not the arrays of LPIPS with {' or '.join(b.name for b in BACKBONES)}; "
        "make the file with scripts/make_lpips_weights.py"
    )


def _check_arrays(arrays: Mapping[str, np.ndarray], backbone: Backbone, source: AnyPath) -> None:
    """Refuse arrays that can't be the backbone's: every layer takes what the one before it gives."""
    shapes, channels = {}, 3
    kernels = iter(backbone.kernels)
    for number, names in enumerate(backbone.stages, start=1):
        for name in names:
            side, inputs, channels = next(kernels), channels, arrays[f"{name}/b"].size
            shapes.update({f"{name}/W": (channels, inputs, side, side), f"{name}/b": (channels,)})
        shapes[f"head{number}/w"] = (channels,)
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise UserError(
                f"{source}: {name} should have finite numbers and the shape {shape}, its own is {arrays[name].shape}; "
                "make the file with scripts/make_lpips_weights.py"
            )


def _layer_distance(head: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One layer's share: head [C], a and b [N,C,h,w] -> [N]."""
    return np.einsum("c,nchw->nhw", head, (_unit(a) - _unit(b)) ** 2).mean(axis=(1, 2))


def _unit(x: np.ndarray) -> np.ndarray:
    """Channel vectors of length 1: [N,C,h,w] -> float64 [N,C,h,w]."""
    x = np.asarray(x, np.float64)
    return x / (np.sqrt((x**2).sum(axis=1, keepdims=True)) + EPSILON)
