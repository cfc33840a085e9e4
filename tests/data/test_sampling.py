"""Sampling: which frames, as a function of seed, epoch and number alone."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mrfomm.data.clips import BrokenClip, Clip
from mrfomm.data.sampling import (
    PoseRule,
    draw_sample,
    epoch_order,
    group_items,
    reference_indices,
    spread,
    spread_in_yaw,
)


def clip(name):
    return Clip(Path(name), name, name.split("#")[0])


CLIPS = [clip(name) for name in ("id1#a", "id1#b", "id10#a", "id2#a")]


def test_items_are_identities_or_clips():
    assert group_items(CLIPS, id_sampling=False) == tuple((c,) for c in CLIPS)
    assert group_items(CLIPS, id_sampling=True) == ((CLIPS[0], CLIPS[1]), (CLIPS[2],), (CLIPS[3],))


def test_an_epoch_visits_every_item_num_repeats_times():
    order = epoch_order(seed=3, epoch=2, n_items=10, num_repeats=6, batch_size=4)
    assert order.shape == (15, 4)
    assert Counter((order % 10).ravel()) == dict.fromkeys(range(10), 6)
    assert sorted(order.ravel()) == list(range(60))


def test_orders_differ_by_epoch_and_seed_and_repeat():
    orders = {(s, e): epoch_order(s, e, 50, 1, 5).tobytes() for s in (0, 1) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    assert epoch_order(1, 1, 50, 1, 5).tobytes() == orders[1, 1]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_batches_of_one_process(world):
    alone = epoch_order(0, 1, 29, 7, 12)
    ranks = [epoch_order(0, 1, 29, 7, 12 // world, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1), alone)


def test_the_remainder_is_dropped():
    assert epoch_order(0, 0, 29, 1, 4, rank=1, world=2).shape == (3, 4)


def test_frames_are_distinct_and_every_frame_has_each_role_equally_often():
    length, K, draws = 8, 3, 6000
    roles = np.zeros((K + 1, length))
    for index in range(draws):
        plan = draw_sample(0, 0, index, [(CLIPS[0],)], K, lambda _: length)
        frames = [*plan.references, plan.driving]
        assert len(set(frames)) == K + 1
        roles[range(K + 1), frames] += 1
    spread = np.sqrt(draws / length * (1 - 1 / length))
    assert np.abs(roles - draws / length).max() < 4.5 * spread


@pytest.mark.parametrize("length", [1, 3])
def test_short_clips_repeat_frames(length):
    plans = [draw_sample(0, 0, i, [(CLIPS[0],)], 3, lambda _: length) for i in range(50)]
    assert all(len(plan.references) == 3 for plan in plans)
    assert {frame for plan in plans for frame in (*plan.references, plan.driving)} == set(range(length))


def test_a_sample_shows_its_item_and_all_clips_of_it():
    items = group_items(CLIPS, id_sampling=True)
    plans = [draw_sample(0, 0, index, items, 1, lambda _: 9) for index in range(300)]
    assert all(plan.clip in items[index % 3] for index, plan in enumerate(plans))
    counts = Counter(plan.clip.name for plan in plans)
    assert 30 < counts["id1#a"] < 70
    assert counts["id1#a"] + counts["id1#b"] == 100


def test_a_plan_depends_on_seed_epoch_index_and_attempt_only():
    items = group_items(CLIPS, id_sampling=True)

    def plan(*key):
        seed, epoch, index, attempt = key
        return draw_sample(seed, epoch, index, items, 3, lambda _: 1000, attempt)

    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 3, 0), (0, 0, 0, 1), (2**40, 0, 0, 0)]
    plans = [plan(*key) for key in keys]
    assert len({p.augmentation_seed for p in plans}) == len(keys)
    assert len({p.references for p in plans}) == len(keys)
    np.random.seed(7)  # a global generator has no say
    assert [plan(*key) for key in reversed(keys)] == plans[::-1]


def test_replacements_show_any_item():
    items = group_items(CLIPS, id_sampling=True)
    shown = {draw_sample(0, 0, 0, items, 1, lambda _: 9, attempt).clip for attempt in range(1, 60)}
    assert shown == set(CLIPS)


def test_a_broken_clip_is_passed_on():
    def broken(one):
        raise BrokenClip(one, "is broken")

    with pytest.raises(BrokenClip, match="id1#a: is broken"):
        draw_sample(0, 0, 0, [(CLIPS[0],)], 1, broken)


def test_reference_indices():
    assert reference_indices(101, 1) == [0]
    assert reference_indices(101, 2) == [0, 100]
    assert reference_indices(101, 3) == [0, 100, 50]
    assert reference_indices(101, 5) == [0, 100, 25, 50, 75]
    assert reference_indices(1, 3) == [0, 0, 0]


def test_spread():
    assert spread(101, 5) == [0, 25, 50, 75, 100]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(1, 4) == [0]


# Draws by the head's angles

ANGLES = np.array([[-50, 0, 5], [-20, 10, 0], [0, 0, 0], [4, 3, 0], [30, -20, 0], [60, 5, -10]], float)


def distances(references):
    """From each frame to the nearest of some, term by term."""
    return [min(sum((x - y) ** 2 for x, y in zip(a, ANGLES[r])) ** 0.5 for r in references) for a in ANGLES]


def greedy(frames, count):
    """The most frontal frame, then the furthest: every candidate compared with every chosen one."""
    chosen = [min(frames, key=lambda frame: abs(ANGLES[frame, 0]))]
    while len(chosen) < count:
        rest = [frame for frame in frames if frame not in chosen]
        chosen.append(max(rest, key=lambda frame: min(abs(ANGLES[frame, 0] - ANGLES[c, 0]) for c in chosen)))
    return chosen


def reference_sets(references, count):
    """The sets of references that can be drawn, all equally often but for repetitions."""
    frames = range(len(ANGLES))
    if references == "random":
        return [frozenset(those) for those in itertools.combinations(frames, count)]
    halves = itertools.combinations(frames, max(count, len(ANGLES) // 2))
    return [frozenset(greedy(half, count)) for half in halves]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("references", ["random", "spread"])
def test_draws_by_angle_are_as_likely_as_they_should_be(references, share, count):
    """Chi-square against the probability of every pair of references and driving frame, enumerated."""
    expected, draws = Counter(), 8000
    sets = reference_sets(references, count)
    for those in sets:
        far = {d: distances(those)[d] for d in range(len(ANGLES)) if d not in those}
        for driving, distance in far.items():
            probability = share * distance / sum(far.values()) + (1 - share) / len(far)
            expected[those, driving] += draws * probability / len(sets)
    rule = PoseRule(lambda _: ANGLES, share, references)
    found = Counter()
    for index in range(draws):
        plan = draw_sample(0, 0, index, [(CLIPS[0],)], count, lambda _: len(ANGLES), rule=rule)
        assert len({*plan.references, plan.driving}) == count + 1
        found[frozenset(plan.references), plan.driving] += 1
    assert found.keys() <= expected.keys()
    chi_square = sum((found[cell] - number) ** 2 / number for cell, number in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4.5 * (2 * freedom) ** 0.5


def test_references_are_frontal_and_the_extremes():
    sweep = np.arange(-60, 61)
    assert [sweep[i] for i in spread_in_yaw(sweep, 3)] == [0, -60, 60]
    assert [sweep[i] for i in spread_in_yaw(sweep + 0.4, 1)] == [0]
    assert sorted(sweep[i] for i in spread_in_yaw(sweep, 5)) == [-60, -30, 0, 30, 60]
    assert sorted(spread_in_yaw(np.zeros(4), 4)) == [0, 1, 2, 3]


def test_a_head_that_stands_still_drives_all_the_same():
    rule = PoseRule(lambda _: np.zeros((5, 3)), 1.0, "spread")
    plans = [draw_sample(0, 0, i, [(CLIPS[0],)], 2, lambda _: 5, rule=rule) for i in range(60)]
    assert {plan.driving for plan in plans} == set(range(5))


def test_without_a_rule_draws_are_what_they_were():
    """The same calls of the generator as before there were rules, written out."""
    items, length = group_items(CLIPS, id_sampling=True), 9
    for index in range(40):
        generator = np.random.default_rng(np.random.SeedSequence([1, 5, 2, index, 0]))
        item = items[index % 3]
        clip, seed = item[generator.integers(len(item))], int(generator.integers(2**63))
        *references, driving = generator.choice(length, 4, replace=False).tolist()
        assert draw_sample(5, 2, index, items, 3, lambda _: length) == (clip, tuple(references), driving, seed, False)


def test_clips_too_short_for_a_rule_repeat_frames():
    rule = PoseRule(lambda _: ANGLES[:3], 1.0, "spread")
    plan = draw_sample(0, 0, 0, [(CLIPS[0],)], 3, lambda _: 3, rule=rule)
    assert plan == draw_sample(0, 0, 0, [(CLIPS[0],)], 3, lambda _: 3)
