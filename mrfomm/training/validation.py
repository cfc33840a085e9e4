"""Frames of held-out clips, for validation during training."""

from mrfomm.data.clips import open_clip
from mrfomm.data.sampling import reference_indices, spread


def validation_pairs(clips, num_references, max_per_clip, size):
    """Yield the references and some driving frames of every clip, one clip in memory at a time.

    Args:
        clips: sequence of Clip, such as part of ``find_clips("data/vox/test")``.
        num_references: K; the references are the first, last, middle... frame (``reference_indices``).
        max_per_clip: number of evenly spaced driving frames per clip; fewer in shorter clips.
        size: side of the frames.

    Yields:
        (clip, references uint8 [K,S,S,3], driving frames uint8 [N,S,S,3]), RGB.

    Raises:
        BrokenClip: a clip can't be read; a score over fewer clips would not compare.
    """
    for clip in clips:
        frames = open_clip(clip)
        references = frames.read(reference_indices(frames.length, num_references), size)
        yield clip, references, frames.read(spread(frames.length, max_per_clip), size)
