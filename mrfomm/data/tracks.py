"""From the places of a face to stretches of a video that one fixed square can show, as FOMM cuts VoxCeleb."""

from typing import NamedTuple

from mrfomm.crop import Box

MIN_IOU = 0.25  # with the face's first place: below it, the face has left (FOMM's video-preprocessing)
MAX_FRAMES = 1024  # of one chunk (same source)


class Region(NamedTuple):
    """A rectangle, in pixels or in shares of the frame."""

    left: float
    top: float
    right: float
    bottom: float

    def union(self, other):
        """The smallest Region around both."""
        left, top = min(self.left, other.left), min(self.top, other.top)
        return Region(left, top, max(self.right, other.right), max(self.bottom, other.bottom))

    def iou(self, other):
        """Area of the intersection over area of the union, in 0..1."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(width, 0) * max(height, 0)
        return shared / (self._area() + other._area() - shared)

    def scaled(self, across, down):
        """The Region with x multiplied by ``across`` and y by ``down``."""
        return Region(self.left * across, self.top * down, self.right * across, self.bottom * down)

    def square(self):
        """The smallest square Box around it, with the same centre."""
        size = max(self.right - self.left, self.bottom - self.top)
        left, top = (self.left + self.right - size) / 2, (self.top + self.bottom - size) / 2
        return Box(round(left), round(top), round(size))

    def _area(self):
        return (self.right - self.left) * (self.bottom - self.top)


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

    A place goes on with the open chunk whose first place it overlaps most, or else opens a new one: so a single
    false detection doesn't end a chunk. A chunk closes when its face isn't seen for ``max_gap`` frames.

    Args:
        track: iterable of (frame number, Region of the face), ascending; frames without a face are left out.
        max_gap: largest distance of consecutive frames of one chunk.

    Returns:
        List of Chunk, sorted; they may overlap in time. The last frame of each is one of the track.
    """
    closed, opened = [], []  # of [first Region, Chunk]
    for number, region in track:
        closed += [entry for entry in opened if number - entry[1].end >= max_gap]
        opened = [entry for entry in opened if number - entry[1].end < max_gap]
        fitting = [entry for entry in opened if _fits(*entry, number, region)]
        if fitting:
            entry = max(fitting, key=lambda entry: entry[0].iou(region))
            entry[1] = Chunk(entry[1].start, number + 1, entry[1].region.union(region))
        else:
            opened.append([region, Chunk(number, number + 1, region)])
    return sorted(chunk for _, chunk in closed + opened)


def _fits(first, chunk, number, region):
    return number - chunk.start < MAX_FRAMES and first.iou(region) >= MIN_IOU


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
