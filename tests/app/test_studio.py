"""The page's jobs, without a browser: what they give, their limits, and the film strip."""

import re
from concurrent.futures import ThreadPoolExecutor

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny
import visitor

from mrfomm import bundled
from mrfomm.app import strip, studio
from mrfomm.app.wording import for_visitors
from mrfomm.commands import animate
from mrfomm.errors import UserError
from mrfomm.media import provenance
from mrfomm.media.crop import Box, Framed
from mrfomm.media.images import read_image
from mrfomm.media.reading import FrameSource, open_frames
from mrfomm.reenactment import reenactor
from mrfomm.reenactment.animator import Breakdown
from mrfomm.reenactment.motion import Transfer

LIMITS = studio.Limits(visitor.MAX_FRAMES, queue=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of tiny weights, good inputs and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    return visitor.write_files(folder)


def plain(items, total, what):
    return items


def job(files, references=("r0.png", "r1.png", "r2.png"), driving="driving.mp4", **changes):
    paths = tuple(str(files / name) for name in references)
    values = {"fusion": "patch", "transfer": Transfer(), "crop": False, **changes}
    return studio.Order(paths, str(files / driving), **values)


@pytest.fixture(scope="module")
def worker(files):
    return studio.Workshop(files / "weights", "cpu", "nnabla", LIMITS)


def test_pictures_of_two_people_are_told_of(files, worker, tmp_path, monkeypatch):
    faces = iter(np.array([[0.0], [1.0], [0.5]]))
    monkeypatch.setattr(reenactor, "installed", lambda: lambda image: next(faces))
    (line,) = [note for note in worker.animate(job(files), tmp_path, plain).notes if "different people" in note]
    assert for_visitors(line, str(files)).startswith(
        "references 1 and 2 (r0.png, r1.png) seem to show different people"
    )


def test_result_is_what_the_command_writes(files, worker, tmp_path):
    result = worker.animate(job(files), tmp_path, plain)
    inputs = ["--refs", *(str(files / f"r{i}.png") for i in range(3)), "--driving", str(files / "driving.mp4")]
    inputs += ["--weights", str(files / "weights"), "--context", "cpu", "--backend", "nnabla"]
    animate.main([*inputs, "--output", str(tmp_path / "command.mp4")])
    ours, theirs = open_frames(result.alone), open_frames(tmp_path / "command.mp4")
    np.testing.assert_array_equal(list(ours), list(theirs))
    assert ours.has_audio
    assert [provenance.read(path) for path in result[:2]] == [provenance.read(tmp_path / "command.mp4")] * 2
    beside = open_frames(result.beside)
    assert (next(iter(beside)).shape, len(list(beside)), beside.has_audio) == ((32, 64, 3), 30, True)
    assert result.notes[0] == "30 frames at 25 per second, 32x32 pixels"
    cells = ((5 * (128 + strip.GAP) - strip.GAP), (9 * (128 + strip.GAP) - strip.GAP))
    assert imageio.imread(result.strip).shape == (cells[0] + strip.HEAD, cells[1] + strip.MARGIN, 3)


def test_clip_in_place_of_pictures(files, worker, tmp_path):
    said = []
    result = worker.animate(job(files, references=["driving.mp4"], frames=4), tmp_path, plain, said.append)
    assert re.search(r"driving.mp4: references are frames (\d+ \([\d.]+ s\)(, |;)){4}", result.notes[1])
    cell = 128 + strip.GAP
    assert imageio.imread(result.strip).shape[0] == 6 * cell - strip.GAP + strip.HEAD
    assert said == ["opening the clip", "making the model ready", "drawing the film strip"]


def test_strength_zero_stands_still(files, worker, tmp_path):
    still = list(open_frames(worker.animate(job(files, transfer=Transfer(strength=0)), tmp_path, plain).alone))
    assert max(np.abs(frame.astype(int) - still[0]).max() for frame in still) < 16  # the encoder changes a little


def test_face_goes_back_into_the_first_picture(files, worker, tmp_path):
    """One larger than the page's results: it is shrunk, and far from the face it stays."""
    picture = np.full((300, 1600, 3), (40, 90, 160), np.uint8)
    picture[30:286, 60:316] = read_image(bundled.SAMPLE_REFERENCES[0])
    imageio.imwrite(tmp_path / "wide.png", picture)
    order = job(files, crop=True, paste=True, transfer=Transfer(anchor=0))
    order = order._replace(references=(str(tmp_path / "wide.png"),), driving=str(bundled.SAMPLE_DRIVING))
    result = worker.animate(order, tmp_path, plain)
    assert result.notes[0] == "75 frames at 25 per second, 1280x240 pixels"
    assert result.notes[-1].endswith("from reference 1")
    for whole, both in zip(open_frames(result.alone), open_frames(result.beside)):
        assert (whole.shape, both.shape) == ((240, 1280, 3), (240, 1520, 3))
        assert np.abs(whole[:, 300:] - np.array([40.0, 90, 160])).max() < 12
        assert whole[:, :240].std() > 20
        assert np.abs(both[:, 240:].astype(int) - whole).mean() < 4


@pytest.mark.parametrize(("shape", "box"), [((100, 4096, 3), Box(3996, 0, 100)), ((99, 7, 3), None)])
def test_boxes_stay_in_shrunk_pictures(shape, box):
    picture = studio.within(Framed(np.zeros(shape, np.uint8), box), 50)
    assert max(picture.image.shape) <= 50
    assert picture.box is None or picture.cut().shape == (picture.box.size, picture.box.size, 3)


def test_what_cannot_run_is_said_at_the_start(files):
    with pytest.raises(UserError, match="--context cudnn"):
        studio.Workshop(files / "weights", "cudnn", "auto", LIMITS)


def test_modes_without_parameters_are_not_offered(worker):
    assert worker.fusion_modes == ["patch", "mean", "occlusion"]


BAD_JOBS = [
    ({"references": ()}, "no pictures"),
    ({"references": ["r0.png"] * 9}, "9 pictures"),
    ({"references": ["text.png"]}, "text.png: not a readable image"),
    ({"driving": "text.mp4"}, "text.mp4: not a readable video"),
    ({"driving": "half.mp4"}, "half.mp4"),
    ({"driving": "long.mp4"}, "long.mp4: about 121 frames; cut it to 120 "),
    ({"driving": "wide.mp4"}, "wide.mp4: 4098x16 pixels"),
    ({"crop": True}, "no face found; leave out --crop"),
    ({"references": ["r0.png", "driving.mp4"]}, "a clip among the pictures"),
    ({"references": ["long.mp4"]}, "long.mp4: about 121 frames; cut it to 120 "),
    ({"references": ["wide.mp4"]}, "wide.mp4: 4098x16 pixels"),
    ({"references": ["driving.mp4"], "frames": 31}, "--count 31: .*driving.mp4 has 30 frames"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_JOBS, ids=[message for _, message in BAD_JOBS])
def test_bad_jobs_leave_nothing(files, worker, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        worker.animate(job(files, **changes), tmp_path, plain)
    assert list(tmp_path.iterdir()) == []


def test_two_jobs_at_once_are_done_one_after_the_other(files, worker, tmp_path):
    """As when a visitor has stopped one, whose thread is still at work: both results are those of a job alone."""
    folders = [tmp_path / name for name in ("alone", "one", "two")]
    for folder in folders:
        folder.mkdir()
    jobs = [job(files), job(files), job(files, references=("r2.png", "r0.png"))]
    alone = [worker.animate(each, folders[0], plain).alone.read_bytes() for each in jobs[1:]]
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(worker.animate, each, folder, plain) for each, folder in zip(jobs[1:], folders[1:])]
    assert [future.result().alone.read_bytes() for future in pending] == alone


def test_job_stopped_midway_leaves_nothing(files, worker, tmp_path):
    def stopping(items, total, what):
        for number, item in enumerate(items):
            if (what, number) == ("animating", 7):
                raise UserError("stopped")
            yield item

    with pytest.raises(UserError, match="stopped"):
        worker.animate(job(files), tmp_path, stopping)
    assert list(tmp_path.iterdir()) == []


def test_length_is_limited_where_the_header_does_not_tell(files):
    """As in what a browser records."""
    whole = open_frames(files / "long.mp4")
    untold = FrameSource(whole.path, whole.fps, None, False, whole.__iter__)
    taken = []
    with pytest.raises(UserError, match="more than 120 frames"):
        taken.extend(studio.bounded(untold, 120))
    assert len(list(studio.bounded(untold, 121))) == 121


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (15, [0, 2, 4, 6, 8, 10, 12, 14])])
def test_spread(count, expected):
    assert studio.spread(count, 8) == expected


