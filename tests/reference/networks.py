"""FOMM's networks, assembled from ``layers``. Widths come from the weights, so that only the wiring is stated here.

Every network takes a :class:`Parameters`, whose names are those of mrfomm's checkpoints.
"""

import numpy as np

from .geometry import coordinate_grid, downsample, gaussian_heatmaps, sparse_motions
from .layers import (
    avg_pool2,
    batch_norm_train,
    conv2d,
    grid_sample,
    instance_norm,
    leaky_relu,
    max_pool,
    normalise,
    relu,
    resize_bilinear,
    sigmoid,
    softmax,
    spectral_norm,
    updated_statistics,
    upsample_nearest2,
)

VGG19_WIDTHS = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512,))  # up to relu5_1
ALEXNET_LAYERS = (
    (64, 11, 2, 4),
    (192, 5, 2, 1),
    (384, 3, 1, 1),
    (256, 3, 1, 1),
    (256, 3, 1, 1),
)  # +kernel, pad, stride


class Parameters:
    """Arrays by name, seen from a scope; what a training step changes is noted in ``updated``.

    Args:
        arrays: name -> float64 array.
        training: batch norm uses and updates the batch's statistics; spectral norm keeps its iterated vector.
    """

    def __init__(self, arrays, training=False, prefix="", updated=None):
        self.arrays = arrays
        self.training = training
        self.prefix = prefix
        self.updated = {} if updated is None else updated

    def __getitem__(self, name):
        return self.arrays[self.prefix + name]

    def __contains__(self, name):
        return self.prefix + name in self.arrays

    def scope(self, name):
        return Parameters(self.arrays, self.training, f"{self.prefix}{name}/", self.updated)

    def scopes(self, stem):
        """The scopes stem_0, stem_1, ... that exist."""
        names = {name[len(self.prefix) :].split("/")[0] for name in self.arrays if name.startswith(self.prefix)}
        count = sum(name.startswith(f"{stem}_") for name in names)
        return [self.scope(f"{stem}_{i}") for i in range(count)]

    def update(self, name, value):
        if self.training:
            self.updated[self.prefix + name] = value


def conv(x, p, pad=0):
    return conv2d(x, p["conv/W"], p["conv/b"], pad)


def batch_norm(x, p):
    mean, var, beta, gamma = (p[f"bn/{name}"] for name in ("mean", "var", "beta", "gamma"))
    if not p.training:
        return normalise(x, mean, var, beta, gamma)
    for name, value in zip(("mean", "var"), updated_statistics(x, mean, var)):
        p.update(f"bn/{name}", value)
    return batch_norm_train(x, beta, gamma)


