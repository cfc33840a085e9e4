"""From the places of a face to stretches of a video that one fixed square can show, as FOMM cuts VoxCeleb."""

import functools
from typing import NamedTuple

from mrfomm.media.crop import Region, link, overlap

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


def split_by_time(chunks, wanted, shortest, needs_train):
    """Give the last ``wanted`` frames to the test set, or about as many, so that no part is too short.

    Args:
        chunks: of one person, each of ``shortest`` frames or more.
        wanted: number of frames; nothing is given for less than ``shortest``.
        shortest: number of frames of a part. A chunk that can't be cut in two such parts stays whole.
        needs_train: whether some of them must remain.

    Returns:
        (training chunks, test chunks).
    """
    train, test = sorted(chunks), []
    while train and wanted >= shortest:
        chunk = train[-1]
        can_be_cut = chunk.length >= 2 * shortest
        is_spare = len(train) > 1 or not needs_train
        if is_spare and (chunk.length <= wanted or not can_be_cut):
            test.append(train.pop())
            wanted -= chunk.length
            continue
        if can_be_cut:
            border = max(chunk.start + shortest, chunk.end - wanted)
            train[-1] = chunk._replace(end=border)
            test.append(chunk._replace(start=border))
        break
    return train, sorted(test)
