"""Tracks: how the places of a face become chunks of a video."""

import numpy as np
import pytest

from mrfomm.data.preparing.cutting import MAX_FRAMES, Chunk, Region, find_chunks, split_by_time
from mrfomm.media.crop import Box


def at(x, y=0.0, size=10.0):
    return Region(x, y, x + size, y + size)


def test_iou_matches_counting_pixels():
    generator = np.random.default_rng(0)
    for _ in range(50):
        masks, regions = [], []
        for _ in range(2):
            left, top = generator.integers(0, 20, 2)
            width, height = generator.integers(1, 20, 2)
            mask = np.zeros((40, 40), bool)
            mask[top : top + height, left : left + width] = True
            masks.append(mask)
            regions.append(Region(left, top, left + width, top + height))
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert regions[0].iou(regions[1]) == pytest.approx(expected)


def test_region_arithmetic():
    assert Region(0, 5, 10, 15).union(Region(2, 1, 12, 6)) == Region(0, 1, 12, 15)
    assert Region(1, 2, 3, 4).scaled(10, 100) == Region(10, 200, 30, 400)
    assert Region(10, 0, 14, 20).square() == Box(2, 0, 20)


def test_a_steady_face_is_one_chunk_around_all_its_places():
    track = [(number, at(number % 4)) for number in range(0, 60, 5)]
    assert find_chunks(track, 15) == [Chunk(0, 56, Region(0, 0, 13, 10))]


def test_a_face_that_moves_off_begins_a_new_chunk():
    """At x = 6, the overlap with the first place is 4 of 16 columns, 0.25; at 7 it is 3 of 17."""
    track = [(x, at(x)) for x in range(10)]
    assert find_chunks(track, 3) == [Chunk(0, 7, Region(0, 0, 16, 10)), Chunk(7, 10, Region(7, 0, 19, 10))]


def test_a_lost_face_ends_a_chunk_but_a_short_loss_does_not():
    track = [(0, at(0)), (5, at(0)), (20, at(0)), (36, at(0))]
    assert find_chunks(track, 14) == [Chunk(0, 6, at(0)), Chunk(20, 21, at(0)), Chunk(36, 37, at(0))]
    assert find_chunks(track, 15) == [Chunk(0, 21, at(0)), Chunk(36, 37, at(0))]
    assert find_chunks(track, 16) == [Chunk(0, 37, at(0))]


def test_a_false_detection_does_not_end_a_chunk():
    track = [(0, at(0)), (5, at(0)), (10, at(50)), (15, at(1)), (20, at(0))]
    assert find_chunks(track, 15) == [Chunk(0, 21, Region(0, 0, 11, 10)), Chunk(10, 11, at(50))]


def test_full_chunks_end():
    track = [(number, at(0)) for number in range(MAX_FRAMES + 10)]
    assert [chunk.length for chunk in find_chunks(track, 5)] == [MAX_FRAMES, 10]
    assert find_chunks([], 5) == []


def test_split_by_time():
    chunks = [Chunk(200, 300, at(1)), Chunk(0, 100, at(0))]
    train = [Chunk(0, 100, at(0)), Chunk(200, 250, at(1))]
    assert split_by_time(chunks, 50, 1, True) == (train, [Chunk(250, 300, at(1))])
    assert split_by_time(chunks, 100, 1, True) == ([Chunk(0, 100, at(0))], [Chunk(200, 300, at(1))])
    assert split_by_time(chunks, 0, 1, True) == (sorted(chunks), [])
    assert split_by_time([], 5, 1, True) == ([], [])


def test_a_split_by_time_makes_no_part_too_short_and_gives_about_what_is_wanted():
    generator = np.random.default_rng(0)
    for _ in range(500):
        shortest, count = generator.integers(1, 30), generator.integers(0, 5)
        starts = np.cumsum(generator.integers(100, 200, count))
        chunks = [Chunk(int(s), int(s + generator.integers(shortest, 100)), at(0)) for s in starts]
        wanted, needs_train = int(generator.integers(0, 200)), bool(generator.integers(2))
        train, test = split_by_time(chunks, wanted, shortest, needs_train)
        assert all(chunk.length >= shortest for chunk in train + test)
        frames = [sorted(n for chunk in part for n in range(*chunk[:2])) for part in (train, test)]
        assert frames[0] + frames[1] == sorted(n for chunk in chunks for n in range(*chunk[:2]))
        can_be_split = len(chunks) >= 1 + needs_train or any(chunk.length >= 2 * shortest for chunk in chunks)
        assert bool(test) == (wanted >= shortest and can_be_split)
        assert train or not (needs_train and chunks)
        assert len(frames[1]) < wanted + shortest
