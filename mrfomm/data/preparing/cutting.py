"""From the places of a face to clips: stretches that one fixed square can show, as FOMM cuts VoxCeleb."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mrfomm.data.preparing.manifest import Done, Manifest, Settings
from mrfomm.data.preparing.raw import RawVideo, UnreadableVideo, unreadable_if_refused
from mrfomm.data.preparing.voxceleb import FPS, TEST_IDENTITIES, Utterance
from mrfomm.errors import UserError
from mrfomm.media.crop import LIFT, Box, Place, Region, crop, link, overlap, square_box
from mrfomm.media.images import fit
from mrfomm.media.reading import FrameSource, open_frames
from mrfomm.media.writing import open_sink

STRIDE = 5  # every which frame the face is looked for in
MAX_GAP = 3 * STRIDE  # frames: two detections in a row may fail
MAX_FRAMES = 1024  # of one chunk (FOMM's video-preprocessing)


class Chunk(NamedTuple):
    """Frames start..end-1 of a video, and the Region that the face stays in."""

    start: int
    end: int
    region: Region

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.end - self.start


class Cut(NamedTuple):
    """A clip to write: frames start..end-1, cut to a box."""

    target: Path
    start: int
    end: int
    box: Box


@dataclasses.dataclass(frozen=True)
class Cutter:
    """Cuts raw videos into a manifest's folder. ``test``: what :func:`choose_test_identities` returned."""

    settings: Settings
    manifest: Manifest
    test: set[str] | None
    find_face: Callable[[np.ndarray], Box | None]

    def cut(self, raw: RawVideo) -> None:
        """Cut a video and enter it in the manifest; nothing is done if it was cut from the same contents before.

        Raises:
            UnreadableVideo: it can't be read, or is damaged.
            UserError: a clip can't be written.
        """
        earlier = self.manifest.done.get(raw.key)
        with unreadable_if_refused():
            digest = raw.digest()
            if earlier and earlier.digest == digest:
                return
            source = open_frames(raw.path)
            frame_shape = next(iter(source)).shape
        cuts = self._plan(raw, source, frame_shape)
        if earlier:
            tqdm.write(f"{raw.path}: not known to be the file that its clips were cut from; cut again", file=sys.stderr)
            for clip in earlier.clips:
                _remove(self.manifest.folder / clip)
        write_cuts(source, cuts, self.settings.size)
        clips = tuple(cut.target.relative_to(self.manifest.folder).as_posix() for cut in cuts)
        self.manifest.add(raw.key, Done(clips, digest))

    def _plan(self, raw: RawVideo, source: FrameSource, frame_shape: tuple[int, ...]) -> list[Cut]:
        smallest = self.settings.min_face
        if raw.utterances:
            found = [(u.identity, chunk) for u in raw.utterances for chunk in spoken_chunks(u, frame_shape, source.fps)]
        else:
            chunks = find_chunks(face_track(source, self.find_face, smallest), MAX_GAP)
            found = [(raw.identity, chunk) for chunk in chunks]
        found = [(identity, chunk) for identity, chunk in found if chunk.region.square().size >= smallest]
        cuts = []
        for split, identity, chunk in self._split(raw, found):
            suffix = "" if self.settings.lossless else ".mp4"
            name = f"{identity}#{raw.name}#{chunk.start:06d}#{chunk.end:06d}{suffix}"
            lift = 0 if raw.utterances else LIFT
            box = square_box(chunk.region.square(), frame_shape, self.settings.margin, lift)
            cuts.append(Cut(self.manifest.folder / split / name, chunk.start, chunk.end, box))
        return cuts

    def _split(self, raw: RawVideo, found: list[tuple[str, Chunk]]) -> list[tuple[str, str, Chunk]]:
        """(split, identity, Chunk) of those that are long enough."""
        shortest, share = self.settings.min_frames, self.settings.test_share
        found = [(identity, chunk) for identity, chunk in found if chunk.length >= shortest]
        if self.test is not None:
            return [("test" if identity in self.test else "train", identity, chunk) for identity, chunk in found]
        chunks = [chunk for _, chunk in found]
        frames = Counter(train=0, test=0)  # of the other videos
        for clip in self.manifest.clips(without=raw.key):
            frames[clip["split"]] += int(clip["end"]) - int(clip["start"])
        wanted = round(share * (frames.total() + sum(chunk.length for chunk in chunks))) - frames["test"]
        if share and not frames["test"]:
            wanted = max(wanted, shortest)
        parts = zip(("train", "test"), split_by_time(chunks, wanted, shortest, not frames["train"]))
        return [(split, found[0][0], chunk) for split, part in parts for chunk in part]


