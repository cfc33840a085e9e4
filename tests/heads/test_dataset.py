"""Sets of clips: layout, labels, the same again after a kill, disjoint people, bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from threads import load_and_count

from eval.labels import read_labels, read_patterns
from mrfomm.data.clips import angles_of, find_clips, open_clip, twin_of
from mrfomm.errors import UserError
from mrfomm.heads import dataset, motion
from mrfomm.heads.__main__ import main
from mrfomm.heads.dataset import SetOptions, make_dataset
from mrfomm.heads.geometry import load_template
from mrfomm.heads.person import draw_identity
from mrfomm.store import LOCK, locked

TINY = SetOptions("train", subjects=2, clips=2, frames=4, size=32, seed=5)
ROOT = Path(__file__).resolve().parent.parent.parent


def bytes_below(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("heads")
    make_dataset(out, TINY)
    return out


def test_fomms_format_with_labels(tiny):
    clips = find_clips(tiny / "train")
    assert [clip.name for clip in clips] == ["train00000#0", "train00000#1", "train00001#0", "train00001#1"]
    assert [clip.identity for clip in clips] == ["train00000"] * 2 + ["train00001"] * 2
    for clip in clips:
        frames = open_clip(clip)
        assert frames.length == 4
        assert frames.read([0], 32).std() > 10
        angles = read_labels(tiny / "labels" / "train" / f"{clip.name}.csv")
        assert angles.shape == (4, 3)
        assert (np.abs(angles) <= motion.LIMITS).all()


def test_labels_are_those_of_the_motion(tmp_path):
    angles = np.random.default_rng(0).uniform(-30, 30, (5, 3))
    dataset.write_labels(tmp_path / "deep" / "clip.csv", angles)
    np.testing.assert_allclose(read_labels(tmp_path / "deep" / "clip.csv"), angles, atol=5e-5)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["clip.csv"]


def test_clips_of_one_person_differ(tiny):
    first, second = (open_clip(clip).read(range(4), 32) for clip in find_clips(tiny / "train")[:2])
    assert np.abs(first.astype(int) - second).mean() > 5


def test_a_second_run_renders_nothing_and_more_may_be_asked_for(tiny, tmp_path):
    before = bytes_below(tiny)
    times = {path: path.stat().st_mtime_ns for path in tiny.rglob("*.mp4")}
    make_dataset(tiny, TINY)
    assert bytes_below(tiny) == before
    make_dataset(tmp_path, TINY._replace(subjects=1, clips=1))
    make_dataset(tmp_path, TINY)
    assert bytes_below(tmp_path) == before
    assert times == {path: path.stat().st_mtime_ns for path in tiny.rglob("*.mp4")}


@pytest.mark.parametrize("name", ["train/train00001#0.mp4", "labels/train/train00001#0.csv"])
@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_a_clip_or_labels_that_changed_are_made_again(tiny, tmp_path, name, how):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if how == "replaced":
        shutil.copy(tiny / name.replace("train00001", "train00000"), tmp_path / name)
    make_dataset(tmp_path, TINY)
    assert bytes_below(tmp_path) == bytes_below(tiny)


def test_a_second_run_into_the_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another run is at work there"):
        make_dataset(tmp_path, TINY)
    assert bytes_below(tmp_path) == {}


def test_a_set_from_before_labels_named_their_clip_is_not_rendered_again(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("labels/train/*.csv"):
        path.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in path.read_text().splitlines()))
    before = bytes_below(tmp_path)
    make_dataset(tmp_path, TINY)
    assert bytes_below(tmp_path) == before


@pytest.mark.slow
def test_several_processes_make_the_same_bytes(tiny, tmp_path):
    make_dataset(tmp_path, TINY, workers=2)
    assert bytes_below(tmp_path) == bytes_below(tiny)


def count_threads(clips, options):
    return load_and_count()


def test_workers_have_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_render_task", count_threads)
    clips = list(dataset.plan(tmp_path, TINY))
    assert list(dataset._render_all(clips, TINY, workers=2)) == [1, 1]


@pytest.mark.slow
def test_killed_and_resumed(tiny, tmp_path):
    options = [f"--{name}={value}" for name, value in TINY._asdict().items() if value]
    command = [sys.executable, "-m", "mrfomm.heads", "-o", str(tmp_path), "--workers=1", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 600
        while not any(tmp_path.rglob("train/*.mp4")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert any(tmp_path.glob("train/*.mp4"))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    finished = {path: content for path, content in bytes_below(tmp_path).items() if not is_hidden(path)}
    assert finished == bytes_below(tiny)


def is_hidden(path):
    return any(part.startswith(".") for part in path.parts)


def identity_of(template, options, subject):
    return draw_identity(template, options.stream(subject, dataset._PERSON))


def test_twins_move_alike_and_are_others(tiny, tmp_path):
    """The set's own files stay byte for byte; the labels of twins are the same, but for the digest of the clip."""
    make_dataset(tmp_path, TINY._replace(twins=True))
    written = bytes_below(tmp_path)
    assert all(written[path] == data for path, data in bytes_below(tiny).items() if path.suffix != ".json")
    for clip in find_clips(tmp_path / "train"):
        twin = twin_of(clip)
        np.testing.assert_array_equal(angles_of(open_clip(twin)), angles_of(open_clip(clip)))
        frames = [open_clip(each).read(range(4), 32).astype(float) for each in (clip, twin)]
        assert np.abs(frames[0] - frames[1]).mean() > 5  # grey levels: another person before something else


