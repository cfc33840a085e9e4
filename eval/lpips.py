"""LPIPS v0.1 (Zhang et al., CVPR 2018) on AlexNet or VGG16: features, and the distance between two sets of them.

The weights are a file of arrays: ``conv.../{W,b}`` of the backbone and ``head{1..5}/w`` [C], the learned weight of
every channel. ``scripts/make_lpips_weights.py`` makes it. They never enter nnabla's global parameters.
"""

import zipfile
from typing import Callable, NamedTuple, Tuple

import nnabla as nn
import numpy as np

from mrfomm.errors import UserError
from mrfomm.networks.perceptual import VGG16_COUNTS, alexnet_features, load_frozen, normalise, vgg16_features

LAYERS = 5
EPSILON = 1e-10  # LPIPS' own, in the channel normalisation


class Backbone(NamedTuple):
    """name; features(x, parameters) -> five Variables; convolutions: their names; smallest: side of an image."""

    name: str
    features: Callable
    convolutions: Tuple[str, ...]
    smallest: int


_VGG16_NAMES = tuple(f"conv{stage}_{i}" for stage, n in enumerate(VGG16_COUNTS, start=1) for i in range(1, n + 1))
BACKBONES = (
    Backbone("AlexNet", alexnet_features, tuple(f"conv{i}" for i in range(1, 6)), 31),
    Backbone("VGG16", vgg16_features, _VGG16_NAMES, 16),
)


def load_lpips(path):
    """Read a file of LPIPS weights -> Lpips.

    Raises:
        UserError: missing, damaged, or the arrays are not those of one of the two backbones.
    """
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a readable file of LPIPS weights ({error}); make one with scripts/make_lpips_weights.py"
        ) from error
    return Lpips(arrays, path)


class Lpips:
    """The metric on one set of weights.

    Args:
        arrays: name -> array; the names tell the backbone.
        source: named in errors.

    Raises:
        UserError: the names are not exactly those of AlexNet or VGG16 with five heads.
    """

    def __init__(self, arrays, source="LPIPS weights"):
        self.backbone = _recognise(arrays, source)
        self._heads = [np.float64(arrays[f"head{i}/w"]) for i in range(1, LAYERS + 1)]
        self._parameters = load_frozen({name: array for name, array in arrays.items() if name.startswith("conv")})
        self._image = None
        self._outputs = None

    def features(self, images):
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
        self._prepare((count, 3, height, width))
        self._image.d = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255  # [N,3,H,W]
        nn.forward_all(self._outputs, clear_no_need_grad=True)
        return [output.d.copy() for output in self._outputs]

    def distance(self, features_a, features_b):
        """LPIPS between features: the squared difference of unit vectors over channels, weighted, averaged over space.

        Args:
            features_a, features_b: two lists of five arrays [N,C,h,w], which may be averages over several images.

        Returns:
            float64 [N]: the sum over the layers.
        """
        return sum(map(_layer_distance, self._heads, features_a, features_b))

    def __call__(self, images_a, images_b):
        """LPIPS of image pairs: two uint8 [N,H,W,3] -> float64 [N]."""
        return self.distance(self.features(images_a), self.features(images_b))

    def _prepare(self, shape):
        """Build the graph for a shape, unless it is the one that stands."""
        if self._image is not None and self._image.shape == shape:
            return
        self._image = nn.Variable(shape)
        # LPIPS scales [-1,1] by (x - shift) / scale with shift (-.030,-.088,-.188) and scale (.458,.448,.450): on [0,1]
        # these are ImageNet's mean and standard deviation.
        self._outputs = self.backbone.features(normalise(self._image), self._parameters)
        for output in self._outputs:
            output.persistent = True


def _recognise(arrays, source):
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


def _layer_distance(head, a, b):
    """One layer's share: head [C], a and b [N,C,h,w] -> [N]."""
    return np.einsum("c,nchw->nhw", head, (_unit(a) - _unit(b)) ** 2).mean(axis=(1, 2))


def _unit(x):
    """Channel vectors of length 1: [N,C,h,w] -> float64 [N,C,h,w]."""
    x = np.float64(x)
    return x / (np.sqrt((x**2).sum(axis=1, keepdims=True)) + EPSILON)
