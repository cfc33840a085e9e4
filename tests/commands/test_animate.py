"""animate.py: outputs, options, and one clear line for bad input."""

import re
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from mrfomm import bundled
from mrfomm.commands import animate
from mrfomm.errors import UserError
from mrfomm.media import provenance
from mrfomm.media.images import read_image
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.store import sha256_of

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights, references r0.png..., a driving clip and a driving folder."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    for i, image in enumerate(tiny.frames(3)):
        imageio.imwrite(folder / f"r{i}.png", image)
    (folder / "driving").mkdir()
    for i, image in enumerate(tiny.frames(7, seed=3)):
        imageio.imwrite(folder / "driving" / f"{i}.png", image)
    with open_sink(folder / "driving.mp4", 12) as sink:
        for image in tiny.frames(7, seed=3):
            sink.write(image)
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("no video")
    (folder / "text.npz").write_text("no motion")
    (folder / "text.png").write_text("no picture")
    (folder / "half.mp4").write_bytes((folder / "driving.mp4").read_bytes()[:700])
    return folder


def run(files, output, *options, refs=("r0.png", "r1.png", "r2.png"), driving="driving", weights="weights"):
    inputs = ["--refs", *(str(files / name) for name in refs), "--driving", str(files / driving)]
    inputs += ["--weights", str(files / weights), "--context", "cpu"]
    return animate.main([*inputs, "--output", str(output), *options])


def read(folder):
    return np.stack([imageio.imread(path) for path in sorted(folder.glob("*.png"))])


def test_folder_of_frames(files, tmp_path):
    assert run(files, tmp_path / "out") == 0
    assert read(tmp_path / "out").shape == (7, 32, 32, 3)


def test_video_keeps_the_rate(files, tmp_path):
    run(files, tmp_path / "out.mp4", driving="driving.mp4")
    source = open_frames(tmp_path / "out.mp4")
    assert (source.fps, len(list(source))) == (12, 7)


def test_batch_changes_nothing(files, tmp_path):
    run(files, tmp_path / "one")
    run(files, tmp_path / "three", "--batch", "3")
    np.testing.assert_array_equal(read(tmp_path / "one"), read(tmp_path / "three"))


def test_driving_by_the_reference_itself_starts_there(files, tmp_path, capsys):
    """Driven by a clip that contains reference 2, the motion starts where that frame is, from that reference."""
    folder = tmp_path / "clip"
    folder.mkdir()
    images = [*tiny.frames(3, seed=5), imageio.imread(files / "r1.png"), *tiny.frames(2, seed=6)]
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i}.png", image)
    run(files, tmp_path / "out", driving=folder)
    assert "starts at driving frame 3 from reference 2" in capsys.readouterr().err


def test_side_by_side_and_masks(files, tmp_path):
    run(files, tmp_path / "plain")
    run(files, tmp_path / "side", "--side-by-side", "--masks", str(tmp_path / "masks"))
    side = read(tmp_path / "side")
    assert side.shape == (7, 32, 5 * 32, 3)
    np.testing.assert_array_equal(side[0, :, :32], imageio.imread(files / "r0.png"))
    np.testing.assert_array_equal(side[4, :, 96:128], imageio.imread(files / "driving" / "4.png"))
    np.testing.assert_array_equal(side[:, :, 128:], read(tmp_path / "plain"))
    masks = read(tmp_path / "masks")
    assert masks.shape == (7, 3 * 32 + 2 * 2, 5 * 32 + 4 * 2, 3)


def test_first_and_number_and_scale(files, tmp_path):
    run(files, tmp_path / "first", "--start", "first")
    run(files, tmp_path / "zero", "--start", "0")
    np.testing.assert_array_equal(read(tmp_path / "first"), read(tmp_path / "zero"))
    run(files, tmp_path / "scaled", "--start", "0", "--adapt-scale")
    assert (read(tmp_path / "scaled") != read(tmp_path / "zero")).any()


