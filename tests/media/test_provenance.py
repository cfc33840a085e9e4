"""Where a result comes from: written into every kind of output, read back, true to the files."""

import hashlib
import json
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import tiny
from PIL import Image

from mrfomm import __version__
from mrfomm.commands import animate
from mrfomm.errors import UserError
from mrfomm.media import provenance
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.model import load_model, model_digest

OUTPUTS = ("a.mp4", "a.mov", "a.mkv", "a.avi", "a.gif", "frames")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights, references a.png and b.png, and a driving clip with sound."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    for name, image in zip("ab", tiny.frames(2)):
        Image.fromarray(image).save(folder / f"{name}.png")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=s=32x32:r=5"]
    command += ["-f", "lavfi", "-i", "sine", "-metadata", "comment=of the camera", "-t", "1"]
    subprocess.run([*command, str(folder / "driving.mp4")], check=True)
    return folder


def run(files, output, *options):
    refs = [str(files / name) for name in ("a.png", "b.png")]
    command = ["--refs", *refs, "--driving", str(files / "driving.mp4"), "--weights", str(files / "weights")]
    animate.main([*command, "--context", "cpu", "--output", str(output), *options])


def describe(files, driving="driving.mp4"):
    return provenance.describe([files / "a.png", files / "b.png"], files / driving, "of the weights")


def write(path, files, comment):
    with open_sink(path, 5, audio_from=files / "driving.mp4", comment=comment) as sink:
        for image in tiny.frames(4):
            sink.write(image)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_result_names_its_sources(files, tmp_path):
    run(files, tmp_path / "a.mp4", "--masks", str(tmp_path / "masks"))
    expected = {
        "synthetic": True,
        "digital_source_type": provenance.SOURCE_TYPE,
        "tool": "mrfomm",
        "version": __version__,
        "references": [sha256(files / "a.png"), sha256(files / "b.png")],
        "driving": sha256(files / "driving.mp4"),
        "weights": model_digest(load_model(files / "weights")),
    }
    assert provenance.read(tmp_path / "a.mp4") == expected
    masks = sorted((tmp_path / "masks").iterdir())
    assert [provenance.read(path) for path in masks] == 5 * [expected]


def test_it_can_be_left_out(files, tmp_path):
    run(files, tmp_path / "a.mp4", "--no-provenance")
    with pytest.raises(UserError, match="a.mp4: says nothing"):
        provenance.read(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_kind_of_output_keeps_it_and_its_pixels(files, tmp_path, name):
    (tmp_path / "plain").mkdir()
    marked = write(tmp_path / name, files, describe(files))
    plain = write(tmp_path / "plain" / name, files, None)
    assert provenance.read(marked) == json.loads(describe(files))
    with pytest.raises(UserError, match="says nothing"):
        provenance.read(plain)
    pairs = list(zip(open_frames(marked), open_frames(plain)))
    assert len(pairs) == 4
    assert all(np.array_equal(*pair) for pair in pairs)


def test_another_container_keeps_it(files, tmp_path):
    source = write(tmp_path / "a.mp4", files, describe(files))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(source), str(tmp_path / "b.webm")]
    subprocess.run(command, check=True)
    assert provenance.read(tmp_path / "b.webm") == json.loads(describe(files))


def test_a_driving_folder_is_hashed_as_sha256sum_does(files):
    folder = files / "folder"
    folder.mkdir()
    for number, image in enumerate(tiny.frames(3)):
        Image.fromarray(image).save(folder / f"{number}.png")
    printed = subprocess.run("sha256sum *.png", shell=True, cwd=folder, check=True, capture_output=True).stdout
    assert json.loads(describe(files, "folder"))["driving"] == hashlib.sha256(printed).hexdigest()


def test_command_prints_it(files, tmp_path, capsys):
    write(tmp_path / "a.gif", files, describe(files))
    assert provenance.main([str(tmp_path / "a.gif")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(describe(files))


def test_other_files(files, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for path, message in (
        (files / "driving.mp4", "says nothing"),
        (files / "a.png", "says nothing"),
        (tmp_path / "text.mp4", "text.mp4: not a readable video"),
        (tmp_path / "none.png", "none.png: no such file"),
        (tmp_path, "no image"),
    ):
        with pytest.raises(UserError, match=message):
            provenance.read(path)