# The film strip


def halves():
    """Two references that supply the left and the right half, seen in one result."""
    references = [np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 20, np.uint8)]
    shown = [(np.full((4, 4, 3), 30, np.uint8), np.full((4, 4, 3), 40, np.uint8))]
    mask = np.zeros((1, 2, 1, 4, 4), np.float32)
    mask[0, 0, :, :, :1] = mask[0, 1, :, :, 1:] = 1
    return references, shown, Breakdown(np.ones((1, 2, 3, 4, 4), np.float32), mask)


def test_film_by_hand():
    film = strip.film(*halves())
    cells = {(0, 1): 30, (1, 0): 10, (2, 0): 20, (3, 1): 40, (0, 0): 255, (3, 0): 255}
    for (row, column), value in cells.items():
        assert set(cell(film, row, column).ravel()) == {value}
    np.testing.assert_array_equal(cell(film, 1, 1)[::32, ::32, 0], [[255, 0, 0, 0]] * 4)
    np.testing.assert_array_equal(cell(film, 2, 1)[::32, ::32, 0], [[0, 255, 255, 255]] * 4)
    assert film.shape == (4 * 128 + 3 * strip.GAP, 2 * 128 + strip.GAP, 3)


def cell(film, row, column):
    y, x = row * (128 + strip.GAP), column * (128 + strip.GAP)
    return film[y : y + 128, x : x + 128]


def test_rows_are_named_with_their_shares():
    names = strip.row_names(halves()[2].mask)
    assert [re.findall(r"\d+", name) for name in names] == [["1", "25"], ["2", "75"]]


def test_names_stand_beside_the_pictures():
    film, whole = strip.film(*halves()), strip.film_strip(*halves(), seconds=[1.25])
    np.testing.assert_array_equal(whole[strip.HEAD :, strip.MARGIN :], film)
    margin = whole[strip.HEAD :, : strip.MARGIN].min(axis=(1, 2))
    rows = [margin[y : y + 128] for y in range(0, 4 * (128 + strip.GAP), 128 + strip.GAP)]
    assert all(row[30:98].min() < 128 and row[:20].min() == 255 for row in rows)
