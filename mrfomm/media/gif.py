"""The blocks of a gif (GIF89a)."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO


def has_trailer(file: BinaryIO) -> bool:
    """Walk the blocks of a gif (GIF89a) to its semicolon. A file without one is refused, though browsers show it."""
    file.seek(10)
    file.seek(2 + _palette_length(file.read(1)), os.SEEK_CUR)
    while True:
        kind = file.read(1)
        if kind == b"!":  # an extension: its kind, then sub-blocks
            file.seek(1, os.SEEK_CUR)
        elif kind == b",":  # an image: place and flags, its own palette, the width of a code, then sub-blocks
            file.seek(8, os.SEEK_CUR)
            file.seek(_palette_length(file.read(1)) + 1, os.SEEK_CUR)
        else:
            return kind == b";"
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)


def _palette_length(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def with_comment(source: Path, target: Path, comment: str) -> Path:
    """Copy a gif with a comment extension before its first frame (GIF89a, 24), which FFmpeg reads but doesn't write."""
    text = comment.encode()
    blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    with open(source, "rb") as old, open(target, "wb") as new:
        head = old.read(13)  # signature and logical screen
        new.write(head + old.read(_palette_length(head[10:11])) + extension)
        shutil.copyfileobj(old, new)
    return target
