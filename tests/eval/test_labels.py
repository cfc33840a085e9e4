"""Recordings with angles: what is read, and one clear line for everything that doesn't fit together."""

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval.labels import find_media, pattern_folders, read_content, read_labels, read_patterns
from mrfomm.errors import UserError
from mrfomm.media.provenance import clip_digest
from mrfomm.media.writing import open_sink

ANGLES = [(-30.5, 1, 2), (0, -1, 0), (29.25, 0, -180)]


def write_labels(path, rows, header="frame,yaw,pitch,roll"):
    path.write_text("\n".join([header, *(row if isinstance(row, str) else ",".join(map(str, row)) for row in rows)]))


def numbered(angles):
    return [(i, *row) for i, row in enumerate(angles)]


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i}.png", image)


def make_pattern(folder, kinds=("yaw", "pitch", "roll"), size=16, seed=0):
    for i, kind in enumerate(kinds):
        write_frames(folder / kind, tiny.frames(3, size, seed=seed + i))
        write_labels(folder / f"{kind}.csv", numbered(ANGLES))


@pytest.fixture
def data(tmp_path):
    make_pattern(tmp_path / "ann_lamp")
    make_pattern(tmp_path / "bob_sun", ("yaw", "roll"), seed=5)
    return tmp_path


# label files


def test_labels(tmp_path):
    write_labels(tmp_path / "a.csv", numbered(ANGLES))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.csv"), ANGLES)


def test_columns_and_rows_may_come_in_any_order(tmp_path):
    rows = [(2, "x", "-180", "29.25", " 0"), (0, "y", 2, -30.5, 1), (1, "z", 0, 0, -1)]
    header = "\ufeffframe, note, roll, yaw,pitch"
    write_labels(tmp_path / "a.csv", [*rows, "", ""], header)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.csv"), ANGLES)


BAD_LABELS = [
    ("frame,yaw,roll", [(0, 1, 2)], "no column pitch"),
    ("", [], "no column frame, yaw, pitch, roll"),
    (None, [], "no row"),
    (None, ["0,1,2,three"], "line 2, roll: 'three' is not a number"),
    (None, ["0,1,2,3", "1,,2,3"], "line 3, yaw: '' is not a number"),
    (None, ["0,1,2,3", "1,5,2"], "line 3, roll: nothing is not a number"),
    (None, ["0,1,nan,3"], "line 2, pitch: 'nan'"),
    (None, ["0,1,inf,3"], "line 2, pitch: 'inf'"),
    (None, ["0,1,2,3,5"], "line 2 has more values"),
    (None, ["0,1,2,181"], "line 2, roll: 181 is not an angle"),
    (None, ["0.5,1,2,3"], "line 2, frame: 0.5 is not a whole number"),
    (None, ["1,1,2,3", "2,1,2,3"], "none for frame 0"),
    (None, ["0,1,2,3", "0,1,2,3"], "none for frame 1"),
    (None, ["0,1,2,3", "-1,1,2,3"], "none for frame 1"),
]


@pytest.mark.parametrize(("header", "rows", "problem"), BAD_LABELS, ids=[problem for *_, problem in BAD_LABELS])
def test_bad_labels(tmp_path, header, rows, problem):
    write_labels(tmp_path / "a.csv", rows, "frame,yaw,pitch,roll" if header is None else header)
    with pytest.raises(UserError, match=rf"a\.csv.*{problem}"):
        read_labels(tmp_path / "a.csv")


def test_label_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"frame,yaw,pitch,roll\n\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.csv"):
        read_labels(tmp_path / "binary.csv")


# patterns


def test_patterns(data):
    (data / "README.txt").write_text("what this is")
    first, second = read_patterns(pattern_folders(data))
    assert (first.name, second.name) == ("ann_lamp", "bob_sun")
    assert (list(first.sequences), list(second.sequences)) == (["yaw", "pitch", "roll"], ["yaw", "roll"])
    roll = second.sequences["roll"]
    np.testing.assert_array_equal(roll.angles, ANGLES)
    np.testing.assert_array_equal(roll.own_angles, [2, 0, -180])
    assert (roll.content.height, roll.content.width, roll.content.frames.length) == (16, 16, 3)
    np.testing.assert_array_equal(
        roll.content.frames.read([2], 16)[0], imageio.imread(data / "bob_sun" / "roll" / "2.png")
    )


