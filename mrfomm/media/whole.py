"""Whether a file was cut short, where FFmpeg reads such files without a word."""

import os
from typing import BinaryIO

from av.container import InputContainer

from mrfomm.errors import AnyPath, UserError


def check_whole(container: InputContainer, path: AnyPath) -> None:
    """Refuse an avi or gif, or a movie with an index, that ends too early. What comes after its end doesn't matter.

    Raises:
        UserError: it was cut short.
    """
    size = os.path.getsize(path)
    if container.format.name == "avi":
        with open(path, "rb") as file:
            is_cut = 8 + int.from_bytes(file.read(8)[4:], "little") > size  # RIFF: a name, then the length of the rest
    elif container.format.name == "gif":
        with open(path, "rb") as file:
            is_cut = not _has_trailer(file)
    else:
        last = [stream.index_entries[-1] for stream in container.streams if len(stream.index_entries)]
        is_cut = any(entry.pos + entry.size > size for entry in last)
    if is_cut:
        raise UserError(f"{path}: the file is cut short; copy or export it again")


def _has_trailer(file: BinaryIO) -> bool:
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
