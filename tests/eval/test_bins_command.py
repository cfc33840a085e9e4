"""`python -m eval.bins`: what is compared with what, the kept frames, the table, and one clear line for bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval import bins
from eval.bins import __main__ as command
from eval.bins import tables
from eval.bins.folders import PairScore
from eval.bins.metric import Bin, Score
from eval.generation import Entry, Poses, is_whole, reference_frames, start_frame, write_entry
from eval.labels import pattern_folders, read_patterns
from eval.lpips import load_lpips
from eval.results import in_common, read_rows, unit_means
from mrfomm import bundled
from mrfomm.errors import UserError
from mrfomm.media.images import fit
from mrfomm.model import load_model
from mrfomm.model.checkpoint import save_checkpoint
from mrfomm.reenactment.animator import Animator, array_to_images, images_to_array
from mrfomm.reenactment.motion import relative_motion
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.store import locked

ROOT = Path(__file__).parent.parent.parent
ANGLES = {  # of every pattern: yaw, pitch, roll of each frame
    "yaw": [(-31, 0, 0), (-28.5, 1, 0), (-1, 3, 0), (0.5, 1, 1), (29, 0, 0)],
    "pitch": [(0, -12, 1), (0, 1, 0.5), (0, 11, 0)],
    "roll": [(0, 0, -9.5), (1, 1, 2), (0, 0, 14)],
}
PATTERNS = ("ann_lamp", "bob_sun")
DRAW_CURVES = tables.draw_curves
PAIRS = [(a, b) for a in PATTERNS for b in PATTERNS if a != b]


def write_frames(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        imageio.imwrite(folder / f"{i:03d}.png", image)


def write_labels(path, angles):
    rows = [f"{i},{yaw},{pitch},{roll}" for i, (yaw, pitch, roll) in enumerate(angles)]
    path.write_text("\n".join(["frame,yaw,pitch,roll", *rows]))


def read(folder):
    return np.stack([imageio.imread(path) for path in sorted(folder.glob("*.png"))])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with two patterns in data/, two checkpoints, and a perfect method in truth/."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(PATTERNS):
        for i, (kind, angles) in enumerate(ANGLES.items()):
            write_frames(folder / "data" / name / kind, tiny.frames(len(angles), seed=10 * number + i))
            write_labels(folder / "data" / name / f"{kind}.csv", angles)
    for reference, driving in PAIRS:
        shutil.copytree(folder / "data" / reference, folder / "truth" / reference / driving)
    tiny.checkpoint(folder / "weights")
    tiny.checkpoint(folder / "single", data={"num_references": 1})
    return folder


@pytest.fixture(autouse=True)
def _no_plot(monkeypatch):
    """Matplotlib takes longer than all the rest; one test draws."""
    monkeypatch.setattr(command, "draw_curves", lambda path, *_: path.touch())


@pytest.fixture
def data(files, tmp_path):
    """A copy of the data, to be spoilt."""
    return shutil.copytree(files / "data", tmp_path / "data")


def run(files, output, *options, data=None):
    fixed = ["--data", data or files / "data", "--output", output, "--context", "cpu", "--backend", "nnabla"]
    return bins.main([str(argument) for argument in (*fixed, *options)])


def scores(output, kind=None):
    """(method, reference, driving, sequence) -> score."""
    rows = read_rows(output / "scores.jsonl")
    return {tuple(row[key] for key in ("method", "reference", "driving", "sequence")): row["lpips"] for row in rows}


def test_how_much_there_is_to_do_is_said_first(files, tmp_path, capsys):
    run(files, tmp_path / "out", "--weights", files / "weights")
    told = capsys.readouterr().err
    frames = len(PAIRS) * sum(map(len, ANGLES.values()))
    assert f"sequences to generate: 6, {frames} frames; then all are scored\n" in told
    shutil.rmtree(tmp_path / "out" / "generated" / "patch-wise" / PAIRS[0][0] / PAIRS[0][1] / "yaw")
    run(files, tmp_path / "out", "--weights", files / "weights")
    assert "sequences to generate: 1 (5 are there), 5 frames; then" in capsys.readouterr().err


# what is compared


def test_the_truth_of_the_reference_pattern_scores_zero(files, tmp_path, capsys):
    """The generated frames are held against the reference's recordings, not against the driving ones."""
    assert run(files, tmp_path / "out", "--generated", files / "truth") == 0
    found = scores(tmp_path / "out")
    assert set(found) == {("truth", *pair, kind) for pair in PAIRS for kind in ANGLES}
    assert set(found.values()) == {0}
    assert "0.0000 [0.0000, 0.0000]" in capsys.readouterr().out


