"""The loader: contents of batches, the same for any number of workers, processes and resumptions."""

import logging
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrfomm.data
from mrfomm.data.augment import AugmentOptions, augment
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.loader import Batch, Loader
from mrfomm.data.sampling import draw_sample, epoch_order, group_items
from mrfomm.errors import UserError
from mrfomm.heads.dataset import write_labels

PLAIN = AugmentOptions(False, False, 0, 0, 0, 0)
SIZE, K = 8, 3


def write_clip(folder, name, number, length=10):
    """Stacked frames; the red channel holds the clip's number, the green one the frame's."""
    frames = np.zeros((SIZE, length, SIZE, 3), np.uint8)
    frames[..., 0] = number
    frames[..., 1] = np.arange(length)[:, None]
    frames[..., 2] = np.arange(SIZE)  # tells left from right
    Image.fromarray(frames.reshape(SIZE, length * SIZE, 3)).save(folder / f"{name}.png")


@pytest.fixture
def clips(tmp_path):
    """Five identities with two clips each."""
    for number in range(10):
        write_clip(tmp_path, f"id{number // 2}#{number}", number)
    return find_clips(tmp_path)


def make(clips, options=PLAIN, **changes):
    settings = {"size": SIZE, "num_references": K, "batch_size": 4, "seed": 1, "num_repeats": 6}
    return Loader(clips, options, **{**settings, **changes})


def batches(loader, epoch=0, start_step=0):
    with loader:
        return list(loader.epoch(epoch, start_step))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        np.testing.assert_array_equal(a.references, b.references)
        np.testing.assert_array_equal(a.driving, b.driving)


def test_batches_hold_the_frames_of_their_plans(clips):
    items = group_items(clips, id_sampling=True)
    order = epoch_order(1, 5, 5, 6, 4)
    found = batches(make(clips), epoch=5)
    assert len(found) == len(order) == make(clips).steps_per_epoch == 7
    for step, batch in enumerate(found):
        assert batch.references.shape == (4, K, 3, SIZE, SIZE)
        assert batch.driving.shape == (4, 3, SIZE, SIZE)
        assert batch.references.dtype == batch.driving.dtype == np.float32
        for i, index in enumerate(order[step]):
            plan = draw_sample(1, 5, index, items, K, lambda _: 10)
            number = int(plan.clip.name.split("#")[1])
            for image, frame in zip([*batch.references[i], batch.driving[i]], [*plan.references, plan.driving]):
                np.testing.assert_array_equal(image[0], np.float32(number) / np.float32(255))
                np.testing.assert_array_equal(image[1], np.float32(frame) / np.float32(255))
                np.testing.assert_array_equal(image[2], np.tile(np.arange(SIZE, dtype=np.float32) / 255, (SIZE, 1)))