def test_the_papers_protocol_has_no_twins(tmp_path):
    with pytest.raises(UserError, match="^--twins: "):
        dataset.make_dataset(tmp_path, SetOptions("paper", 2, 1, 5, 32, 0, twins=True))


def test_nobody_is_in_two_protocols():
    people, template = set(), load_template()
    for protocol in dataset.PROTOCOLS:
        options = TINY._replace(protocol=protocol)
        people |= {identity_of(template, options, subject) for subject in range(20)}
    assert len(people) == 60
    third = identity_of(template, TINY, 3)
    assert third == identity_of(template, TINY._replace(size=64, frames=9), 3)
    assert third != identity_of(template, TINY._replace(seed=6), 3)


def test_papers_protocol_is_what_eval_reads(tmp_path):
    options = SetOptions("paper", subjects=2, clips=1, frames=5, size=32, seed=0)
    make_dataset(tmp_path, options)
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["s1_side", "s1_soft", "s2_soft"]
    side, soft, _ = read_patterns(folders)
    for kind, limit in zip(motion.AXES, motion.LIMITS):
        np.testing.assert_allclose(soft.sequences[kind].own_angles, np.linspace(-limit, limit, 5), atol=1e-4)
        np.testing.assert_array_equal(soft.sequences[kind].angles, side.sequences[kind].angles)
        pictures = [pattern.sequences[kind].content.frames.read(range(5), 32) for pattern in (soft, side)]
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 10  # the light


def test_five_subjects_are_nine_patterns(tmp_path):
    clips = list(dataset.plan(tmp_path, SetOptions("paper", 5, 1, 121, 64, 0)))
    assert len({clip.video.parent for clip in clips}) == 9
    assert len({clip.video for clip in clips}) == len(clips) == 27


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "exam"}, "--protocol"),
        ({"subjects": 0}, "--subjects"),
        ({"clips": 0}, "--clips"),
        ({"frames": 1}, "--frames"),
        ({"size": 33}, "--size"),
        ({"size": 16}, "--size"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_settings_out_of_range(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        make_dataset(tmp_path, TINY._replace(**change))
    assert not list(tmp_path.iterdir())


def test_bad_workers(tmp_path):
    with pytest.raises(UserError, match="--workers"):
        make_dataset(tmp_path, TINY, workers=0)


def test_a_folder_of_other_settings_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="begun with seed 5, not 6"):
        make_dataset(tiny, TINY._replace(seed=6))
    for text in ("{", "[]", "{}", '{"subjects": "x", "clips": 1}'):
        (tmp_path / "manifest-train.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            make_dataset(tmp_path, TINY)


def test_a_set_does_not_shrink(tiny):
    with pytest.raises(UserError, match="begun with subjects 2, not 1"):
        make_dataset(tiny, TINY._replace(subjects=1))


def test_an_interruption_leaves_what_is_not_begun(tmp_path, monkeypatch):
    """The bar is interrupted after the first of thirty people; workers have some more in hand, not the rest."""

    class Bar(dataset.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path, TINY._replace(subjects=30, clips=1, frames=2), workers=2)
    assert 1 <= len(list((tmp_path / "train").glob("*.mp4"))) <= 15


def test_manifest_records_seed_and_version(tiny):
    manifest = json.loads((tiny / "manifest-train.json").read_text())
    assert manifest["seed"] == 5
    assert manifest["version"]


def test_command(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--subjects=1", "--clips=1", "--frames=2", "--size=32", "--workers=1"]
    assert main([*options, "--protocol=test"]) == 0
    assert "1 clips of 2 frames" in capsys.readouterr().out
    assert [clip.name for clip in find_clips(tmp_path / "test")] == ["test00000#0"]
    with pytest.raises(UserError, match="--clips"):
        main([*options, "--protocol=paper"])


def test_missing_numba_names_the_extra():
    code = "import sys; sys.modules['numba'] = None; sys.argv[1:] = ['--out', 'x']; import runpy; "
    code += "runpy.run_module('mrfomm.heads', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "pip install -c constraints.txt -e .[cpu]" in run.stderr
    assert len(run.stderr.splitlines()) == 1