def test_one_wrong_pair_shows_in_its_own_score(files, tmp_path):
    """By hand: frame 1 of the pitch sequence alone is in [0, 2); its LPIPS is a third of the mean over the bins."""
    wrong = shutil.copytree(files / "truth", tmp_path / "wrong")
    path = wrong / "ann_lamp" / "bob_sun" / "pitch" / "001.png"
    true, other = imageio.imread(path), tiny.frames(1, seed=99)[0]
    imageio.imwrite(path, other)
    run(files, tmp_path / "out", "--generated", wrong)
    found = scores(tmp_path / "out")
    changed = found.pop(("wrong", "ann_lamp", "bob_sun", "pitch"))
    assert set(found.values()) == {0}
    (distance,) = load_lpips(bundled.LPIPS_ALEXNET)(true[None], other[None])
    assert changed == pytest.approx(distance / 3, rel=1e-5)
    rows = [row for row in read_rows(tmp_path / "out" / "bins.jsonl") if row["lpips"]]
    (row,) = rows
    assert (row["angle"], row["true"], row["generated"]) == (1, 1, 1)


def test_sequences_are_binned_by_their_own_angle(files, tmp_path):
    run(files, tmp_path / "out", "--generated", files / "truth", "--bin-width", "10", "--range", "30")
    rows = read_rows(tmp_path / "out" / "bins.jsonl")
    one = [row for row in rows if (row["reference"], row["driving"]) == PAIRS[0]]
    found = {kind: [(row["angle"], row["true"]) for row in one if row["sequence"] == kind] for kind in ANGLES}
    assert found == {
        "yaw": [(-25, 1), (-5, 1), (5, 1), (25, 1)],
        "pitch": [(-15, 1), (5, 1), (15, 1)],
        "roll": [(-5, 1), (5, 1), (15, 1)],
    }


def test_batch_size_changes_nothing(files, tmp_path):
    for batch in ("1", "7"):
        run(files, tmp_path / batch, "--weights", files / "weights", "--batch", batch, "--bin-width", "30")
    one, other = scores(tmp_path / "1"), scores(tmp_path / "7")
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)


def test_a_kind_that_one_pattern_lacks_is_left_out_of_its_pairs(files, data, tmp_path):
    shutil.rmtree(data / "bob_sun" / "roll")
    (data / "bob_sun" / "roll.csv").unlink()
    run(files, tmp_path / "out", "--generated", files / "truth", data=data)
    assert {key[3] for key in scores(tmp_path / "out")} == {"yaw", "pitch"}
    assert table_cells((tmp_path / "out" / "table.md").read_text())["truth"] == ["0.0000", "0.0000", "-"]


# generation


def pattern(data, number=0):
    return read_patterns(pattern_folders(data))[number]


def test_references_are_the_frames_nearest_to_the_paper_s_poses(files):
    strict = Poses(5, False)
    assert reference_frames(pattern(files / "data"), 3, strict) == [3, 0, 4]
    assert reference_frames(pattern(files / "data"), 1, strict) == [3]
    assert start_frame(pattern(files / "data").sequences["yaw"], strict) == 3
    assert start_frame(pattern(files / "data").sequences["roll"], strict) == 1