def test_samples_are_augmented_by_their_plans_seed(clips):
    (batch, *_) = batches(make(clips, AugmentOptions()))
    items = group_items(clips, id_sampling=True)
    for i, index in enumerate(epoch_order(1, 0, 5, 6, 4)[0]):
        plan = draw_sample(1, 0, index, items, K, lambda _: 10)
        frames = open_clip(plan.clip).read([*plan.references, plan.driving], SIZE).astype(np.float32) / 255
        expected = augment(frames, AugmentOptions(), np.random.default_rng(plan.augmentation_seed))
        found = np.concatenate([batch.references[i], batch.driving[i][None]]).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected, atol=0.501 / 255)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_make_the_same_batches(clips, num_workers):
    alone = batches(make(clips, AugmentOptions()))
    assert_equal(batches(make(clips, AugmentOptions(), num_workers=num_workers)), alone)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(clips, world):
    alone = batches(make(clips, batch_size=8))
    ranks = [batches(make(clips, batch_size=8 // world, rank=rank, world=world)) for rank in range(world)]
    together = [
        Batch(*(np.concatenate(shares) for shares in zip(*(part[:2] for part in parts)))) for parts in zip(*ranks)
    ]
    assert_equal(together, alone)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_resumes_at_any_step(clips, num_workers):
    whole = batches(make(clips, AugmentOptions()))
    assert_equal(batches(make(clips, AugmentOptions(), num_workers=num_workers), start_step=3), whole[3:])
    assert batches(make(clips, num_workers=num_workers), start_step=7) == []


def test_epochs_follow_each_other_also_after_one_left_early(clips):
    with make(clips, num_workers=2) as loader:
        for batch in loader.epoch(0):
            assert batch.driving.shape[0] == 4
            break
        second = list(loader.epoch(1))
    assert_equal(second, batches(make(clips), epoch=1))


def test_batches_do_not_share_memory(clips):
    with make(clips, num_workers=2) as loader:
        iterator = loader.epoch(0)
        first = next(iterator)
        kept = first.references.copy()
        list(iterator)
    np.testing.assert_array_equal(first.references, kept)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_clips_are_replaced_warned_about_once_and_counted(clips, caplog, num_workers):
    clips[3].path.write_bytes(b"broken")
    loader = make(clips, num_workers=num_workers)
    with caplog.at_level(logging.WARNING, "mrfomm.data.loader"):
        found = batches(loader)
    assert loader.broken == {"id1#3"}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "skipping a broken clip" in record.getMessage()
    assert str(clips[3].path) in record.getMessage()
    shown = np.rint(np.concatenate([batch.driving[:, 0, 0, 0] for batch in found]) * 255)
    assert len(shown) == 28
    assert 3 not in shown
    assert_equal(found, batches(make(clips)))


def test_other_samples_stay_when_a_clip_breaks(clips):
    before = batches(make(clips))
    clips[3].path.write_bytes(b"broken")
    after = batches(make(clips))
    for a, b in zip(before, after):
        healthy = np.rint(a.driving[:, 0, 0, 0] * 255) != 3
        np.testing.assert_array_equal(a.references[healthy], b.references[healthy])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_broken_clips_are_an_error(clips, num_workers):
    for clip in clips[:2]:
        clip.path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"2 of 10 clips are broken, more than data.max_broken = 0.1"):
        batches(make(clips, num_workers=num_workers))


def test_nothing_but_broken_clips_is_an_error(clips):
    for clip in clips:
        clip.path.write_bytes(b"broken")
    with pytest.raises(UserError, match="100 clips in a row can't be read; the last one: .*png"):
        batches(make(clips, max_broken=1.0))


def test_an_epoch_that_fills_no_batch_says_what_to_do(clips):
    with pytest.raises(UserError, match="5 items x 6 repeats .* batch of 32; set data.num_repeats to at least 7"):
        make(clips, batch_size=8, world=4)
    assert make(clips, batch_size=8, world=4, num_repeats=7).steps_per_epoch == 1
    assert make(clips, batch_size=15, id_sampling=False).steps_per_epoch == 4


def test_clips_of_other_sizes_become_the_models(clips):
    (batch, *_) = batches(make(clips, size=4))
    assert batch.references.shape == (4, K, 3, 4, 4)
    assert set(np.unique(np.rint(batch.driving[:, 0] * 255))) <= set(range(10))


def test_nothing_in_the_package_imports_nnabla():
    names = sorted(module.name for module in pkgutil.walk_packages(mrfomm.data.__path__, "mrfomm.data."))
    assert len(names) == 12
    code = f"import sys, {', '.join(names)}; sys.exit('nnabla' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent.parent).returncode == 0


# Draws by the head's angles

BY_ANGLE = {"wide_pairs": 1.0, "references": "spread"}


@pytest.fixture
def labelled(tmp_path):
    """Clips whose head turns from -60 to 60 degrees within ten frames."""
    (tmp_path / "train").mkdir()
    for number in range(4):
        name = f"id{number}#0"
        write_clip(tmp_path / "train", name, number)
        write_labels(tmp_path / "labels" / "train" / f"{name}.csv", np.linspace([-60, 0, 0], [60, 0, 0], 10))
    return find_clips(tmp_path / "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_are_drawn_by_their_labels(labelled, workers):
    near, far = ([], [])
    for drawn, options in ((near, {}), (far, BY_ANGLE)):
        for batch in batches(make(labelled, num_workers=workers, **options)):
            frames = np.rint(batch.references[:, :, 1, 0, 0] * 255)  # [B,K], the green channel is the frame's number
            drawn += list(np.ptp(frames, axis=1))
    assert np.mean(far) > np.mean(near) + 0.5


def test_batches_by_angle_are_the_same_for_any_number_of_workers(labelled):
    assert_equal(*(batches(make(labelled, num_workers=workers, **BY_ANGLE)) for workers in (0, 2)))


def test_clips_without_labels_are_named(labelled, tmp_path):
    path = tmp_path / "labels" / "train" / "id2#0.csv"
    path.unlink()
    make(labelled)
    for option in ({"wide_pairs": 0.5}, {"references": "spread"}):
        with pytest.raises(
            UserError, match=f"^{path}: not there, .* set data.wide_pairs=0 and data.references=random$"
        ):
            make(labelled, **option)


@pytest.mark.parametrize(
    ("digest", "rows", "problem"),
    [("", 9, "9 rows, but the clip has 10 frames"), ("0" * 64, 10, "of a different clip than"), ("", 0, "no row")],
)
def test_clips_with_labels_of_others_are_broken(labelled, tmp_path, caplog, digest, rows, problem):
    path = tmp_path / "labels" / "train" / "id2#0.csv"
    write_labels(path, np.zeros((rows, 3)), digest)
    assert batches(make(labelled, max_broken=0.25, **BY_ANGLE))
    (line,) = [record.getMessage() for record in caplog.records]
    assert problem in line
    assert str(path) in line
    with pytest.raises(UserError, match="1 of 4 clips are broken"):
        batches(make(labelled, **BY_ANGLE))


# Twins: somebody else who makes the same motion


@pytest.fixture
def with_twins(tmp_path):
    """Clips of identities 0 to 3, each with a twin whose number is 100 more."""
    for folder, more in ((tmp_path / "train", 0), (tmp_path / "twins" / "train", 100)):
        folder.mkdir(parents=True)
        for number in range(4):
            write_clip(folder, f"id{number}#0", number + more)
    return find_clips(tmp_path / "train")


@pytest.mark.parametrize("options", [PLAIN, AugmentOptions(True, True, 0, 0, 0, 0)])
@pytest.mark.parametrize("workers", [0, 2])
def test_movers_are_the_twin_on_the_first_reference_and_on_the_driving_frame(with_twins, workers, options):
    for batch in batches(make(with_twins, options, twins=1.0, num_workers=workers)):
        who, number, side = np.moveaxis(np.rint(batch.movers * 255), 2, 0)  # [B,2,H,W] each
        shown = np.stack([batch.references[:, 0], batch.driving], axis=1)  # [B,2,3,H,W]
        np.testing.assert_array_equal(who, np.rint(shown[:, :, 0] * 255) + 100)
        np.testing.assert_array_equal(number, np.rint(shown[:, :, 1] * 255))
        np.testing.assert_array_equal(side, np.rint(shown[:, :, 2] * 255))


def test_twins_drive_their_share_and_change_nothing_else(with_twins):
    drawn = []
    for batch, plain in zip(
        batches(make(with_twins, twins=0.3, num_repeats=100)), batches(make(with_twins, num_repeats=100))
    ):
        assert plain.movers is None
        np.testing.assert_array_equal(batch.references, plain.references)
        np.testing.assert_array_equal(batch.driving, plain.driving)
        for movers, references, driving in zip(
            *(np.rint(part * 255) for part in (batch.movers, batch.references, batch.driving))
        ):
            drawn.append(movers[0, 0, 0, 0] >= 100)
            if not drawn[-1]:
                np.testing.assert_array_equal(movers, [references[0], driving])
    assert len(drawn) == 400
    assert 0.3 * 400 - 28 < sum(drawn) < 0.3 * 400 + 28  # three standard deviations


def test_clips_without_twins_are_named(with_twins, tmp_path):
    path = tmp_path / "twins" / "train" / "id2#0.png"
    path.unlink()
    make(with_twins)
    with pytest.raises(UserError, match=f"^{path}: not there, .* set data.twins=0$"):
        make(with_twins, twins=0.5)


def test_a_twin_of_another_length_is_broken(with_twins, tmp_path, caplog):
    write_clip(tmp_path / "twins" / "train", "id2#0", 102, length=9)
    assert batches(make(with_twins, max_broken=0.25, twins=1.0))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "twins/train/id2#0.png: 9 frames; its twin has 10" in line