def same_block(x, p):
    return relu(batch_norm(conv(x, p, pad=p["conv/W"].shape[-1] // 2), p))


def down_block(x, p):
    return avg_pool2(same_block(x, p))


def up_block(x, p):
    return same_block(upsample_nearest2(x), p)


def residual_block(x, p):
    y = conv(relu(batch_norm(x, p.scope("first"))), p.scope("first"), pad=1)
    y = conv(relu(batch_norm(y, p.scope("second"))), p.scope("second"), pad=1)
    return x + y


def hourglass(x, p):
    levels = [x]
    for scope in p.scopes("down"):
        levels.append(down_block(levels[-1], scope))
    y = levels.pop()
    for scope in p.scopes("up"):
        y = np.concatenate([up_block(y, scope), levels.pop()], 1)
    return y


def soft_argmax(logits, local, temperature):
    """gaussian2kp and the jacobians: logits [N,n,h,w], local [N,4n,h,w] -> (value [N,n,2], jacobian [N,n,2,2])."""
    batch, count, height, width = logits.shape
    heatmap = softmax(logits.reshape(batch, count, -1) / temperature, -1).reshape(logits.shape)
    value = np.einsum("nkhw,hwc->nkc", heatmap, coordinate_grid(height, width))
    local = local.reshape(batch, count, 4, height, width)
    return value, np.einsum("nkhw,nkjhw->nkj", heatmap, local).reshape(batch, count, 2, 2)


def detect_keypoints(image, p, scale, temperature):
    """KPDetector: image [N,3,H,W] -> (value, jacobian)."""
    p = p.scope("keypoints")
    feature = hourglass(downsample(image, scale), p.scope("hourglass"))
    return soft_argmax(conv(feature, p.scope("heatmap")), conv(feature, p.scope("jacobian")), temperature)


def estimate_motion(image, reference, driving, p, variance):
    """DenseMotionNetwork: image [N,3,h,w] -> (deformation [N,h,w,2], occlusion [N,1,h,w], mask [N,n+1,h,w])."""
    p = p.scope("motion")
    height, width = image.shape[2:]
    heatmaps = gaussian_heatmaps(driving[0], height, width, variance)
    heatmaps = heatmaps - gaussian_heatmaps(reference[0], height, width, variance)
    motions = sparse_motions(reference, driving, height, width)
    inputs = []
    for m in range(motions.shape[1]):
        heatmap = np.zeros_like(heatmaps[:, :1]) if m == 0 else heatmaps[:, m - 1 : m]
        inputs += [heatmap, grid_sample(image, motions[:, m])]
    feature = hourglass(np.concatenate(inputs, 1), p.scope("hourglass"))
    mask = softmax(conv(feature, p.scope("mask"), pad=3), 1)
    deformation = (motions * mask[..., None]).sum(1)
    return deformation, sigmoid(conv(feature, p.scope("occlusion"), pad=3)), mask


def encode(image, p):
    """The first part of OcclusionAwareGenerator."""
    p = p.scope("generator")
    y = same_block(image, p.scope("first"))
    for scope in p.scopes("down"):
        y = down_block(y, scope)
    return y


def warp_features(features, deformation, occlusion):
    """OcclusionAwareGenerator.deform_input and the product with the occlusion map -> (warped, occlusion)."""
    height, width = features.shape[2:]
    grid = resize_bilinear(deformation.transpose(0, 3, 1, 2), height, width).transpose(0, 2, 3, 1)
    occlusion = resize_bilinear(occlusion, height, width)
    return grid_sample(features, grid) * occlusion, occlusion


def warp_picture(picture, deformation, occlusion):
    """A picture and its occlusion map in the driving pose; the deformation is sampled corner to corner."""
    height, width = picture.shape[2:]
    grid = resize_aligned(deformation.transpose(0, 3, 1, 2), height, width).transpose(0, 2, 3, 1)
    return np.concatenate([grid_sample(picture, grid), resize_bilinear(occlusion, height, width)], 1)


def resize_aligned(x, height, width):
    """Bilinear resizing with the corners' centres on each other's (align_corners=True)."""
    grid = np.broadcast_to(coordinate_grid(height, width), (len(x), height, width, 2))
    return grid_sample(x, grid)


def decode(features, p, copies=None):
    """The rest of OcclusionAwareGenerator, and the mixture with K warped pictures [B,K,5,H,W] if there are any."""
    p = p.scope("generator")
    for scope in p.scopes("res"):
        features = residual_block(features, scope)
    for scope in p.scopes("up"):
        features = up_block(features, scope)
    painted = sigmoid(conv(features, p.scope("final"), pad=3))
    return painted if copies is None else mixture(painted, features, copies, p.scope("copy"))


def mixture(painted, features, copies, p):
    """Each picture by its mask times exp(score), and the painted one by 1, over their sum."""
    count = copies.shape[1]
    seen = copies[:, :, :4].copy()
    seen[:, :, :3] -= painted[:, None]
    hidden = [conv(seen[:, k], p.scope("copies"), 1) + conv(features, p.scope("features"), 1) for k in range(count)]
    hidden = relu(batch_norm(np.concatenate(hidden), p))  # the K after each other, as the order is of no effect
    weights = [copies[:, k, 4:] * np.exp(score) for k, score in enumerate(np.split(conv(hidden, p, 1), count))]
    total = painted + sum(weight * copies[:, k, :3] for k, weight in enumerate(weights))
    return total / (1 + sum(weights))


def fuse(warped, occlusion, mode, p):
    """The fusion unit (paper, section 3): warped [B,K,C,h,w] -> (feature [B,C,h,w], mask [B,K,1 or C,h,w])."""
    batch, count = warped.shape[:2]
    if mode == "mean":
        mask = np.full(occlusion.shape, 1 / count)
    elif mode == "occlusion":
        mask = occlusion / occlusion.sum(1, keepdims=True)
    else:
        p = p.scope("fusion")
        pad = p["conv/W"].shape[-1] // 2
        mask = softmax(np.stack([conv(warped[:, k], p, pad) for k in range(count)], 1), 1)
    return (mask * warped).sum(1), mask


def discriminate(image, p, points=None, variance=0.01):
    """Discriminator: image [N,3,H,W] -> (features of each block, score)."""
    p = p.scope("discriminator")
    if points is not None:
        image = np.concatenate([image, gaussian_heatmaps(points, *image.shape[2:], variance)], 1)
    features = []
    blocks = p.scopes("down")
    for i, scope in enumerate(blocks):
        x = features[-1] if features else image
        x = conv2d(x, spectral_weight(scope), scope["conv/b"])
        if i > 0:
            x = instance_norm(x, scope["in/beta"], scope["in/gamma"])
        x = leaky_relu(x, 0.2)
        features.append(avg_pool2(x) if i < len(blocks) - 1 else x)
    final = p.scope("final")
    return features, conv2d(features[-1], spectral_weight(final), final["conv/b"])


def spectral_weight(p):
    if "conv/u" not in p:
        return p["conv/W"]
    weight, u = spectral_norm(p["conv/W"], p["conv/u"])
    p.update("conv/u", u)
    return weight


def imagenet_normalise(image):
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    return (image - mean) / std


def vgg19_shapes():
    """Parameter name -> shape of torchvision's VGG19 up to relu5_1."""
    shapes, into = {}, 3
    for stage, widths in enumerate(VGG19_WIDTHS, 1):
        for i, width in enumerate(widths, 1):
            shapes[f"vgg19/conv{stage}_{i}/W"] = (width, into, 3, 3)
            shapes[f"vgg19/conv{stage}_{i}/b"] = (width,)
            into = width
    return shapes


def vgg19_features(x, p):
    """relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of torchvision's VGG19."""
    p = p.scope("vgg19")
    features = []
    for stage, widths in enumerate(VGG19_WIDTHS, 1):
        if stage > 1:
            x = max_pool(x, 2, 2)
        for i in range(1, len(widths) + 1):
            x = relu(conv2d(x, p[f"conv{stage}_{i}/W"], p[f"conv{stage}_{i}/b"], pad=1))
            if i == 1:
                features.append(x)
    return features


def alexnet_shapes():
    """Parameter name -> shape of torchvision's AlexNet without its classifier."""
    shapes, into = {}, 3
    for i, (width, kernel, _, _) in enumerate(ALEXNET_LAYERS, 1):
        shapes[f"conv{i}/W"] = (width, into, kernel, kernel)
        shapes[f"conv{i}/b"] = (width,)
        into = width
    return shapes


def alexnet_features(x, p):
    """The five ReLU outputs of torchvision's AlexNet."""
    features = []
    for i, (_, _, pad, stride) in enumerate(ALEXNET_LAYERS, 1):
        x = relu(conv2d(x, p[f"conv{i}/W"], p[f"conv{i}/b"], pad, stride))
        features.append(x)
        if i <= 2:
            x = max_pool(x, 3, 2)
    return features


def draw_frozen_weights(shapes, seed=0):
    """Random float32 weights by name, He-initialised so that activations keep their size through many layers."""
    rng = np.random.default_rng(seed)
    deviation = {name: (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1 for name, shape in shapes.items()}
    return {n: np.float32(deviation[n]) * rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
