"""PyTorch's layers as numpy functions of float64 arrays [N,C,H,W]."""

import numpy as np

EPS = 1e-5  # of batch and instance normalisation


def conv2d(x, weight, bias=None, pad=0, stride=1):
    """Cross-correlation: x [N,C,H,W], weight [O,C,kh,kw], bias [O] -> [N,O,H',W']."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    kernel_height, kernel_width = weight.shape[2:]
    height = (x.shape[2] - kernel_height) // stride + 1
    width = (x.shape[3] - kernel_width) // stride + 1
    y = np.zeros((x.shape[0], weight.shape[0], height, width))
    for i in range(kernel_height):
        for j in range(kernel_width):
            shifted = x[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            y += np.tensordot(weight[:, :, i, j], shifted, (1, 1)).swapaxes(0, 1)
    return y if bias is None else y + bias[None, :, None, None]


def normalise(x, mean, var, beta, gamma):
    return gamma * (x - mean) / np.sqrt(var + EPS) + beta


def batch_norm_train(x, beta, gamma):
    return normalise(x, x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True), beta, gamma)


def updated_statistics(x, mean, var):
    """PyTorch's running statistics after one batch with momentum 0.1; the variance is the unbiased one."""
    batch_mean = x.mean((0, 2, 3), keepdims=True)
    batch_var = x.var((0, 2, 3), keepdims=True, ddof=1)
    return 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var


def instance_norm(x, beta, gamma):
    return normalise(x, x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True), beta, gamma)


def spectral_norm(weight, u, eps=1e-12):
    """torch.nn.utils.spectral_norm: one power iteration from u [O] -> (weight / sigma, the next u)."""
    matrix = weight.reshape(len(weight), -1)
    v = matrix.T @ u
    v /= max(np.linalg.norm(v), eps)
    u = matrix @ v
    u /= max(np.linalg.norm(u), eps)
    return weight / (u @ matrix @ v), u


def relu(x):
    return np.maximum(x, 0)


def leaky_relu(x, slope):
    return np.where(x > 0, x, slope * x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def avg_pool2(x):
    """Non-overlapping 2x2 means; an odd last row or column is dropped."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    corners = [x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return sum(corners) / 4


def max_pool(x, kernel, stride):
    """Maxima of windows that lie wholly inside."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    return windows[:, :, ::stride, ::stride].max((4, 5))


def upsample_nearest2(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def resize_bilinear(x, height, width):
    """F.interpolate(mode="bilinear", align_corners=False): half-pixel centres, edges clamped."""

    def along(axis, size):
        length = x.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(position).astype(int)
        return low, np.minimum(low + 1, length - 1), position - low

    top, bottom, fy = along(2, height)
    left, right, fx = along(3, width)
    fy, fx = fy[:, None], fx[None, :]

    def pick(rows, columns):
        return x[:, :, rows][..., columns]

    upper = (1 - fx) * pick(top, left) + fx * pick(top, right)
    lower = (1 - fx) * pick(bottom, left) + fx * pick(bottom, right)
    return (1 - fy) * upper + fy * lower


def grid_sample(x, grid, padding="zeros"):
    """F.grid_sample(mode="bilinear", align_corners=True): x [N,C,H,W], grid [N,h,w,2] in (x, y) -> [N,C,h,w].

    ``padding`` is "zeros" or "reflection" (mirrored about the centres of the border pixels).
    """
    height, width = x.shape[2:]
    column = (grid[..., 0] + 1) / 2 * (width - 1)
    row = (grid[..., 1] + 1) / 2 * (height - 1)
    if padding == "reflection":
        column, row = reflect(column, width - 1), reflect(row, height - 1)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    batch = np.arange(len(x))[:, None, None]
    y = 0
    for i, row_share in ((top, top + 1 - row), (top + 1, row - top)):
        for j, column_share in ((left, left + 1 - column), (left + 1, column - left)):
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            pixels = x[batch, :, np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]  # [N,h,w,C]
            y = y + pixels * (inside * row_share * column_share)[..., None]
    return y.transpose(0, 3, 1, 2)


def reflect(position, last):
    """Fold a coordinate into [0, last]."""
    position = np.abs(position) % (2 * last)
    return np.minimum(position, 2 * last - position)