def test_missing_poses(files, data, tmp_path):
    write_labels(data / "ann_lamp" / "yaw.csv", [(-31, 0, 0), (-20, 0, 0), (0, 3, 0), (0.5, 9, 0), (22.5, 0, 0)])
    weights = ("--weights", files / "weights")
    with pytest.raises(UserError, match=r"ann_lamp/yaw: no frame within 5 degrees of yaw \+30.*frame 4, is 7.5"):
        run(files, tmp_path / "out", *weights, data=data)
    assert reference_frames(pattern(data), 3, Poses(7.5, False)) == [2, 0, 4]
    assert run(files, tmp_path / "out", *weights, "--allow-missing-poses", data=data) == 0
    manifest = json.loads((tmp_path / "out/generated/patch-wise/ann_lamp/bob_sun/yaw/manifest.json").read_text())
    assert manifest["references"] == [2, 0, 4]


def test_a_driving_sequence_without_a_frontal_frame(files, data, tmp_path):
    write_labels(data / "bob_sun" / "roll.csv", [(0, 0, -9.5), (0, 0, 8), (0, 0, 14)])
    weights = ("--weights", files / "single")
    with pytest.raises(UserError, match=r"bob_sun/roll: no frame within 5 degrees of frontal.*frame 1, is 8.0"):
        run(files, tmp_path / "out", *weights, data=data)
    assert run(files, tmp_path / "out", *weights, "--motion", "absolute", data=data) == 0


@pytest.mark.parametrize("motion", ["relative", "absolute"])
def test_generated_frames(files, tmp_path, motion):
    """Against the animator: references frontal, -30, +30; relative motion from the frontal driving frame."""
    run(files, tmp_path, "--weights", files / "weights", "--motion", motion)
    model = load_model(files / "weights")
    reference, driving = (read(files / "data" / name) for name in ("bob_sun/yaw", "ann_lamp/pitch"))
    animator = Animator(NnablaGraphs(*model), images_to_array(reference[[3, 0, 4]]))
    keypoints = animator.keypoints(images_to_array(driving))
    if motion == "relative":
        keypoints = relative_motion(animator.reference_keypoints.frame(0), keypoints, keypoints.frame(1))
    expected = array_to_images(animator.render(keypoints))
    actual = read(tmp_path / "generated" / "patch-wise" / "bob_sun" / "ann_lamp" / "pitch")
    np.testing.assert_allclose(actual.astype(int), expected, atol=1)


def test_a_model_trained_with_three_references_is_not_called_fomm(files, tmp_path):
    weights = ("--weights", files / "single", files / "weights")
    run(files, tmp_path, *weights, "--refs", "frontal", "--bin-width", "30")
    assert {method for method, *_ in scores(tmp_path)} == {"FOMM", "patch-wise, frontal alone"}


def test_kept_frames_can_be_scored_as_another_method_s(files, tmp_path):
    run(files, tmp_path / "a", "--weights", files / "weights", "--bin-width", "30")
    kept = tmp_path / "a" / "generated" / "patch-wise"
    run(files, tmp_path / "b", "--generated", kept, "--method", "again", "--bin-width", "30")
    assert list(scores(tmp_path / "a").values()) == list(scores(tmp_path / "b").values())


def stamps(output):
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.png") if path.parent != output}


def remade(output, before):
    """The folders, without the method's name, in which a frame was written anew since ``stamps``."""
    return {"/".join(path.parts[-4:-1]) for path, time in stamps(output).items() if time != before.get(path)}


@pytest.fixture
def kept(files, tmp_path):
    """An output folder with the frames of the single-reference model."""
    run(files, tmp_path / "out", "--weights", files / "single")
    return tmp_path / "out"


def test_whole_frames_are_used_again(files, kept):
    before = stamps(kept)
    run(files, kept, "--weights", files / "single")
    assert remade(kept, before) == set()
    assert len(before) == 2 * 11


def test_damaged_frames_are_made_again(files, kept):
    before, first, root = stamps(kept), scores(kept), kept / "generated" / "FOMM"
    frame = root / "ann_lamp" / "bob_sun" / "yaw" / "000001.png"
    frame.write_bytes(frame.read_bytes()[:-5])
    (root / "ann_lamp" / "bob_sun" / "roll" / "000000.png").unlink()
    (root / "bob_sun" / "ann_lamp" / "pitch" / "manifest.json").write_text("{")
    run(files, kept, "--weights", files / "single")
    assert remade(kept, before) == {"ann_lamp/bob_sun/yaw", "ann_lamp/bob_sun/roll", "bob_sun/ann_lamp/pitch"}
    assert scores(kept) == first


