"""Raw videos: found in a folder, with VoxCeleb's utterances if there are some."""

import collections
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mrfomm.data.preparing.voxceleb import Utterance
from mrfomm.errors import UserError, check_is_file, named
from mrfomm.store import files_below, sha256_of

RAW_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".3g2", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".gif"),
)


class RawVideo(NamedTuple):
    """A video to cut, its path below RAW, parts of its clips' names, and its utterances if there is metadata."""

    path: Path
    key: str
    identity: str
    name: str
    utterances: tuple[Utterance, ...] = ()

    def digest(self) -> str:
        """SHA-256 of what its clips are cut by: the file's contents, and the utterances."""
        check_is_file(self.path)
        with named(self.path, "can't be read"):
            contents = sha256_of(self.path)
        return hashlib.sha256(f"{contents} {self.utterances}".encode()).hexdigest()


class UnreadableVideo(UserError):  # noqa: N818 - named as what it tells
    """A raw video that is skipped. Errors in writing are none: they end the run."""


@contextlib.contextmanager
def unreadable_if_refused() -> Iterator[None]:
    """Turn a UserError met inside into an UnreadableVideo."""
    try:
        yield
    except UserError as error:
        raise UnreadableVideo(str(error)) from error


def find_raw_videos(folder: Path, output: Path) -> tuple[list[RawVideo], collections.Counter[str]]:
    """The videos below a folder, sorted, and how many other files have which suffix. The first folder on the way to a
    video is its identity.

    Raises:
        UserError: no video, two whose clips would have the same names, or one that lies in ``output``.
    """
    found: dict[tuple[str, str], RawVideo] = {}
    left_out: collections.Counter[str] = collections.Counter()
    for path in files_below(folder):
        if path.suffix.lower() not in RAW_SUFFIXES and os.path.exists(path):  # a link to nothing might be a video
            left_out[path.suffix.lower() or "no suffix"] += 1
            continue
        if Path(os.path.realpath(output)) in Path(os.path.realpath(path)).parents:
            raise UserError(f"{path}: lies in {output} by a link; take the link away or choose another --output")
        below = path.relative_to(folder)
        first, *rest = below.with_suffix("").parts
        raw = RawVideo(path, below.as_posix(), _plain(first), _plain("-".join(rest or [first])))
        other = found.setdefault((raw.identity, raw.name), raw)
        if other is not raw:
            raise UserError(f"{path}: its clips would be named as those of {other.path.name}; rename one")
    if not found:
        raise UserError(f"{folder}: holds no video ({' '.join(RAW_SUFFIXES)}); give the folder of the raw videos")
    return list(found.values()), left_out


def _plain(name: str) -> str:
    """A part of a clip's name, without what separates parts, begins a suffix or leads to another folder."""
    return re.sub("[#./]", "_", name)


def match_utterances(raws: Iterable[RawVideo], utterances: list[Utterance]) -> list[RawVideo]:
    """The raw videos that have utterances, with them. A video in a folder takes those of its identity only.

    Raises:
        UserError: there is none.
    """
    by_video = collections.defaultdict(list)
    for utterance in utterances:
        by_video[utterance.video].append(utterance._replace(identity=_plain(utterance.identity)))
    matched = []
    for raw in raws:
        is_anyones = raw.identity == raw.name  # it lies in no folder
        own = tuple(u for u in by_video[raw.path.stem] if is_anyones or u.identity == raw.identity)
        if own:
            matched.append(raw._replace(name=_plain(raw.path.stem), utterances=own))
    found = sum(len(raw.utterances) for raw in matched)
    print(f"{found} of {len(utterances)} utterances have a video, {len(matched)} videos in all", file=sys.stderr)
    if not matched:
        raise UserError("no video is named as in the metadata; name them RAW/YOUTUBE_ID.mp4")
    return matched
