"""From the places of a face to stretches of a video that one fixed square can show, as FOMM cuts VoxCeleb."""

import functools
from typing import NamedTuple

from mrfomm.crop import Region, link, overlap

MAX_FRAMES = 1024  # of one chunk (FOMM's video-preprocessing)


class Chunk(NamedTuple):
    """Frames start..end-1 of a video, and the Region that the face stays in."""

    start: int
    end: int
    region: Region

    @property
    def length(self):
        """Number of frames."""
        return self.end - self.start


def find_chunks(track, max_gap):
    """Link the places of a face into chunks.

    A place goes on with the open chunk whose first place it overlaps most, or else opens a new one. A chunk closes when
    its face isn't seen for ``max_gap`` frames.

    Args:
        track: iterable of (frame number, Region of the face), ascending; frames without a face are left out.
        max_gap: largest distance of consecutive frames of one chunk.

    Returns:
        List of Chunk, sorted; they may overlap in time. The last frame of each is one of the track.
    """

    def likeness(places, place):
        (start, first), (end, _), (number, region) = places[0], places[-1], place
        return overlap(first, region) if number - start < MAX_FRAMES and number - end <= max_gap else 0

    return sorted(_chunk(places) for places in link(track, likeness))


def _chunk(places):
    (start, _), (end, _) = places[0], places[-1]
    return Chunk(start, end + 1, functools.reduce(Region.union, (region for _, region in places)))


def split_by_time(chunks, share):
    """Give the last ``share`` of all frames to the test set; the chunk across the border is cut in two.

    Returns:
        (training chunks, test chunks).
    """
    chunks = sorted(chunks)
    remaining = round((1 - share) * sum(chunk.length for chunk in chunks))
    train, test = [], []
    for chunk in chunks:
        border = min(chunk.start + remaining, chunk.end)
        remaining -= border - chunk.start
        if border > chunk.start:
            train.append(chunk._replace(end=border))
        if border < chunk.end:
            test.append(chunk._replace(start=border))
    return train, test
