"""Losses on images (FOMM, section 3.3): multi-scale perceptual and pixel losses, LSGAN, feature matching."""

from collections.abc import Iterable, Mapping, Sequence

import nnabla as nn
import nnabla.functions as F

from mrfomm.networks.geometry import downsample
from mrfomm.networks.ops import warp
from mrfomm.networks.perceptual import alexnet_features, normalise, vgg19_features
from mrfomm.networks.sums import mean, sum_last

WARP_SCALES = (1, 0.5, 0.25)  # of the motion network's size
_FEATURES = {"vgg19": vgg19_features, "alexnet": alexnet_features}


def image_pyramid(image: nn.Variable, scales: Iterable[float]) -> list[nn.Variable]:
    """The image [N,3,H,W] at each scale, anti-aliased."""
    return [downsample(image, scale) for scale in scales]


def perceptual_loss(
    predictions: Sequence[nn.Variable],
    targets: Sequence[nn.Variable],
    network: str,
    parameters: Mapping[str, nn.Variable],
) -> nn.Variable:
    """Sum over scales and layers of the mean |difference| of a frozen network's features, ``vgg19`` or ``alexnet``.

    Image pyramids are lists of [N,3,h,w] in [0,1]. No gradient flows to the targets.
    """
    extract = _FEATURES[network]
    total = 0
    for images in zip(predictions, targets):
        total = feature_matching_loss(*(extract(normalise(image), parameters) for image in images)) + total
    return total


def pixel_loss(predictions: Sequence[nn.Variable], targets: Sequence[nn.Variable]) -> nn.Variable:
    """Sum over scales of the mean |difference|."""
    return sum(map(mean_absolute, predictions, targets))


def feature_matching_loss(generated: Sequence[nn.Variable], real: Sequence[nn.Variable]) -> nn.Variable:
    """Sum over a network's layers of the mean |difference|; no gradient flows to the real side.

    The real side stays linked to its graph, or nothing would compute it: see "fails silently" in docs/porting.md.
    """
    for feature in real:
        feature.need_grad = False
    return sum(map(mean_absolute, generated, real))


def separation_loss(points: nn.Variable, distance: float) -> nn.Variable:
    """Keeps keypoints [N,n,2] in [-1,1] apart (prior of face-vid2vid, Wang et al. 2021, without its term for depth).

    Mean over N of the sum over ordered pairs of max(0, distance - |p_i - p_j|^2): ``distance`` is squared.
    """
    batch, count, _ = points.shape
    one = F.reshape(points, (batch, count, 1, 2))
    other = F.reshape(points, (batch, 1, count, 2))
    shortfall = F.relu(distance - sum_last((one - other) ** 2))  # [N,n,n,1]; a point with itself adds a constant
    return count**2 * mean(shortfall) - count * distance


def warp_loss(image: nn.Variable, deformation: nn.Variable, driving: nn.Variable) -> nn.Variable:
    """How far the references, warped by the deformation alone, are from the driving frame.

    Close to the warp loss of Zhao and Zhang (*Thin-Plate Spline Motion Model*, 2022), which compares the encoder's
    features; pictures do before the encoder knows anything. Coarse scales tell of motions that are far off.

    References [N,3,h,w] at the motion network's size, ``Motion.deformation`` [N,h,w,2], driving frame of each
    [N,3,h,w] -> the sum over WARP_SCALES of the mean |difference|.
    """
    return pixel_loss(image_pyramid(warp(image, deformation), WARP_SCALES), image_pyramid(driving, WARP_SCALES))


def generator_adversarial_loss(score: nn.Variable) -> nn.Variable:
    """LSGAN: mean (1 - D(generated))^2."""
    return mean((1 - score) ** 2)


def discriminator_loss(real: nn.Variable, generated: nn.Variable) -> nn.Variable:
    """LSGAN: mean (1 - D(real))^2 + D(generated)^2."""
    return mean((1 - real) ** 2 + generated**2)


def mean_absolute(a: nn.Variable, b: nn.Variable) -> nn.Variable:
    """mean |a - b|, a scalar."""
    return mean(F.absolute_error(a, b))
