"""What FFmpeg doesn't do: it reads files that were cut short without a word, and writes no comment into a gif."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer

from mrfomm.errors import AnyPath, UserError

_SEARCHED = 1 << 26  # bytes


def check_whole(container: InputContainer, path: AnyPath) -> None:
    """Refuse an avi, gif, mp4 or mov that ends too early, by a UserError. What comes after its end doesn't matter."""
    kind, size = container.format.name, os.path.getsize(path)
    with open(path, "rb") as file:
        if kind == "avi":
            is_cut = 8 + int.from_bytes(file.read(8)[4:], "little") > size  # RIFF: a name, then the length of the rest
        elif kind == "gif":
            is_cut = not _has_trailer(file)
        else:
            is_cut = kind.startswith("mov") and _lacks_of_a_box(file, size)
    if is_cut:
        raise UserError(f"{path}: the file is cut short; copy or export it again")


def _lacks_of_a_box(file: BinaryIO, size: int) -> bool:
    """Whether the boxes with pictures or their index (ISO 14496-12, 4.2) reach over the end, or begin after damage."""
    start = 0
    while start < size:
        file.seek(start)
        head = file.read(16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if kind in (b"mdat", b"moov", b"moof") and start + length > size:
            return True
        if length < 8 or start + length > size:  # to the end of the file, or no box
            file.seek(start)
            return b"moof" in file.read(_SEARCHED)
        start += length
    return False


def _has_trailer(file: BinaryIO) -> bool:
    """Walk the blocks of a gif (GIF89a) to its semicolon. A file without one is refused, though browsers show it."""
    file.seek(10)
    file.seek(2 + _palette_length(file.read(1)), os.SEEK_CUR)
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b"!":  # an extension: its kind, then sub-blocks
            file.seek(1, os.SEEK_CUR)
        else:  # an image: place and flags, its own palette, the width of a code, then sub-blocks
            file.seek(8, os.SEEK_CUR)
            file.seek(_palette_length(file.read(1)) + 1, os.SEEK_CUR)
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return kind == b";"


def _palette_length(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def add_comment(gif: Path, comment: str) -> None:
    """Put a comment extension before the first frame of a gif (GIF89a, 24), which FFmpeg reads."""
    text, aside = comment.encode(), gif.with_name("comment.gif")
    blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
    with open(gif, "rb") as old, open(aside, "wb") as new:
        head = old.read(13)  # signature and logical screen
        new.write(head + old.read(_palette_length(head[10:11])))
        new.write(b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0")
        shutil.copyfileobj(old, new)
    aside.replace(gif)
