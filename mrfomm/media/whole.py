"""Whether a file was cut short, where FFmpeg reads such files without a word."""

import os
from typing import BinaryIO

from av.container import InputContainer

from mrfomm.errors import AnyPath, UserError
from mrfomm.media.gif import has_trailer

_SEARCHED = 1 << 26  # bytes


def check_whole(container: InputContainer, path: AnyPath) -> None:
    """Refuse an avi, gif, mp4 or mov that ends too early. What comes after its end doesn't matter.

    Raises:
        UserError: it was cut short.
    """
    kind, size = container.format.name, os.path.getsize(path)
    with open(path, "rb") as file:
        if kind == "avi":
            is_cut = 8 + int.from_bytes(file.read(8)[4:], "little") > size  # RIFF: a name, then the length of the rest
        elif kind == "gif":
            is_cut = not has_trailer(file)
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
