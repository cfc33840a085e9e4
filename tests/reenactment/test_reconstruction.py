"""python -m eval.reconstruction: numbers of hand-made results, what is dropped, pairing by key, bad input."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from eval import reconstruction
from eval.lpips import load_lpips
from eval.reconstruction import __main__ as command
from eval.reconstruction import runs
from eval.reconstruction.tables import values_of
from eval.results import in_common, paired_difference, unit_means
from mrfomm import bundled
from mrfomm.commands import reconstruct
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.errors import UserError
from mrfomm.reenactment.reconstruction import ClipRow, FrameRow, RunSettings, append_clip, l1_distances, open_run
from mrfomm.store import locked

ROOT = Path(__file__).parent.parent.parent
SETTINGS = RunSettings(weights="0" * 64, data="data", image_size=32, references=3, fusion="patch", pseudo=False)
NO_BACK_ENDS = ["--landmarks", "none", "--identity", "none"]


def make_data(folder, lengths, size=32):
    """A data folder whose test clips are folders of frames."""
    for seed, (name, length) in enumerate(lengths.items()):
        (folder / "test" / name).mkdir(parents=True)
        for i, image in enumerate(tiny.frames(length, size, seed)):
            imageio.imwrite(folder / "test" / name / f"{i}.png", image)
    return folder


def make_run(folder, data, offset, settings=SETTINGS, reverse=False):
    """A run whose pictures are the truth with an offset in grey levels added, written in the order asked for."""
    clips = find_clips(data / "test")
    run = open_run(folder, settings, clips)
    for clip in clips:
        source = open_clip(clip)
        truth = source.read(range(source.length), settings.image_size)
        made = np.clip(truth.astype(int) + offset, 0, 255).astype(np.uint8)
        order = range(source.length)[:: -1 if reverse else 1]
        (folder / "frames" / clip.name).mkdir(parents=True)
        rows = []
        for place, frame in enumerate(order):
            file = f"frames/{clip.name}/{place:06d}.png"
            imageio.imwrite(folder / file, made[frame])
            l1 = float(l1_distances(made[frame][None], truth[frame][None])[0])
            rows.append(FrameRow(frame, file, (0,), l1))
        mean = float(np.mean([row.l1 for row in rows]))
        append_clip(run, ClipRow(clip.name, str(clip.path.resolve()), (0,), mean, tuple(rows)))
    return folder


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data", {"a#0": 3, "b#0": 5})


def score(tmp_path, *arguments):
    return reconstruction.main([*map(str, arguments), "--output", str(tmp_path / "scores"), "--context", "cpu"])


def rows_of(tmp_path, method, clip):
    lines = (tmp_path / "scores" / method / f"{clip}.jsonl").read_text().splitlines()
    return {row["frame"]: row for row in map(json.loads, lines)}


def summary(tmp_path):
    lines = (tmp_path / "scores" / "summary.jsonl").read_text().splitlines()
    return {(row["method"], row["measure"]): row for row in map(json.loads, lines)}


def test_numbers_of_a_constant_offset(tmp_path, data, capsys):
    """An offset of 5 levels, nothing clipped: L1D = 5/255, PSNR = -20 log10(5/255); LPIPS as eval.lpips has it."""
    run = make_run(tmp_path / "run", data, 5)
    score(tmp_path, run, *NO_BACK_ENDS)
    lpips = load_lpips(bundled.LPIPS_ALEXNET)
    truth = tiny.frames(5, seed=1)
    assert truth.max() <= 250
    expected = lpips(truth, truth + 5)
    rows = rows_of(tmp_path, "run", "b#0")
    assert sorted(rows) == [0, 1, 2, 3, 4]
    for i, row in rows.items():
        assert row["l1"] == pytest.approx(5 / 255, abs=1e-12)
        assert row["psnr"] == pytest.approx(-20 * np.log10(5 / 255), abs=1e-9)
        assert 0.9 < row["ssim"] < 1
        assert row["lpips"] == pytest.approx(expected[i], rel=1e-4)
    total = summary(tmp_path)["run", "l1"]
    assert (total["clips"], total["frames"], total["dropped"]) == (2, 8, 0)
    assert total["mean"] == pytest.approx(5 / 255, abs=1e-12)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "scores" / "table.md").read_text(encoding="utf-8")
    assert "| run " in printed
    assert "0.0196 [0.0196, 0.0196]" in printed


def test_paper_rows_never_share_a_column_with_other_back_ends(tmp_path, data, capsys):
    score(tmp_path, make_run(tmp_path / "run", data, 5), *NO_BACK_ENDS)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[:7]]
    header, _, ours, *paper = table
    numbers = {row[0]: dict(zip(header, row)) for row in paper}
    patch = numbers["patch-wise, paper (VoxCeleb1)"]
    assert patch["L1D"] == "0.031"
    assert (patch["AKD (face_alignment)"], patch["AED (openface)"]) == ("1.159", "0.084")
    assert dict(zip(header, ours))["AKD (face_alignment)"] == "-"


def test_frames_meet_their_truth_by_number_not_by_order_of_files(tmp_path, data):
    for name, reverse in (("forward", False), ("backward", True)):
        make_run(tmp_path / name, data, 5, reverse=reverse)
    score(tmp_path, tmp_path / "forward", tmp_path / "backward", *NO_BACK_ENDS)
    for clip in ("a#0", "b#0"):
        forward, backward = (rows_of(tmp_path, name, clip) for name in ("forward", "backward"))
        assert sorted(forward) == sorted(backward)
        for frame, row in forward.items():  # LPIPS of other batches rounds differently
            assert backward[frame] == pytest.approx(row, abs=1e-6)


def landmarks(image):
    """Knows a picture by the grey level of its first pixel; sees nothing above 100."""
    level = float(image[0, 0, 0])
    return None if level > 100 else np.array([[level, 2 * level], [7.0, 8.0]])


def embed(image):
    level = float(image[0, 0, 0])
    return None if level > 100 else np.array([level, 0.0, 3 * level])


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(command, "landmark_backend", lambda name: landmarks)
    monkeypatch.setattr(command, "identity_backend", lambda name, weights: embed)


@pytest.fixture
def levels(tmp_path):
    """Data of one clip a level: the first pixel's value in its two frames, and a result 4 levels brighter."""
    for name, values in {"a#0": (10, 20), "b#0": (30, 98), "c#0": (120, 130)}.items():
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        for i, value in enumerate(values):
            imageio.imwrite(tmp_path / "data" / "test" / name / f"{i}.png", np.full((32, 32, 3), value, np.uint8))
    return make_run(tmp_path / "run", tmp_path / "data", 4)