def test_a_changed_driving_frame_makes_its_entries_again(files, kept, data):
    before = stamps(kept)
    imageio.imwrite(data / "bob_sun" / "roll" / "002.png", tiny.frames(1, seed=77)[0])
    run(files, kept, "--weights", files / "single", data=data)
    assert remade(kept, before) == {"ann_lamp/bob_sun/roll"}


def test_changed_references_make_their_entries_again(files, kept, data):
    before = stamps(kept)
    write_labels(data / "bob_sun" / "yaw.csv", [(-31, 0, 0), (-28.5, 1, 0), (0, 3, 0), (1, 0, 0), (29, 0, 0)])
    run(files, kept, "--weights", files / "single", data=data)
    assert remade(kept, before) == {
        "bob_sun/ann_lamp/yaw",
        "bob_sun/ann_lamp/pitch",
        "bob_sun/ann_lamp/roll",
    }


def test_another_motion_or_other_weights_make_everything_again(files, kept, tmp_path):
    before = stamps(kept)
    run(files, kept, "--weights", files / "single", "--motion", "absolute")
    assert len(remade(kept, before)) == len(PAIRS) * len(ANGLES)
    before = stamps(kept)
    config = tiny.config(data={"num_references": 1})
    save_checkpoint(tmp_path / "other", config, tiny.random_tree(config.model, seed=1).all())
    run(files, kept, "--weights", tmp_path / "other", "--motion", "absolute")
    assert len(remade(kept, before)) == len(PAIRS) * len(ANGLES)


def test_frames_of_another_back_end_are_made_again(files, kept):
    before = stamps(kept)
    run(files, kept, "--weights", files / "single", "--backend", "auto")
    assert len(remade(kept, before)) == len(PAIRS) * len(ANGLES)
    before = stamps(kept)
    run(files, kept, "--weights", files / "single", "--backend", "onnx")  # what auto has taken
    assert remade(kept, before) == set()