def test_a_video_and_a_folder_have_the_same_frames(tmp_path):
    frames = tiny.frames(5, 32)
    with open_sink(tmp_path / "yaw.mp4", 10) as sink:
        for frame in frames:
            sink.write(frame)
    assert find_media(tmp_path, "yaw") == tmp_path / "yaw.mp4"
    content = read_content(tmp_path / "yaw.mp4")
    assert (content.frames.length, content.height, content.width) == (5, 32, 32)
    assert np.abs(content.frames.read(range(5), 32).astype(int) - frames).mean() < 3


def test_the_digest_depends_on_every_pixel_and_not_on_names(tmp_path):
    frames = tiny.frames(3, 16)
    write_frames(tmp_path / "a", frames)
    (tmp_path / "b").mkdir()
    for i, image in enumerate(frames):
        imageio.imwrite(tmp_path / "b" / f"frame{i:03d}.png", image)
    frames[2, 7, 7, 1] ^= 1
    write_frames(tmp_path / "c", frames)
    a, b, c = (read_content(tmp_path / name).digest for name in "abc")
    assert a == b != c


def test_labels_of_a_clip_that_was_replaced_are_refused(data):
    """Where they name their clip. As the message says, they can be vouched for."""
    labels, digest = data / "bob_sun" / "yaw.csv", clip_digest(data / "bob_sun" / "yaw")
    text = labels.read_text().splitlines()
    named = [f"{text[0]},clip", f"{text[1]},{digest}", *(f"{line}," for line in text[2:])]
    labels.write_text("\n".join(named))
    expected = read_patterns(pattern_folders(data))[1].sequences["yaw"].angles
    imageio.imwrite(data / "bob_sun" / "yaw" / "1.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="yaw.csv: of a different clip than .*bob_sun/yaw; label it again, or empty"):
        read_patterns(pattern_folders(data))
    labels.write_text(labels.read_text().replace(digest, ""))
    np.testing.assert_array_equal(read_patterns(pattern_folders(data))[1].sequences["yaw"].angles, expected)


def remove_yaw(folder):
    for image in (folder / "yaw").iterdir():
        image.unlink()
    (folder / "yaw").rmdir()
    (folder / "yaw.csv").unlink()


def resize(folder):
    for path in (folder / "roll").iterdir():
        imageio.imwrite(path, np.zeros((16, 20, 3), np.uint8))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


PROBLEMS = [
    (lambda f: write_labels(f / "yaw.csv", numbered(ANGLES + ANGLES)), r"yaw\.csv: 6 rows, but .* has 3 frames"),
    (lambda f: write_labels(f / "roll.csv", numbered(ANGLES[:1])), r"roll\.csv: 1 rows, but .* has 3 frames"),
    (lambda f: (f / "roll.csv").unlink(), r"roll\.csv: no such file"),
    (lambda f: write_labels(f / "pitch.csv", numbered(ANGLES)), r"pitch\.csv: labels without a clip"),
    (remove_yaw, r"bob_sun: no yaw sequence"),
    (lambda f: (f / "yaw.mp4").write_bytes(b""), r"yaw\.mp4: there is a folder yaw too"),
    (lambda f: cut(f / "yaw" / "1.png"), r"yaw/1\.png"),
    (
        lambda f: imageio.imwrite(f / "yaw" / "1.png", np.zeros((17, 16, 3), np.uint8)),
        r"yaw: frame 1 is 16x17, .* 16x16",
    ),
    (resize, r"roll: 20x16 pixels, but .*ann_lamp/yaw: 16x16"),
]


@pytest.mark.parametrize(("spoil", "problem"), PROBLEMS, ids=[problem for _, problem in PROBLEMS])
def test_recordings_that_do_not_fit(data, spoil, problem):
    spoil(data / "bob_sun")
    with pytest.raises(UserError, match=problem):
        read_patterns(pattern_folders(data))


def test_a_damaged_video_is_named(data):
    remove_yaw(data / "bob_sun")
    path = data / "bob_sun" / "yaw.mp4"
    with open_sink(path, 10) as sink:
        for frame in tiny.frames(3):
            sink.write(frame)
    write_labels(data / "bob_sun" / "yaw.csv", numbered(ANGLES))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"yaw\.mp4"):
        read_patterns(pattern_folders(data))


def test_no_data(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        read_patterns(pattern_folders(tmp_path / "none"))
    make_pattern(tmp_path / "alone_sun", ("yaw",))
    with pytest.raises(UserError, match="fewer than two patterns"):
        pattern_folders(tmp_path)