def test_akd_and_aed_and_dropped_frames_by_hand(tmp_path, levels, fakes, capsys):
    """4 levels move coordinates by 4, 8, 0, 0 pixels at 32, eight times as many at 256; embeddings by 4, 0, 12."""
    score(tmp_path, levels)
    row = rows_of(tmp_path, "run", "a#0")[1]
    assert row["akd_mediapipe"] == 8 * (4 + 8) / 4
    assert row["akd_euclidean_mediapipe"] == pytest.approx(8 * np.hypot(4, 8) / 2)
    assert row["aed_dlib"] == 16 + 144
    assert row["aed_euclidean_dlib"] == pytest.approx(np.sqrt(160))
    dropped = rows_of(tmp_path, "run", "b#0")[1]  # the truth has a face, the result none
    assert dropped["akd_mediapipe"] is None
    assert dropped["aed_dlib"] is None
    total = summary(tmp_path)["run", "akd_mediapipe"]
    assert (total["clips"], total["frames"], total["dropped"], total["mean"]) == (2, 3, 3, 24)
    assert total["backend"] == "mediapipe"
    assert "run, AKD (mediapipe): 3 of 6 frames dropped" in capsys.readouterr().out


def test_a_true_frame_is_looked_at_once_for_all_methods(tmp_path, data, fakes, monkeypatch):
    """Eight frames, two methods: eight true and sixteen rebuilt pictures a back end, and numbers as if scored alone."""
    runs = [make_run(tmp_path / f"by{offset}", data, offset) for offset in (4, 6)]
    seen = []
    counting = lambda image: seen.append(image) or embed(image)  # noqa: E731
    monkeypatch.setattr(command, "identity_backend", lambda name, weights: counting)
    score(tmp_path, *runs)
    assert len(seen) == 8 + 16
    for run in runs:
        together = [rows_of(tmp_path, run.name, clip) for clip in ("a#0", "b#0")]
        shutil.rmtree(tmp_path / "scores")
        score(tmp_path, run)
        assert [rows_of(tmp_path, run.name, clip) for clip in ("a#0", "b#0")] == together
        score(tmp_path, *runs)