def test_frames_that_another_program_wrote_are_not_replaced(files, tmp_path):
    mine = tmp_path / "out" / "generated" / "FOMM" / "ann_lamp" / "bob_sun" / "pitch"
    write_frames(mine, tiny.frames(3, seed=5))
    before = {path: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(UserError, match="ann_lamp/bob_sun/pitch: holds something other than frames of eval.bins"):
        run(files, tmp_path / "out", "--weights", files / "single")
    assert {path: path.read_bytes() for path in mine.iterdir()} == before


def test_a_second_run_into_the_folder_is_refused_before_any_work(files, kept):
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    with locked(kept), pytest.raises(UserError, match="another run is at work there"):
        run(files, kept, "--weights", files / "weights", "--method", "FOMM")
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before


def test_two_writers_of_one_entry_don_t_disturb_each_other(tmp_path):
    """Where a file system has no locks: one writes all of it while the other is at its second frame."""
    content = SimpleNamespace(frames=SimpleNamespace(length=2))
    entry = Entry(tmp_path / "yaw", SimpleNamespace(content=content), None, {"model": "x"})
    frames = tiny.frames(4)

    def interrupted():
        yield frames[0]
        write_entry(entry, frames[2:])
        assert is_whole(entry)
        np.testing.assert_array_equal(read(entry.folder), frames[2:])
        yield frames[1]

    write_entry(entry, interrupted())
    assert is_whole(entry)
    np.testing.assert_array_equal(read(entry.folder), frames[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["yaw"]


def test_what_a_killed_run_left_goes(files, kept):
    left = kept / "generated" / "FOMM" / "ann_lamp" / "bob_sun" / ".yaw.1.partial"
    write_frames(left / "new", tiny.frames(2))
    run(files, kept, "--weights", files / "single")
    assert not left.exists()


def test_what_was_generated_before_an_error_stays(files, tmp_path, monkeypatch):
    """The fifth of the entries fails; the next run makes only what is missing, and no half folder is left."""
    animate, calls = Reenactor.animate, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return animate(self, *arguments)

    monkeypatch.setattr(Reenactor, "animate", failing)
    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path / "out", "--weights", files / "single")
    monkeypatch.undo()
    before = stamps(tmp_path / "out")
    whole = {path.parent for path in (tmp_path / "out").rglob("manifest.json")}
    assert len(whole) == 4
    run(files, tmp_path / "out", "--weights", files / "single")
    assert len(remade(tmp_path / "out", before)) == len(PAIRS) * len(ANGLES) - 4
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".lock"]
    run(files, tmp_path / "straight", "--weights", files / "single")
    assert scores(tmp_path / "out") == scores(tmp_path / "straight")


# results


def table_cells(text):
    """First cell of every row of a table -> the means in the others."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {name: [cell.split(" [")[0] for cell in cells] for name, *cells in rows if not name.startswith("--")}


def test_several_methods_make_the_paper_s_table(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "draw_curves", DRAW_CURVES)
    weights = ("--weights", files / "single", files / "weights")
    run(files, tmp_path / "out", *weights, "--generated", files / "truth", "--bin-width", "30")
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "table.md").read_text()
    cells = table_cells(text)
    paper = [f"{name}, paper (its own recordings)" for name in ("FOMM", "patch-wise", "element-wise")]
    differences = ["difference", "FOMM - patch-wise", "FOMM - truth", "patch-wise - truth"]
    assert list(cells) == ["lpips", "FOMM", "patch-wise", "truth", *paper, *differences]
    assert cells["lpips"] == ["yaw", "pitch", "roll"]
    found = scores(tmp_path / "out")
    for column, kind in enumerate(ANGLES):
        ours, theirs = (np.mean([found[(m, *pair, kind)] for pair in PAIRS]) for m in ("FOMM", "patch-wise"))
        assert cells["FOMM"][column] == f"{ours:.4f}"
        assert cells["FOMM - patch-wise"][column] == f"{ours - theirs:.4f}"
        assert cells["FOMM - truth"][column] == f"{ours:.4f}"
    assert cells[paper[1]] == ["0.086", "0.108", "0.142"]
    assert "2 patterns; pairs scored: yaw 2, pitch 2, roll 2; 0 results" in text
    assert f"Recordings: {files / 'data'}" in text
    assert "no face" not in text
    assert imageio.imread(tmp_path / "out" / "curves.png").std() > 5


def test_a_curve_is_the_mean_over_the_pairs_that_have_the_bin():
    both = [Score([Bin(-1, 0.2, 1, 1), Bin(3, 0.5, 9, 2)], 0), Score([Bin(1, 0.1, 1, 1), Bin(3, 0.1, 1, 1)], 0)]
    results = [PairScore("m", "a", "b", "yaw", both[0]), PairScore("m", "b", "a", "yaw", both[1])]
    others = [PairScore("n", "a", "b", "yaw", both[0]), PairScore("m", "a", "b", "roll", both[0])]
    angles, values = tables.curve(results + others, "m", "yaw")
    assert angles == [-1, 1, 3]
    assert values == pytest.approx([0.2, 0.1, 0.3])


def test_the_mean_over_the_bins_is_the_score(files, tmp_path):
    run(files, tmp_path / "out", "--weights", files / "weights")
    rows = read_rows(tmp_path / "out" / "bins.jsonl")
    for row in read_rows(tmp_path / "out" / "scores.jsonl"):
        keys = ("method", "reference", "driving", "sequence")
        own = [b for b in rows if all(b[key] == row[key] for key in keys)]
        assert row["lpips"] == pytest.approx(np.mean([b["lpips"] for b in own]), rel=1e-12)
        assert (row["bins"], row["true"], row["generated"]) == (
            len(own),
            sum(b["true"] for b in own),
            sum(b["generated"] for b in own),
        )


def test_a_method_gains_nothing_by_losing_the_hardest_bins():
    """Equal where both have a face; the first has none beyond 40 degrees, where the second is off."""
    one, two = (
        PairScore(method, "a", "b", "yaw", Score([Bin(angle, value, 1, 1) for angle, value in values], 0))
        for method, values in (("one", [(0, 1.0), (20, 2.0)]), ("two", [(0, 1.0), (20, 2.0), (50, 9.0)]))
    )
    for kind, means in (("yaw", [1.5]), ("roll", [])):
        sides = in_common(*(tables.values_of([one, two], method, kind) for method in ("one", "two")))
        assert [unit_means(side)[0] for side in sides] == [means, means]
    assert tables.difference_table([one, two], ["one", "two"]).count("0.0000 [0.0000, 0.0000]") == 1


def test_identity_features_drop_frames_without_a_face(files, tmp_path, monkeypatch):
    """The "embedding" is the mean colour; it sees no face in black frames."""

    def embed(image):
        return image.mean(axis=(0, 1)) if image.any() else None

    monkeypatch.setattr(command, "identity_backend", lambda name, weights: embed)
    spoilt = shutil.copytree(files / "truth", tmp_path / "spoilt")
    for name in ("pitch/000.png", "roll/001.png"):
        imageio.imwrite(spoilt / "ann_lamp" / "bob_sun" / name, np.zeros((32, 32, 3), np.uint8))
    imageio.imwrite(spoilt / "ann_lamp" / "bob_sun" / "yaw" / "002.png", np.full((32, 32, 3), 90, np.uint8))
    run(files, tmp_path / "out", "--generated", spoilt, "--features", "identity")
    rows = {
        row["sequence"]: row
        for row in read_rows(tmp_path / "out" / "scores.jsonl")
        if row["reference"] == "ann_lamp" and row["driving"] == "bob_sun"
    }
    true = imageio.imread(files / "data" / "ann_lamp" / "yaw" / "002.png").mean(axis=(0, 1))
    assert rows["yaw"]["identity"] == pytest.approx(((true - 90) ** 2).sum() / 5)
    assert [(rows[kind]["bins"], rows[kind]["dropped"]) for kind in ("yaw", "pitch", "roll")] == [
        (5, 0),
        (2, 1),
        (2, 1),
    ]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "paper" not in text
    assert "2 true or generated frames, counted in every comparison, show no face and are left out" in text


# bad input


def spoil_labels(data):
    (data / "bob_sun" / "roll.csv").write_text("frame,yaw,pitch\n0,1,2")


def spoil_frame(data):
    path = data / "bob_sun" / "pitch" / "001.png"
    path.write_bytes(path.read_bytes()[:400])


def nothing(data):
    pass


BAD = [
    (spoil_labels, [], r"bob_sun/roll\.csv: no column roll"),
    (spoil_frame, [], r"bob_sun/pitch/001\.png"),
    (nothing, ["--data", "none"], "none: no such folder"),
    (nothing, ["--weights", "none"], "none: no such checkpoint"),
    (nothing, ["--fusion", "element"], "--fusion element"),
    (nothing, ["--method", "a", "b"], "--method: 2 names for 1 methods"),
    (nothing, ["--method", "a/b"], "--method 'a/b'"),
    (nothing, ["--bin-width", "7"], "--bin-width 7"),
    (nothing, ["--batch", "0"], "--batch 0"),
    (nothing, ["--pose-tolerance", "-1"], "--pose-tolerance -1"),
    (nothing, ["--lpips-weights", "none.npz"], r"none\.npz"),
    (nothing, ["--lpips-weights", "x", "--features", "identity"], "--lpips-weights is for --features lpips"),
    (nothing, ["--identity-weights", "x"], "--identity-weights is for --features identity"),
    (nothing, ["--identity-backend", "dlib"], "--identity-backend is for --features identity"),
    (nothing, ["--range", "1", "--bin-width", "0.5", "--data", "{outside}"], "no bin holds both"),
]


@pytest.mark.parametrize(("spoil", "options", "problem"), BAD, ids=[problem for *_, problem in BAD])
def test_bad_input(files, data, tmp_path, spoil, options, problem):
    spoil(data)
    outside = shutil.copytree(files / "data", tmp_path / "outside")
    for name in PATTERNS:
        for kind in ANGLES:
            moved = np.array(ANGLES[kind], float)
            moved[:, list(ANGLES).index(kind)] = 3
            write_labels(outside / name / f"{kind}.csv", moved)
    options = [option.format(outside=outside) for option in options]
    with pytest.raises(UserError, match=problem):
        run(files, tmp_path / "out", "--weights", files / "single", "--allow-missing-poses", *options, data=data)


@pytest.mark.parametrize("option", [["--refs", "all"], ["--motion", "absolute"], ["--fusion", "mean"]])
def test_options_of_our_models_without_one_are_refused(files, tmp_path, option):
    with pytest.raises(UserError, match=f"{option[0]} is for --weights"):
        run(files, tmp_path / "out", "--generated", files / "truth", *option)


def test_pairs_are_counted_for_each_method_where_they_differ():
    score = Score([Bin(1, 0.1, 1, 1)], 0)
    results = [PairScore("m", "a", "b", "yaw", score), PairScore("m", "b", "a", "yaw", score)]
    assert tables.pairs_scored(results) == "yaw 2, pitch 0, roll 0"
    results += [PairScore("n", "a", "b", "yaw", score)]
    assert tables.pairs_scored(results) == "m yaw 2, pitch 0, roll 0; n yaw 1, pitch 0, roll 0"


def test_two_methods_of_one_name(files, tmp_path):
    with pytest.raises(UserError, match="two methods are called FOMM"):
        run(files, tmp_path / "out", "--weights", files / "single", files / "single")


def remove(folder):
    shutil.rmtree(folder / "yaw")


def shorten(folder):
    (folder / "yaw" / "004.png").unlink()


def enlarge(folder):
    for path in (folder / "yaw").glob("*.png"):
        imageio.imwrite(path, fit(imageio.imread(path), 40))


def damage(folder):
    path = folder / "yaw" / "002.png"
    path.write_bytes(path.read_bytes()[:400])


GENERATED = [
    (remove, "bob_sun/ann_lamp/yaw: no such folder, and no yaw.mp4"),
    (shorten, "bob_sun/ann_lamp/yaw: 4 frames, its driving sequence has 5"),
    (enlarge, "bob_sun/ann_lamp/yaw: 40x40 pixels, but .*32x32"),
    (damage, r"bob_sun/ann_lamp/yaw/002\.png"),
]


@pytest.mark.parametrize(("spoil", "problem"), GENERATED, ids=[spoil.__name__ for spoil, _ in GENERATED])
def test_bad_frames_of_others(files, tmp_path, spoil, problem):
    other = shutil.copytree(files / "truth", tmp_path / "other")
    spoil(other / "bob_sun" / "ann_lamp")
    with pytest.raises(UserError, match=problem):
        run(files, tmp_path / "out", "--generated", other)


def test_the_command_says_one_line_and_exits_with_2(files, data, tmp_path):
    spoil_labels(data)
    arguments = ["--data", data, "--weights", files / "single", "--output", tmp_path / "out"]
    command = [sys.executable, "-m", "eval.bins", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "roll.csv: no column roll" in line
    assert result.stderr.endswith(line + "\n")


def test_bundled_recordings_follow_the_paper():
    """Five people under two lights, one of them under one: nine patterns, with the references' poses in each."""
    patterns = read_patterns(pattern_folders(bundled.BENCHMARK))
    people = [pattern.name.split("_")[0] for pattern in patterns]
    assert sorted(map(people.count, set(people))) == [1, 2, 2, 2, 2]
    for pattern in patterns:
        yaw = pattern.sequences["yaw"].own_angles
        np.testing.assert_allclose(yaw[reference_frames(pattern, 3, Poses(1, False))], [0, -30, 30], atol=1)
        for kind, limit in (("yaw", 60), ("pitch", 30), ("roll", 30)):
            angles = pattern.sequences[kind].own_angles
            assert (angles.min(), angles.max()) == (-limit, limit)
