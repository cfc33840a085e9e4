"""The record of what was cut into a folder, by which a stopped run goes on and videos keep their places."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from mrfomm.errors import UserError

_CLIP = re.compile(r"(?P<split>train|test)/(?P<identity>[^/#]+)#[^/#]+#(?P<start>\d+)#(?P<end>\d+)(\.mp4)?")


class Settings(NamedTuple):
    """What the clips depend on, as of the command's options: the same in all runs into one folder."""

    size: int
    margin: float
    test_share: float
    min_frames: int
    min_face: int
    lossless: bool
    split: str  # by "identity", or "time" where there is one only
    boxes: str  # of "faces" found here, or of the "metadata"


class Done(NamedTuple):
    """What came of a video: the paths of its clips in the folder, and the digest of what they were cut from."""

    clips: tuple[str, ...]
    digest: str | None


class Manifest:
    """``manifest.jsonl`` in a folder: a line for the settings, and one for each finished video, whose last one counts.

    Opening it takes away a line that a killed run left unfinished. It begins anew where earlier runs had other
    settings, but didn't cut a clip.

    Raises:
        UserError: earlier runs had other settings, or the file isn't such a record.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.done: dict[str, Done] = {}  # path of a finished video below RAW -> what came of it
        self._path = folder / "manifest.jsonl"
        text = self._path.read_text(encoding="utf-8", errors="surrogateescape") if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(self._path, len(whole.encode(errors="surrogateescape")))
        changed = self._read(whole, settings) if whole else ""
        if changed and self.clips():
            raise UserError(f"{folder}: made with other settings ({changed}); choose another --output")
        if changed or not whole:
            self.done.clear()
            self._path.unlink(missing_ok=True)
            self._append(settings._asdict())

    def _read(self, text: str, settings: Settings) -> str:
        """Fill ``done``; returns the settings that were others."""
        try:
            earlier, *records = map(json.loads, text.splitlines())
            self.done = {record["video"]: Done(tuple(record["clips"]), record.get("digest")) for record in records}
            if not all(self.clips()):
                raise ValueError(text)
            # of several people's videos, all but one's may be gone by now
            wanted = {key: (value, "identity") for key, value in settings._asdict().items()}
            return ", ".join(f"{key} was {earlier[key]}" for key in wanted if earlier[key] not in wanted[key])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self._path}: not a record that this command wrote; choose another --output") from error

    def clips(self, without: str = "") -> list[Any]:
        """All clips as matches: [0] is the path in the folder, further groups split, identity, start and end.

        ``without``: a video whose clips don't count.
        """
        return [_CLIP.fullmatch(clip) for video in self.done for clip in self.done[video].clips if video != without]

    def add(self, video: str, done: Done) -> None:
        """Enter a video."""
        self.done[video] = done
        self._append({"video": video, **done._asdict()})

    def _append(self, record: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