def test_references_of_a_clip(files, tmp_path, capsys):
    """The frames written beside the result give the same result as references; the record names the clip."""
    run(
        files,
        tmp_path / "a",
        "--count",
        "3",
        "--save-refs",
        str(tmp_path / "refs"),
        refs=["driving"],
        driving="driving.mp4",
    )
    told = re.search(r"driving: references are frames (.*?);", capsys.readouterr().err)[1]
    numbers = [int(part.split()[0]) for part in told.split(", ")]
    assert len(set(numbers)) == 3
    images = np.stack([imageio.imread(files / "driving" / f"{number}.png") for number in numbers])
    np.testing.assert_array_equal(read(tmp_path / "refs"), images)
    run(files, tmp_path / "b", refs=sorted((tmp_path / "refs").iterdir()), driving="driving.mp4")
    np.testing.assert_array_equal(read(tmp_path / "a"), read(tmp_path / "b"))
    assert provenance.read(tmp_path / "a")["references"] == [provenance.clip_digest(files / "driving")]


def test_motion_files_drive_as_their_clip_does(files, tmp_path, capsys):
    motion = tmp_path / "m.npz"
    run(files, tmp_path / "clip", "--save-motion", str(motion), driving="driving.mp4")
    run(files, tmp_path / "plain", driving="driving.mp4")
    np.testing.assert_array_equal(read(tmp_path / "clip"), read(tmp_path / "plain"))
    run(files, tmp_path / "again", driving=motion)
    assert np.abs(read(tmp_path / "again").astype(int) - read(tmp_path / "plain")).max() <= 1
    assert "m.npz: a motion file has no sound" in capsys.readouterr().err
    assert provenance.read(tmp_path / "again")["driving"] == sha256_of(motion)
    run(files, tmp_path / "again.mp4", "--no-audio", driving=motion)
    assert (open_frames(tmp_path / "again.mp4").fps, "no sound" in capsys.readouterr().err) == (12, False)


def test_a_wide_clip_is_told_of_in_a_line_of_its_own(files, tmp_path, capsys):
    (tmp_path / "wide").mkdir()
    for i, image in enumerate(tiny.frames(3)):
        imageio.imwrite(tmp_path / "wide" / f"{i}.png", np.pad(image, ((0, 0), (4, 4), (0, 0))))
    run(files, tmp_path / "out", driving=tmp_path / "wide")
    (line,) = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if "middle square" in line]
    assert line.startswith(f"{tmp_path / 'wide'}: 40x32 pixels, of which the middle square is taken; give --crop")


def test_strength_and_size(files, tmp_path):
    run(files, tmp_path / "still", "--strength", "0", "--size", "80")
    still = read(tmp_path / "still")
    assert still.shape == (7, 80, 80, 3)
    assert (still == still[0]).all()
    run(files, tmp_path / "beside", "--side-by-side", "--size", "64")
    assert read(tmp_path / "beside").shape == (7, 64, 320, 3)