def test_two_back_ends_have_two_columns(tmp_path, levels, fakes, capsys):
    score(tmp_path, levels, "--landmarks", "mediapipe,dlib")
    header = capsys.readouterr().out.splitlines()[0]
    assert "AKD (mediapipe)" in header
    assert "AKD (dlib)" in header
    assert summary(tmp_path)["run", "akd_dlib"]["frames"] == 3


def test_mean_is_over_frames_and_interval_over_clips(tmp_path, data):
    """Clips of 3 and 5 frames with errors 4 and 12: the mean weighs frames, the bounds are what clips can give."""
    make_run(tmp_path / "run", data, 4)
    other = make_run(tmp_path / "other", data, 12)
    lines = [(tmp_path / name / "manifest.jsonl").read_text().splitlines() for name in ("run", "other")]
    shutil.rmtree(tmp_path / "run" / "frames" / "b#0")
    shutil.copytree(other / "frames" / "b#0", tmp_path / "run" / "frames" / "b#0")
    (tmp_path / "run" / "manifest.jsonl").write_text(f"{lines[0][0]}\n{lines[1][1]}\n")
    score(tmp_path, tmp_path / "run", *NO_BACK_ENDS)
    total = summary(tmp_path)["run", "l1"]
    assert total["mean"] == pytest.approx((3 * 4 + 5 * 12) / 8 / 255)
    assert (total["low"], total["high"]) == pytest.approx((4 / 255, 12 / 255))


def test_paired_difference_uses_the_frames_that_both_have(tmp_path, data, capsys):
    make_run(tmp_path / "near", data, 2)
    make_run(tmp_path / "far", data, 10)
    score(tmp_path, tmp_path / "near", tmp_path / "far", *NO_BACK_ENDS)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| near - far"))
    interval = paired_difference([2 / 255] * 2, [10 / 255] * 2)
    assert f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]" in line
    assert f"{-8 / 255:.4f}" in line


def scored(rows):
    rows = {clip: [{"frame": frame, "x": x} for frame, x in items] for clip, items in rows.items()}
    return reconstruction.Method("m", None, {}, {}, rows)


def test_pairs_are_made_by_clip_and_frame():
    first = scored({"a": [(0, 1.0), (1, 2.0), (2, None)], "b": [(0, 5.0)], "only": [(0, 9.0)]})
    second = scored({"a": [(2, 7.0), (1, 4.0), (0, 1.5)], "b": [(1, 3.0)]})
    sides = in_common(values_of(first, "x"), values_of(second, "x"))
    assert [unit_means(side) for side in sides] == [([1.5], [2]), ([2.75], [2])]


def test_equal_pictures_have_no_psnr(tmp_path, data, capsys):
    score(tmp_path, make_run(tmp_path / "run", data, 0), *NO_BACK_ENDS)
    row = rows_of(tmp_path, "run", "a#0")[0]
    assert (row["l1"], row["psnr"], row["ssim"]) == (0, None, pytest.approx(1))
    assert "run, PSNR: 8 of 8 frames dropped (equal to the truth)" in capsys.readouterr().out


def test_scores_are_taken_again_from_the_disk_or_replaced(tmp_path, data, monkeypatch, capsys):
    run = make_run(tmp_path / "run", data, 5)
    score(tmp_path, run, *NO_BACK_ENDS)
    before = (tmp_path / "scores" / "run" / "a#0.jsonl").read_bytes()
    calls = []
    original = runs.score_clip
    monkeypatch.setattr(runs, "score_clip", lambda *given: calls.append(given[2].clip) or original(*given))
    (tmp_path / "scores" / "run" / "b#0.jsonl").unlink()
    score(tmp_path, run, *NO_BACK_ENDS)
    assert calls == ["b#0"]
    monkeypatch.setattr(command, "landmark_backend", lambda name: landmarks)
    capsys.readouterr()
    score(tmp_path, run, "--identity", "none")
    assert calls == ["b#0", "a#0", "b#0"]
    assert "are replaced" in capsys.readouterr().err
    assert (tmp_path / "scores" / "run" / "a#0.jsonl").read_bytes() != before


