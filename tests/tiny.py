"""A model small enough for a test to run end to end in about a second, and data for it."""

import imageio.v2 as imageio
import numpy as np

from mrfomm.config import config_from_dict
from mrfomm.model import create_parameters
from mrfomm.model.checkpoint import ParameterTree, save_checkpoint
from mrfomm.networks.perceptual import VGG16_COUNTS
from mrfomm.runtime.context import seed_initialisers

VALUES = {
    "model": {
        "image_size": 32,
        "num_keypoints": 3,
        "keypoints": {"expansion": 4, "max_features": 8, "blocks": 2, "scale": 0.5},
        "motion": {"expansion": 4, "max_features": 8, "blocks": 2, "scale": 0.5},
        "generator": {"expansion": 4, "max_features": 8, "down_blocks": 1, "bottleneck_blocks": 1},
        "discriminator": {"expansion": 4, "max_features": 8, "blocks": 2, "spectral_norm": True},
    },
    "data": {"num_references": 2, "num_repeats": 8, "workers": 0},
    "loss": {"perceptual_network": "none", "pixel": 10.0, "scales": [1, 0.5]},
    "train": {"batch_size": 2, "epochs": 2, "milestones": [1], "log_every": 1, "keep_checkpoints": 2},
}


def merged(values, changes):
    """``values`` with nested ``changes``."""
    result = dict(values)
    for key, value in changes.items():
        result[key] = merged(values.get(key, {}), value) if isinstance(value, dict) else value
    return result


def config(**changes):
    """The tiny Config with changes by section."""
    return config_from_dict(merged(VALUES, changes), "tiny")


def random_tree(model, seed=0, scale=0.3):
    """A ParameterTree for a ModelConfig with every parameter random, so that no part of the model is neutral."""
    seed_initialisers(seed)
    tree = ParameterTree()
    with tree.scope():
        create_parameters(model)
    rng = np.random.default_rng(seed)
    for name, variable in tree.all().items():
        noise = rng.normal(0, scale, variable.shape)
        value = np.abs(variable.d + noise) + 0.5 if name.endswith("/var") else variable.d + noise
        variable.d = value.astype(np.float32)
    return tree


def checkpoint(folder, **changes):
    """A checkpoint folder of the tiny model with random weights."""
    whole = config(**changes)
    save_checkpoint(folder, whole, random_tree(whole.model).all())
    return folder


def frames(count, size=32, seed=0):
    """uint8 [count,size,size,3]: a bright blob that moves over a smooth background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    background = 60 + 60 * np.stack([x, y, 1 - x], -1) + rng.normal(0, 2, (size, size, 3))
    images = []
    for i in range(count):
        cx, cy = 0.5 + 0.25 * np.cos(i / 3 + seed), 0.5 + 0.25 * np.sin(i / 4 + seed)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.02)[..., None]
        images.append(background * (1 - blob) + np.array([230, 180, 150]) * blob)
    return np.clip(images, 0, 255).astype(np.uint8)


def clip(path, seed=0, length=6):
    """Write a clip in FOMM's format: frames side by side in a png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.concatenate(list(frames(length, seed=seed)), axis=1))


def data(folder):
    """Two clips to train on and one held out, in a folder; returns it."""
    for seed, name in enumerate(("train/a#0", "train/b#0", "test/c#0")):
        clip(folder / f"{name}.png", seed)
    return folder


def vgg_arrays(seed=0, width=2):
    """Random LPIPS weights with VGG16's wiring and few channels."""
    rng = np.random.default_rng(seed)
    arrays, into = {}, 3
    for stage, count in enumerate(VGG16_COUNTS, 1):
        out = width + stage
        for i in range(1, count + 1):
            arrays[f"conv{stage}_{i}/W"] = np.float32(rng.normal(0, (2 / (9 * into)) ** 0.5, (out, into, 3, 3)))
            arrays[f"conv{stage}_{i}/b"] = np.float32(rng.normal(0, 0.1, out))
            into = out
        arrays[f"head{stage}/w"] = np.float32(rng.random(out))
    return arrays
