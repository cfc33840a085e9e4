"""Held-out clips: the frames that validation sees."""

import numpy as np
import pytest
from PIL import Image

from mrfomm.data.clips import BrokenClip, find_clips
from mrfomm.training.validation import validation_pairs


def write_clip(path, length, size=6):
    levels = np.repeat(np.arange(length, dtype=np.uint8), size)
    Image.fromarray(np.repeat(np.tile(levels, (size, 1))[..., None], 3, axis=2)).save(path)


def test_references_and_driving_frames(tmp_path):
    write_clip(tmp_path / "long.png", 21)
    write_clip(tmp_path / "short.png", 2)
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["long", "short"]
    pairs = list(validation_pairs(clips, num_references=3, max_per_clip=5, size=6))
    for (references, driving), numbers in zip(pairs, [([0, 20, 10], [0, 5, 10, 15, 20]), ([0, 1, 0], [0, 1])]):
        assert references.shape == (3, 6, 6, 3)
        assert references.dtype == driving.dtype == np.uint8
        assert references[:, 0, 0, 0].tolist() == numbers[0]
        assert driving[:, 3, 3, 1].tolist() == numbers[1]


def test_a_broken_clip_is_an_error(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"broken")
    with pytest.raises(BrokenClip, match="a.gif"):
        list(validation_pairs(find_clips(tmp_path), 1, 1, 8))
