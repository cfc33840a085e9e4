"""Pixels from the warped references themselves (``generator.copy``), which neither FOMM nor the paper has.

What the decoder paints is soft, and its colours are those that it has learned. A background that stays, skin and
cloth need not be painted: they are in the references. MRAA (Siarohin et al. 2021, ``skips``) mixes the warped source
into what its generator paints, by the occlusion map; here K references and the painted picture compete for each pixel,
and the references' fusion masks have a say: what chooses among features chooses among pixels.
"""

import nnabla as nn
import nnabla.functions as F
from nnabla import Variable

from mrfomm.networks import ops
from mrfomm.networks.geometry import resize
from mrfomm.networks.motion import Motion

HIDDEN = 8  # channels of the network that scores pixels
HIGHEST = 20.0  # score, whose exponential must be a number


def fold_pixels(image: Variable, side: int) -> Variable:
    """The pixels of side x side squares as channels: [N,C,H,W] -> [N,C*side^2,H/side,W/side]."""
    batch, channels, height, width = image.shape
    squares = F.reshape(image, (batch, channels, height // side, side, width // side, side))
    return F.reshape(F.transpose(squares, (0, 1, 3, 5, 2, 4)), (batch, -1, height // side, width // side))


def unfold_pixels(folded: Variable, side: int) -> Variable:
    """The inverse of ``fold_pixels``: [N,C*side^2,h,w] -> [N,C,h*side,w*side]."""
    batch, channels, height, width = folded.shape
    squares = F.reshape(folded, (batch, channels // side**2, side, side, height, width))
    return F.reshape(F.transpose(squares, (0, 1, 4, 2, 5, 3)), (batch, -1, height * side, width * side))


def warp_picture(picture: Variable, motion: Motion) -> Variable:
    """A picture [N,3,H,W] warped by a Motion, and the occlusion map behind it -> [N,4,H,W].

    The deformation is enlarged corner to corner, so that no motion leaves every pixel where it is.
    """
    height, width = picture.shape[2:]
    grid = F.transpose(motion.deformation, (0, 3, 1, 2))
    if grid.shape[2:] != (height, width):
        grid = F.interpolate(grid, output_size=(height, width), mode="linear", align_corners=True)
    warped = ops.warp(picture, F.transpose(grid, (0, 2, 3, 1)))
    return F.concatenate(warped, resize(motion.occlusion, height, width), axis=1)


def mix_pixels(painted: Variable, features: Variable, copies: Variable, training: bool = False) -> Variable:
    """Mix what the decoder has painted and K warped pictures, pixel by pixel -> [N,3,H,W].

    What is painted weighs 1, a picture its fusion mask times exp(score), where a small network gives the score. It
    starts at 0: before any training half of each pixel is painted, and the masks fuse the other half. It doesn't see
    the masks, so that a reference given twice is as good as once.

    Args:
        painted: [N,3,H,W] in [0,1], decoded from ``features`` [N,C,H,W].
        copies: [N,K,5,H,W], each as of ``warp_picture`` with its fusion mask behind it.
    """
    batch, count, _, height, width = copies.shape
    pictures, occlusion, mask = copies[:, :, :3], copies[:, :, 3:4], copies[:, :, 4:]
    difference = pictures - F.reshape(painted, (batch, 1, 3, height, width))
    seen = F.reshape(F.concatenate(difference, occlusion, axis=2), (batch * count, 4, height, width))
    with nn.parameter_scope("features"):
        shared = ops.convolution(features, HIDDEN, 3, pad=1)
    with nn.parameter_scope("copies"):
        own = ops.convolution(seen, HIDDEN, 3, pad=1)
    hidden = F.reshape(own, (batch, count, -1, height, width)) + F.reshape(shared, (batch, 1, -1, height, width))
    hidden = ops.batch_normalization(F.reshape(hidden, own.shape), training, relu=True)
    score = F.minimum_scalar(ops.convolution(hidden, 1, 3, pad=1, zero=True), HIGHEST)
    weight = F.reshape(F.exp(score), (batch, count, 1, height, width)) * mask
    share = weight / (F.sum(weight, axis=1, keepdims=True) + 1)
    return painted + F.sum(ops.multiply(difference, share), axis=1)
