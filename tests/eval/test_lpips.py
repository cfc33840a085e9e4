"""LPIPS against its reference implementation, VGG16 against numpy, and files that are no LPIPS weights."""

from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from reference.angle_bins import lpips as slow_lpips
from reference.layers import conv2d, max_pool, relu
from tiny import vgg_arrays
from tolerance import order_of_sums

from eval.lpips import Lpips, load_lpips
from mrfomm import bundled
from mrfomm.errors import UserError
from mrfomm.media.images import read_image

GOLDEN = Path(__file__).parent.parent / "golden" / "lpips"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def alexnet():
    return load_lpips(bundled.LPIPS_ALEXNET)


def slow_vgg16(image, arrays):
    """relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of an image uint8 [H,W,3], each [C,h,w]."""
    x = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    layers = []
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        x = x if stage == 1 else max_pool(x, 2, 2)
        for i in range(1, count + 1):
            name = f"conv{stage}_{i}"
            x = relu(conv2d(x, np.float64(arrays[f"{name}/W"]), np.float64(arrays[f"{name}/b"]), pad=1))
        layers.append(x[0])
    return layers


def images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_the_published_example(alexnet):
    reference, *others = (read_image(GOLDEN / f"ex_{name}.png")[None] for name in ("ref", "p0", "p1"))
    distances = [float(alexnet(reference, other)[0]) for other in others]
    print("example:", distances)
    assert [round(distance, 3) for distance in distances] == [0.722, 0.138]


@pytest.mark.parametrize("size", ["64x64", "128x96", "256x256", "71x133"])
def test_golden_values(alexnet, size):
    with np.load(GOLDEN / "golden.npz") as golden:
        actual, expected = alexnet(golden[f"x_{size}"], golden[f"y_{size}"]), golden[f"lpips_{size}"]
    print(size, np.abs(actual - expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_vgg16_against_numpy():
    arrays = vgg_arrays()
    metric = Lpips(arrays)
    assert metric.backbone.name == "VGG16"
    x, y = images(2, 16, 35), images(2, 16, 35, seed=1)
    slow = [[slow_vgg16(image, arrays) for image in batch] for batch in (x, y)]
    for layer, one in enumerate(metric.features(x)):
        np.testing.assert_allclose(one, np.stack([image[layer] for image in slow[0]]), rtol=1e-4, atol=1e-5)
        assert one.std() > 0.01
    heads = [arrays[f"head{i}/w"] for i in range(1, 6)]
    np.testing.assert_allclose(metric(x, y), [slow_lpips(a, b, heads) for a, b in zip(*slow)], rtol=1e-5)


def test_a_file_of_vgg16_weights_is_recognised(tmp_path):
    np.savez(tmp_path / "vgg.npz", **vgg_arrays())
    x, y = images(1, 20, 20), images(1, 20, 20, seed=1)
    ours, wanted = load_lpips(tmp_path / "vgg.npz")(x, y), Lpips(vgg_arrays())(x, y)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=order_of_sums())


def test_batches_and_changing_sizes_change_nothing(alexnet):
    x, y = images(5, 40, 33), images(5, 40, 33, seed=1)
    whole = alexnet(x, y)
    alexnet(images(1, 50, 50), images(1, 50, 50))
    parts = np.concatenate([alexnet(x[i : i + 2], y[i : i + 2]) for i in range(0, 5, 2)])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=order_of_sums())


def test_a_metric(alexnet):
    x, y = images(2, 33, 40), images(2, 33, 40, seed=1)
    np.testing.assert_allclose(alexnet(x, x), 0, atol=order_of_sums())
    np.testing.assert_allclose(alexnet(x, y), alexnet(y, x), rtol=0, atol=order_of_sums())
    assert (alexnet(x, y) > 0.01).all()


def test_features_are_copies(alexnet):
    """What one call returned must survive the next: features of both sides are compared afterwards."""
    first = alexnet.features(images(1, 31, 31))
    kept = [layer.copy() for layer in first]
    alexnet.features(images(1, 31, 31, seed=1))
    for layer, copy in zip(first, kept):
        np.testing.assert_array_equal(layer, copy)


def test_weights_stay_out_of_the_global_parameters(alexnet):
    nn.clear_parameters()
    alexnet.features(images(1, 31, 31))
    assert not nn.get_parameters(grad_only=False)


def test_small_images_are_refused(alexnet):
    with pytest.raises(UserError, match="40x30 pixels: LPIPS with AlexNet needs 31"):
        alexnet.features(images(1, 30, 40))


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        without(vgg_arrays(), "head3/w"),
        without(vgg_arrays(), "conv5_3/b"),
        {**vgg_arrays(), "conv1/W": np.ones(1)},
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(UserError, match=r"some\.npz: not the arrays of LPIPS"):
        load_lpips(tmp_path / "some.npz")


def test_damaged_files_are_named(tmp_path):
    whole = Path(bundled.LPIPS_ALEXNET).read_bytes()
    contents = {"empty": b"", "text": b"no weights", "half": whole[: len(whole) // 2], "flipped": flip(whole)}
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.npz"):
            load_lpips(path)
    with pytest.raises(UserError, match=r"none\.npz"):
        load_lpips(tmp_path / "none.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(UserError, match=r"array\.npy"):
        load_lpips(tmp_path / "array.npy")


def flip(content):
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    return bytes(damaged)