def choose_test_identities(identities: set[str], share: float, manifest: Manifest) -> set[str] | None:
    """The identities whose clips go to test/; those of earlier runs stay where they are.

    VoxCeleb1's official test speakers if there are some, else the ``share`` (at least one) with the smallest
    hashes. None for a single identity: it is split by time.
    """
    if len(identities) == 1:
        return None
    clips = manifest.clips()
    train, test = ({clip["identity"] for clip in clips if clip["split"] == split} for split in ("train", "test"))
    official = identities & TEST_IDENTITIES
    if official and official != identities:
        return test | official - train
    wanted = max(1, round(share * len(identities))) if share else 0
    free = sorted(identities - train - test, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return test | set(free[: max(0, wanted - len(test))])


def find_chunks(track: Iterable[Place], max_gap: int) -> list[Chunk]:
    """Link the places of a face, by ascending frames, into Chunks, sorted; they may overlap in time.

    A place goes on with the open chunk whose first place it overlaps most, or else opens a new one. A chunk closes when
    its face isn't seen for ``max_gap`` frames. The last frame of each is one of the track.
    """

    def likeness(places: list[Place], place: Place) -> float:
        (start, first), (end, _), (number, region) = places[0], places[-1], place
        return overlap(first, region) if number - start < MAX_FRAMES and number - end <= max_gap else 0

    linked = (zip(*places) for places in link(track, likeness))
    return sorted(Chunk(min(n), max(n) + 1, functools.reduce(Region.union, regions)) for n, regions in linked)


def split_by_time(
    chunks: Iterable[Chunk], wanted: int, shortest: int, needs_train: bool
) -> tuple[list[Chunk], list[Chunk]]:
    """Give the last ``wanted`` frames of one person to the test set, or about as many: (training chunks, test chunks).

    No part is shorter than ``shortest``: a chunk that can't be cut in two such parts stays whole, and nothing is given
    for less. ``needs_train``: whether some of them must remain.
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


def _read(source: FrameSource, doing: str) -> Iterator[np.ndarray]:
    """Yield the frames, with a progress bar."""
    with unreadable_if_refused():
        yield from tqdm(source, desc=doing, total=source.count_hint, unit="frame", leave=False)


def face_track(source: FrameSource, find_face: Callable[[np.ndarray], Box | None], smallest: int) -> Iterator[Place]:
    """Yield (frame number, Region) of every STRIDE-th frame that shows a face of at least ``smallest`` pixels."""
    for number, frame in enumerate(_read(source, "finding faces")):
        face = find_face(frame) if number % STRIDE == 0 else None
        if face and face.size >= smallest:
            yield number, face.region()


def spoken_chunks(utterance: Utterance, frame_shape: tuple[int, ...], fps: float) -> Iterator[Chunk]:
    """Yield the Chunks of an Utterance, in frames and pixels of a video of ``frame_shape`` and ``fps``."""
    for chunk in find_chunks(utterance.track, MAX_GAP):
        # frame i of the video is shown at i / fps seconds
        start, end = (math.ceil(number * fps / FPS - 1e-6) for number in (chunk.start, chunk.end))
        yield Chunk(start, end, utterance.pixels(chunk.region, frame_shape))


def write_cuts(source: FrameSource, cuts: Sequence[Cut], size: int) -> None:
    """Write the clips, ``size`` pixels wide and high, in one pass over their video: all or none. They may overlap.

    Raises:
        UnreadableVideo: the video is damaged, or ends before a cut does.
        UserError: a clip can't be written.
    """
    last = max((cut.end for cut in cuts), default=0) - 1
    number, running = -1, {}
    try:
        with contextlib.ExitStack() as stack:
            for number, frame in enumerate(itertools.islice(_read(source, "cutting"), last + 1)):
                for cut in (cut for cut in cuts if cut.start == number):
                    finishing = stack.enter_context(contextlib.ExitStack())
                    running[cut] = finishing, finishing.enter_context(open_sink(cut.target, source.fps))
                for cut, (finishing, sink) in list(running.items()):
                    sink.write(fit(crop(frame, cut.box), size))
                    if number == cut.end - 1:
                        finishing.close()
                        del running[cut]
            if number < last:
                raise UnreadableVideo(f"{source.path}: ends before frame {last} of the metadata; get the whole video")
    except UserError:
        for cut in cuts:
            _remove(cut.target)
        raise


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
