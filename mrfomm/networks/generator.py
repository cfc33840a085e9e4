"""Generator in the four parts the fusion needs apart: encode, warp, (fuse), decode (FOMM, section 3.2)."""

import nnabla as nn
import nnabla.functions as F
from nnabla import Variable

from mrfomm.networks import ops
from mrfomm.networks.blocks import down_block, residual_block, same_block, up_block
from mrfomm.networks.copying import mix_pixels
from mrfomm.networks.geometry import resize
from mrfomm.networks.motion import Motion


def encode(image: Variable, expansion: int, max_features: int, down_blocks: int, training: bool = False) -> Variable:
    """Encode a reference [N,3,H,W] in [0,1] -> features [N,C,H/2^d,W/2^d], C = min(max_features, expansion * 2^d)."""
    with nn.parameter_scope("generator"):
        with nn.parameter_scope("first"):
            features = same_block(image, min(max_features, expansion), 7, training)
        for i in range(down_blocks):
            with nn.parameter_scope(f"down_{i}"):
                features = down_block(features, min(max_features, expansion * 2 ** (i + 1)), training)
    return features


def warp_features(features: Variable, motion: Motion) -> tuple[Variable, Variable]:
    """Warp features [N,C,h,w] by a Motion and multiply by its occlusion map -> (warped [N,C,h,w], occlusion [N,1,h,w]).

    Deformation and occlusion are resized to the features where the sizes differ.
    """
    height, width = features.shape[2:]
    occlusion, grid = resize(motion.occlusion, height, width), motion.deformation
    if grid.shape[1:3] != (height, width):
        grid = F.transpose(resize(F.transpose(grid, (0, 3, 1, 2)), height, width), (0, 2, 3, 1))
    return ops.multiply(ops.warp(features, grid), occlusion), occlusion


def decode(
    features: Variable,
    expansion: int,
    max_features: int,
    down_blocks: int,
    bottleneck_blocks: int,
    training: bool = False,
    copies: Variable | None = None,
) -> Variable:
    """Decode (fused) features [N,C,h,w] into an image [N,3,h*2^d,w*2^d] in [0,1]; ``copies``: see ``mix_pixels``."""
    with nn.parameter_scope("generator"):
        for i in range(bottleneck_blocks):
            with nn.parameter_scope(f"res_{i}"):
                features = residual_block(features, training)
        for i in range(down_blocks):
            with nn.parameter_scope(f"up_{i}"):
                features = up_block(features, min(max_features, expansion * 2 ** (down_blocks - 1 - i)), training)
        with nn.parameter_scope("final"):
            painted = F.sigmoid(ops.convolution(features, 3, 7, pad=3))
        if copies is None:
            return painted
        with nn.parameter_scope("copy"):
            return mix_pixels(painted, features, copies, training)