def test_a_corrupt_frame_is_named_and_earlier_clips_stay(tmp_path, data):
    run = make_run(tmp_path / "run", data, 5)
    (run / "frames" / "b#0" / "000001.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="000001.png: not a readable image"):
        score(tmp_path, run, *NO_BACK_ENDS)
    assert len(rows_of(tmp_path, "run", "a#0")) == 3
    assert not (tmp_path / "scores" / "run" / "b#0.jsonl").exists()


def spoil_picture(run, data):
    path = run / "frames" / "b#0" / "000001.png"
    imageio.imwrite(path, imageio.imread(path) + np.uint8(1))


def spoil_truth(run, data):
    path = data / "test" / "b#0" / "1.png"
    imageio.imwrite(path, imageio.imread(path) + np.uint8(1))


def resize_picture(run, data):
    imageio.imwrite(run / "frames" / "b#0" / "000002.png", np.zeros((16, 32, 3), np.uint8))


def shorten_truth(run, data):
    (data / "test" / "b#0" / "4.png").unlink()


def forget_a_clip(run, data):
    lines = (run / "manifest.jsonl").read_text().splitlines()
    (run / "manifest.jsonl").write_text(lines[0] + "\n")


def remove_settings(run, data):
    (run / "settings.json").unlink()


SPOILED = [
    (spoil_picture, "000001.png: L1D .* in the manifest"),
    (spoil_truth, "000001.png: L1D .* in the manifest"),
    (resize_picture, "000002.png: 32x16 pixels, the others have 32x32"),
    (shorten_truth, "b#0: 4 frames, but b#0 was rebuilt to frame 4"),
    (forget_a_clip, "1 of 2 clips"),
    (remove_settings, "run: no reconstruction"),
    (lambda run, data: (run / "manifest.jsonl").write_text("no\n"), "manifest.jsonl: line 1"),
    (lambda run, data: (run / "frames" / "a#0" / "000000.png").unlink(), "000000.png: no such file"),
    (lambda run, data: shutil.rmtree(data / "test" / "b#0"), "b#0: this true clip of .*run is missing"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILED, ids=[named for _, named in SPOILED])
def test_a_result_that_does_not_fit_is_named(tmp_path, data, spoil, named):
    run = make_run(tmp_path / "run", data, 5)
    spoil(run, data)
    with pytest.raises(UserError, match=named):
        score(tmp_path, run, *NO_BACK_ENDS)
    assert not (tmp_path / "scores" / "summary.jsonl").exists()


def test_clips_of_one_name_are_no_pairs_unless_they_are_one(tmp_path, data):
    other = make_data(tmp_path / "other", {"b#0": 5})  # its seed is another than that of b#0 in data
    copy = shutil.copytree(data, tmp_path / "copy")
    runs = [make_run(tmp_path / f"of-{folder.name}", folder, 5) for folder in (data, other, copy)]
    with pytest.raises(UserError, match="data/test/b#0 and .*other/test/b#0 are two clips of one name: of-data and"):
        score(tmp_path, *runs[:2], *NO_BACK_ENDS)
    assert not (tmp_path / "scores").exists()
    score(tmp_path, runs[0], runs[2], *NO_BACK_ENDS)
    assert summary(tmp_path)["of-copy", "l1"]["clips"] == 2


def test_tables_name_their_data_and_rows_of_different_clips(tmp_path, data, capsys):
    part = make_data(tmp_path / "part", {"a#0": 3})
    make_run(tmp_path / "one", data, 5)
    make_run(tmp_path / "two", part, 7)
    score(tmp_path, tmp_path / "one", tmp_path / "two", *NO_BACK_ENDS)
    text = capsys.readouterr().out
    assert "| one (2 clips) " in text
    assert "| two (1 clip) " in text
    assert f"| one - two (1 clip) | {-2 / 255:.4f} " in text
    assert f"two: 3 frames of 1 clip in {part / 'test'}, from 3 references" in text
    assert "Rows are of different clips" in text
    score(tmp_path, tmp_path / "one", *NO_BACK_ENDS)
    text = capsys.readouterr().out
    assert "| one  " in text
    assert "different clips" not in text


def test_scores_of_a_clip_that_was_replaced_since_are_not_taken(tmp_path, data):
    run = make_run(tmp_path / "run", data, 5)
    score(tmp_path, run, *NO_BACK_ENDS)
    spoil_truth(run, data)
    with pytest.raises(UserError, match="000001.png: L1D .* in the manifest"):
        score(tmp_path, run, *NO_BACK_ENDS)


def change_clip(folder):
    spoil_truth(folder / "run", folder / "data")


def change_picture(folder):
    spoil_picture(folder / "run", folder / "data")
    shutil.rmtree(folder / "scores")


@pytest.mark.parametrize(("change", "named"), [(change_clip, "not the clip that"), (change_picture, "L1D .* manifest")])
def test_reconstructing_again_helps_as_the_message_says(tmp_path, data, change, named):
    weights = tiny.checkpoint(tmp_path / "weights")
    rebuild = ["--weights", str(weights), "--data", str(data), "--context", "cpu", "--backend", "nnabla", "--output"]
    reconstruct.main([*rebuild, str(tmp_path / "run")])
    score(tmp_path, tmp_path / "run", *NO_BACK_ENDS)
    change(tmp_path)
    with pytest.raises(UserError, match=f"{named}.*reconstruct again"):
        score(tmp_path, tmp_path / "run", *NO_BACK_ENDS)
    reconstruct.main([*rebuild, str(tmp_path / "run")])
    reconstruct.main([*rebuild, str(tmp_path / "fresh")])
    score(tmp_path, tmp_path / "run", tmp_path / "fresh", *NO_BACK_ENDS)
    found = summary(tmp_path)
    for measure in ("l1", "psnr", "ssim", "lpips"):
        assert found["run", measure]["mean"] == found["fresh", measure]["mean"]


def test_a_second_run_into_the_folder_is_refused(tmp_path, data):
    run = make_run(tmp_path / "run", data, 5)
    with locked(tmp_path / "scores", make=True), pytest.raises(UserError, match="another run is at work there"):
        score(tmp_path, run, *NO_BACK_ENDS)
    assert [path.name for path in (tmp_path / "scores").iterdir()] == [".lock"]


def test_moved_data_is_found_with_data(tmp_path, data):
    run = make_run(tmp_path / "run", data, 5)
    data.rename(tmp_path / "moved")
    score(tmp_path, run, "--data", tmp_path / "moved", *NO_BACK_ENDS)
    assert summary(tmp_path)["run", "l1"]["frames"] == 8


def test_results_of_other_sizes_are_not_compared(tmp_path, data):
    make_run(tmp_path / "small", data, 5)
    make_run(tmp_path / "large", data, 5, SETTINGS._replace(image_size=64))
    with pytest.raises(UserError, match="results of 32 and 64 pixels"):
        score(tmp_path, tmp_path / "small", tmp_path / "large", *NO_BACK_ENDS)


BAD = [
    (["--landmarks", "eyes"], "--landmarks eyes: give mediapipe, dlib, face_alignment"),
    (["--landmarks", "dlib,dlib"], "--landmarks dlib,dlib"),
    (["--identity", ""], "--identity : give dlib, openface"),
    (["--identity", "openface"], "openface: give its weights"),
    (["--openface-weights", "x.t7"], "--openface-weights: only for"),
    (["--lpips-weights", "none.npz"], "none.npz"),
    (["--method", "x", "y"], "--method: 2 names for 1 result"),
    (["--method", ".."], "--method '..'"),
    (["--batch", "0"], "--batch 0"),
]


@pytest.mark.parametrize(("options", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_options_are_named(tmp_path, data, options, named):
    run = make_run(tmp_path / "run", data, 5)
    with pytest.raises(UserError, match=re.escape(named)):
        score(tmp_path, run, *NO_BACK_ENDS, *options)
    assert not (tmp_path / "scores").exists()


def test_a_folder_without_scores_is_not_overwritten(tmp_path, data):
    run = make_run(tmp_path / "run", data, 5)
    (tmp_path / "scores" / "run").mkdir(parents=True)
    (tmp_path / "scores" / "run" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="holds no scores"):
        score(tmp_path, run, *NO_BACK_ENDS)
    assert (tmp_path / "scores" / "run" / "mine.txt").exists()


def test_old_scores_that_stay_are_not_taken_for_new_ones(tmp_path, data, monkeypatch):
    run = make_run(tmp_path / "run", data, 5)
    score(tmp_path, run, *NO_BACK_ENDS)
    (tmp_path / "scores" / "run" / "measured.json").write_text("of another version")
    monkeypatch.setattr(runs.shutil, "rmtree", lambda folder, ignore_errors: None)
    with pytest.raises(UserError, match="scores/run: can't be written"):
        score(tmp_path, run, *NO_BACK_ENDS)


def test_without_arguments_the_bundled_clips_are_rebuilt_once_and_scored(tmp_path, monkeypatch, capsys):
    """The command's own default, with a tiny model and clip in the place of the bundled ones."""
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data", {"a#0": 3})
    monkeypatch.setattr(bundled, "SAMPLE_DATA", tmp_path / "data")
    monkeypatch.setattr(bundled, "MODEL", tiny.checkpoint(tmp_path / "weights"))
    reconstruction.main([*NO_BACK_ENDS, "--context", "cpu"])
    assert "no result given" in capsys.readouterr().err
    assert (tmp_path / "reconstruction" / "frames" / "a#0" / "000002.png").exists()
    assert (tmp_path / "reconstruction-scores" / "reconstruction" / "a#0.jsonl").exists()
    reconstruction.main([*NO_BACK_ENDS, "--context", "cpu"])
    printed = capsys.readouterr()
    assert "no result given" not in printed.err
    assert "| reconstruction " in printed.out


def test_real_back_ends_on_the_bundled_clip(tmp_path):
    """A slightly blurred face stays close to the true one, a strongly blurred one is further away by every measure."""
    clip = find_clips(bundled.SAMPLE_DATA / "test")[0]
    folder = tmp_path / "data" / "test" / "p#0"
    folder.mkdir(parents=True)
    frames = open_clip(clip).read([20, 40], 64)
    for i, frame in enumerate(frames):
        imageio.imwrite(folder / f"{i}.png", frame)
    for name, sigma in (("sharp", 0.4), ("blurred", 0.8)):
        run = open_run(tmp_path / name, SETTINGS._replace(image_size=64), find_clips(tmp_path / "data" / "test"))
        rows = []
        (run.folder / "frames").mkdir()
        for i, frame in enumerate(frames):
            made = cv2.GaussianBlur(frame, (0, 0), sigma)
            imageio.imwrite(run.folder / "frames" / f"{i}.png", made)
            rows.append(FrameRow(i, f"frames/{i}.png", (0,), float(l1_distances(made[None], frame[None])[0])))
        append_clip(run, ClipRow("p#0", str(folder), (0,), float(np.mean([row.l1 for row in rows])), tuple(rows)))
    score(tmp_path, tmp_path / "sharp", tmp_path / "blurred")
    found = summary(tmp_path)
    for measure in ("l1", "lpips", "akd_mediapipe", "akd_euclidean_mediapipe", "aed_dlib", "aed_euclidean_dlib"):
        sharp, blurred = (found[name, measure] for name in ("sharp", "blurred"))
        assert sharp["dropped"] == blurred["dropped"] == 0, measure
        assert 0 < sharp["mean"] < blurred["mean"], measure
    for measure in ("psnr", "ssim"):
        assert found["sharp", measure]["mean"] > found["blurred", measure]["mean"]
    assert found["sharp", "akd_mediapipe"]["mean"] < 3  # pixels at 256


def test_process_prints_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "eval.reconstruction", str(tmp_path), *NO_BACK_ENDS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {tmp_path}: no reconstruction")