def test_the_face_goes_back_into_the_first_picture(files, tmp_path, capsys):
    """Outside the box nothing changes, and the start is at the first picture, whatever is nearer."""
    heads = [read_image(path) for path in bundled.SAMPLE_REFERENCES]
    picture = np.full((301, 380, 3), (40, 90, 160), np.uint8)
    picture[30:286, 60:316] = heads[0]
    imageio.imwrite(tmp_path / "wide.png", picture)
    refs = [tmp_path / "wide.png", *bundled.SAMPLE_REFERENCES[1:]]
    run(files, tmp_path / "a", "--crop", "--paste-back", refs=refs, driving=bundled.SAMPLE_DRIVING)
    size, x, y = map(
        int,
        re.search(
            r"wide.png: cropped to (\d+)x\d+ pixels at \((\d+), (\d+)\)", err := capsys.readouterr().err
        ).groups(),
    )
    assert "from reference 1" in err
    assert "square" not in err
    result = read(tmp_path / "a")
    assert result.shape[1:] == picture.shape
    inside = np.zeros(picture.shape[:2], bool)
    inside[y : y + size, x : x + size] = True
    assert (result[:, ~inside] == picture[~inside]).all()
    assert (result[:, y + size // 2, x + size // 2] != picture[y + size // 2, x + size // 2]).any()


@pytest.mark.parametrize("option", ["--output", "--masks"])
@pytest.mark.parametrize("taken", ["driving", "driving.mp4", "r1.png"])
def test_no_result_takes_the_place_of_what_it_is_made_from(files, tmp_path, taken, option):
    before = sorted(path.name for path in files.rglob("*"))
    driving = taken if taken.startswith("driving") else "driving.mp4"
    place = str(files / "empty" / ".." / taken)
    outputs = [place] if option == "--output" else [str(tmp_path / "out"), "--masks", place]
    with pytest.raises(UserError, match=f"{option} .*: is --(driving|refs) too"):
        run(files, *outputs, driving=driving)
    assert sorted(path.name for path in files.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_masks_do_not_take_the_place_of_the_result(files, tmp_path):
    with pytest.raises(UserError, match="is --output too"):
        run(files, tmp_path / "out", "--masks", str(tmp_path / "more" / ".." / "out"))
    assert list(tmp_path.iterdir()) == []


BAD = [
    (["--count", "8"], {"refs": ["driving"]}, "--count 8: .*driving has 7 frames"),
    (["--count", "0"], {"refs": ["driving"]}, "--count 0"),
    (["--count", "2"], {}, "--count 2: .* one clip"),
    (["--count", "2", "--crop"], {"refs": ["driving"]}, "driving: no face"),
    (["--save-refs", "x"], {}, "--save-refs x: .* give --count"),
    (["--count", "2", "--save-refs", "x.mp4"], {"refs": ["driving"]}, "--save-refs x.mp4: give a folder"),
    ([], {"refs": ["driving.mp4"]}, "driving.mp4: is a clip; give --count"),
    (["--paste-back"], {}, "--paste-back: .* give --crop"),
    (["--paste-back", "--crop", "--size", "64"], {}, "--paste-back: .* leave out --size"),
    (["--size", "8"], {}, "--size 8"),
    (["--strength", "-1"], {}, "--strength -1"),
    (["--strength", "nan"], {}, "--strength nan"),
    (["--motion", "absolute", "--strength", "0.5"], {}, "--strength are for relative motion"),
    (["--save-motion", "m.mp4"], {}, "--save-motion m.mp4: .*npz"),
    ([], {"driving": "none.npz"}, "none.npz: no such file"),
    ([], {"driving": "text.npz"}, "text.npz: damaged or not a motion file"),
    (["--side-by-side"], {"driving": "text.npz"}, "--side-by-side: a motion file"),
    (["--fps", "3"], {"driving": "text.npz"}, "--fps: a motion file"),
    (["--start", "7"], {}, "--start 7: the driving clip has 7 frames"),
    (["--start", "soon"], {}, "--start soon"),
    (["--batch", "0"], {}, "--batch 0"),
    (["--motion", "absolute", "--adapt-scale"], {}, "--adapt-scale"),
    (["--fusion", "element"], {}, "--fusion element"),
    (["--crop"], {}, "face"),
    ([], {"refs": ["none.png"]}, "none.png"),
    ([], {"refs": ["text.png"]}, "text.png"),
    ([], {"refs": ["empty"]}, "empty"),
    ([], {"driving": "none.mp4"}, "none.mp4"),
    ([], {"driving": "text.mp4"}, "text.mp4"),
    ([], {"driving": "half.mp4"}, "half.mp4"),
    ([], {"driving": "empty"}, "empty"),
    ([], {"weights": "none"}, "none"),
    ([], {"weights": "empty"}, "empty"),
    ([], {"weights": "r0.png"}, "r0.png"),
]


@pytest.mark.parametrize(("options", "changes", "named"), BAD, ids=[named for *_, named in BAD])
def test_bad_input_is_named_and_nothing_is_left(files, tmp_path, options, changes, named):
    with pytest.raises(UserError, match=named):
        run(files, tmp_path / "out.mp4", *options, **changes)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output(files, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="file"):
        run(files, tmp_path / "file" / "out.mp4")
    assert (tmp_path / "file").read_text() == "kept"


def test_process_prints_one_line_and_exits_with_2(files, tmp_path):
    command = [sys.executable, str(ROOT / "animate.py"), "--driving", "none.mp4", "--weights", str(files / "weights")]
    result = subprocess.run(
        [*command, "--output", "out.mp4"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: none.mp4")
    no_reference = subprocess.run([*command, "--refs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert no_reference.returncode == 2
    assert "--refs" in no_reference.stderr
