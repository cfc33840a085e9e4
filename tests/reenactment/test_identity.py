"""References of two people: the line by embeddings that are given, and dlib's on rendered heads."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from mrfomm import bundled
from mrfomm.commands import animate
from mrfomm.media.images import read_image
from mrfomm.media.reading import open_frames
from mrfomm.reenactment import identity, reenactor
from mrfomm.reenactment.identity import two_people
from mrfomm.reenactment.references import FromClip

ROOT = Path(__file__).parent.parent.parent
HAS_DLIB = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))
needs_dlib = pytest.mark.skipif(not HAS_DLIB, reason="pip install -e .[dlib]")


def grey(value, height=40, width=40):
    return np.full((height, width, 3), value, np.uint8)


def as_hundredths(image):
    """A back end: grey v is v/100 on one axis; black has no face."""
    return np.eye(128)[0] * image[0, 0, 0] / 100 if image.any() else None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([100, 100, 100], None),
        ([10, 40, 70], None),  # 0.6 apart at most: the threshold itself is one person's
        ([10, 40, 71], "references 1 and 3 (a, c) seem to show different people: their faces are 0.61 apart by dlib"),
        ([10, 200, 90], "references 1 and 2 (a, b) seem to show different people: their faces are 1.90 apart by dlib"),
        ([0, 250, 0], None),
        ([0, 10, 110], "references 2 and 3 (b, c) seem to show different people: their faces are 1.00 apart by dlib"),
        ([0, 0, 0], None),
        ([100], None),
    ],
)
def test_the_two_farthest_faces_are_named(values, said):
    line = two_people("abc", [grey(value) for value in values], as_hundredths)
    assert line is None if said is None else line.startswith(said)


def test_the_central_square_is_looked_at_and_large_ones_shrunk():
    shapes = []
    two_people("ab", [grey(9, 300, 900), grey(9, 64, 80)], lambda image: shapes.append(image.shape))
    assert shapes == [(256, 256, 3), (64, 64, 3)]


@pytest.fixture
def files(tmp_path):
    tiny.checkpoint(tmp_path / "weights")
    (tmp_path / "driving").mkdir()
    for number, value in enumerate((10, 20, 250)):
        imageio.imwrite(tmp_path / f"r{number}.png", grey(value))
        imageio.imwrite(tmp_path / "driving" / f"{number}.png", tiny.frames(3)[number])
    return tmp_path


@pytest.fixture(autouse=True)
def _not_loaded_yet():
    identity.installed.cache_clear()
    yield
    identity.installed.cache_clear()


def make(files, names, tell=None):
    references = [files / name for name in names]
    return reenactor.Reenactor(files / "weights", references, backend="nnabla", tell=tell)


def test_a_reenactor_tells_and_animate_warns(files, monkeypatch, capsys):
    monkeypatch.setattr(reenactor, "installed", lambda: as_hundredths)
    pictures = [str(files / f"r{number}.png") for number in range(3)]
    told = []
    make(files, pictures, told.append)
    (line,) = told
    assert line.startswith(f"references 1 and 3 ({pictures[0]}, {pictures[2]}) seem to show different people")
    make(files, pictures[:2], told.append)
    assert told == [line]
    arguments = ["--weights", files / "weights", "--driving", files / "driving", "-o", files / "out"]
    assert animate.main([*map(str, arguments), "--backend", "nnabla", "--refs", *pictures]) == 0
    assert line in capsys.readouterr().err.splitlines()
    assert len(list((files / "out").glob("*.png"))) == 3


def test_dlib_is_left_alone_where_it_has_nothing_to_say(files, monkeypatch):
    monkeypatch.setattr(reenactor, "installed", lambda: pytest.fail("loads dlib"))
    make(files, ["r0.png", "r2.png"])  # nobody listens
    make(files, ["r0.png"], print)
    make(files, bundled.SAMPLE_REFERENCES, print)
    clip = FromClip(files / "driving", 2)
    reenactor.Reenactor(files / "weights", clip, backend="nnabla", tell=print)


def test_without_dlib_nothing_is_said(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)  # makes its import fail
    assert identity.installed() is None
    told = []
    make(files, ["r0.png", "r2.png"], told.append)
    assert told == []


@needs_dlib
def test_damaged_models_of_dlib_say_nothing(tmp_path, monkeypatch):
    (tmp_path / "model.dat").write_bytes(b"no model")
    monkeypatch.setattr(identity, "_model_file", lambda name: str(tmp_path / "model.dat"))
    assert identity.installed() is None


@needs_dlib
def test_rendered_heads():
    """The bundled references are one person. Frames of two people, 64 pixels large, are 0.90 apart."""
    describe = identity.installed()
    assert identity.installed() is describe  # loaded once
    pictures = [read_image(path) for path in bundled.SAMPLE_REFERENCES]
    assert two_people("abc", pictures, describe) is None
    clips = ("test/test00003#0.mp4", 48), ("train/train00003#1.mp4", 0)
    two = [list(open_frames(bundled.SAMPLE_DATA / clip))[number] for clip, number in clips]
    assert two_people("ab", two, describe).startswith("references 1 and 2 (a, b) seem to show different people")
    assert two_people("abc", [two[0], np.zeros_like(two[0]), two[0]], describe) is None


def test_importing_loads_no_dlib():
    code = "import mrfomm.reenactment.identity, mrfomm.commands.animate, sys; sys.exit('dlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
