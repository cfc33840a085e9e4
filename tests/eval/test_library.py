"""eval as a library: what a plain import brings, and scores of arrays and folders without a command."""

import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval import bins, reconstruction
from eval.labels import pattern_folders, read_patterns
from eval.lpips import load_lpips
from mrfomm import bundled

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "dlib", "mediapipe", "face_alignment", "matplotlib", "onnxruntime", "jinja2", "nnabla"}
MOST_OF_OURS = 30


def test_importing_the_measures_brings_little():
    code = "import sys, eval.bins, eval.reconstruction; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    modules = found.stdout.split()
    assert not HEAVY & set(modules)
    ours = [name for name in modules if name.split(".")[0] in ("mrfomm", "eval")]
    assert len(ours) < MOST_OF_OURS, ours
    assert not [name for name in ours if "commands" in name or "networks" in name]


@pytest.fixture(scope="module")
def lpips():
    return load_lpips(bundled.LPIPS_ALEXNET)


def test_bins_of_arrays(lpips):
    angles, true, generated = np.array([0.0, 5.0]), tiny.frames(2), tiny.frames(2, seed=1)
    truth, same, other = (bins.Images(angles, images.__getitem__) for images in (true, true, generated))
    first, second = bins.score(lpips, bins.Axis(2, 60), truth, [same, other])
    assert first.mean == 0
    assert second.mean == pytest.approx(lpips(true, generated).mean(), rel=1e-5)


def test_bins_of_folders(lpips, tmp_path):
    for seed, name in enumerate(("a", "b")):
        write_frames(tmp_path / "data" / name / "yaw", tiny.frames(2, seed=seed))
        (tmp_path / "data" / name / "yaw.csv").write_text("frame,yaw,pitch,roll\n0,0,0,0\n1,5,0,0\n")
        write_frames(tmp_path / "mine" / ("b" if name == "a" else "a") / name / "yaw", tiny.frames(2, seed=seed))
    patterns = read_patterns(pattern_folders(tmp_path / "data"))
    pairs = bins.score_folders(lpips, bins.Axis(2, 60), patterns, {"mine": tmp_path / "mine"})
    assert [pair[:4] for pair in pairs] == [("mine", "a", "b", "yaw"), ("mine", "b", "a", "yaw")]
    expected = lpips(tiny.frames(2), tiny.frames(2, seed=1)).mean()
    assert [pair.score.mean for pair in pairs] == pytest.approx([expected] * 2, rel=1e-5)


def test_reconstruction_of_arrays(lpips):
    truth = tiny.frames(2)
    measures = reconstruction.Measures(lpips, {"centre": lambda image: image[16, :4, :2].astype(float)})
    rows = reconstruction.score(measures, truth, truth + np.uint8(4))
    assert [row["l1"] for row in rows] == pytest.approx([4 / 255] * 2)
    assert [row["akd_centre"] for row in rows] == [4 * 256 / 32] * 2
    assert list(rows[0]) == ["l1", "psnr", "ssim", "lpips", "gradient", "akd_centre", "akd_euclidean_centre"]


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i}.png", image)
