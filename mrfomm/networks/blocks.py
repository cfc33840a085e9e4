"""FOMM's building blocks. Every ``training`` argument is whether batch normalisation uses the batch's statistics."""

import nnabla as nn
import nnabla.functions as F
from nnabla import Variable

from mrfomm.networks import ops


def same_block(x: Variable, channels: int, kernel: int, training: bool) -> Variable:
    """Convolution (padding keeps the size), batch norm, ReLU: [N,C,H,W] -> [N,channels,H,W]."""
    x = ops.convolution(x, channels, kernel, pad=kernel // 2)
    return ops.batch_normalization(x, training, relu=True)


def down_block(x: Variable, channels: int, training: bool) -> Variable:
    """3x3 convolution, batch norm, ReLU, average pooling: [N,C,H,W] -> [N,channels,H/2,W/2]."""
    return ops.halve(same_block(x, channels, 3, training))


def up_block(x: Variable, channels: int, training: bool) -> Variable:
    """Nearest upsampling by 2, 3x3 convolution, batch norm, ReLU: [N,C,H,W] -> [N,channels,2H,2W]."""
    return same_block(ops.double(x), channels, 3, training)


def residual_block(x: Variable, training: bool) -> Variable:
    """(batch norm, ReLU, 3x3 convolution) twice, plus the input: [N,C,H,W] -> [N,C,H,W]."""
    out = x
    for name in ("first", "second"):
        with nn.parameter_scope(name):
            out = ops.batch_normalization(out, training, relu=True)
            out = ops.convolution(out, x.shape[1], 3, pad=1)
    return x + out


def hourglass(x: Variable, expansion: int, max_features: int, blocks: int, training: bool) -> Variable:
    """Encoder-decoder whose decoder concatenates the encoder's output of each of ``blocks`` levels.

    Level i has min(max_features, expansion * 2^(i+1)) channels. x [N,C,H,W], H and W divisible by 2^blocks ->
    [N,expansion + C,H,W] (FOMM's Hourglass.out_filters).
    """
    levels = [x]
    for i in range(blocks):
        with nn.parameter_scope(f"down_{i}"):
            levels.append(down_block(levels[-1], min(max_features, expansion * 2 ** (i + 1)), training))
    out = levels.pop()
    for i in range(blocks):
        with nn.parameter_scope(f"up_{i}"):
            out = up_block(out, min(max_features, expansion * 2 ** (blocks - 1 - i)), training)
        out = F.concatenate(out, levels.pop(), axis=1)
    return out
