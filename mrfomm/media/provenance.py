"""What a result says of itself: `python -m mrfomm.provenance FILE` prints it.

One line of JSON in the file's own comment (mp4, mov, mkv, avi, gif) or in that of every PNG of a folder:

  synthetic            true: nobody said or did what the picture shows
  digital_source_type  the same in IPTC's words, for programs that know them
  tool, version        of this project
  references           SHA-256 of each reference picture's file, or of the clip
                       that they were chosen from; null if it was none
  driving              SHA-256 of the driving clip's or motion file; for a folder,
                       of what `sha256sum` prints for its images in order
  weights              digest of the model's configuration and parameters

Names and dates are not in it. It helps the honest: it is neither signed nor hidden, and a service that encodes the
file again may drop it.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from mrfomm import __version__
from mrfomm.errors import AnyPath, UserError, check_is_file, command_parser, run_command
from mrfomm.media.images import list_images
from mrfomm.media.reading import read_comment
from mrfomm.store import sha256_of

TOOL = "mrfomm"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def describe(references: Iterable[AnyPath | None], driving: AnyPath | None, weights: str) -> str:
    """The comment for ``open_sink``, JSON of one ASCII line: of the references' files, the driving clip (each a file or
    a folder of frames), None for what was no file, and the model's digest (``model.model_digest``). A UserError if a
    file can't be read."""
    record = {
        "synthetic": True,
        "digital_source_type": SOURCE_TYPE,
        "tool": TOOL,
        "version": __version__,
        "references": [path and clip_digest(path) for path in references],
        "driving": driving and clip_digest(driving),
        "weights": weights,
    }
    return json.dumps(record)


def read(path: AnyPath) -> dict[str, Any]:
    """The dictionary that ``describe`` put into a video, a gif, a PNG or a folder of PNGs. A UserError if there is none
    in it, or the file can't be read."""
    comment = read_comment(path)
    try:
        record = json.loads(comment or "")
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("tool") != TOOL:
        raise UserError(f"{path}: says nothing of where it comes from; that doesn't make it genuine")
    return record


def _file_digest(path: AnyPath) -> str:
    check_is_file(path)  # reading a pipe or a device would not end
    return sha256_of(path)


def clip_digest(path: AnyPath) -> str:
    """What a clip is known by: SHA-256 of its file; for a folder, of what ``sha256sum`` prints for its images in order.
    A UserError if it can't be read."""
    if not os.path.isdir(path):
        return _file_digest(path)
    lines = [f"{_file_digest(image)}  {image.name}\n" for image in list_images(path)]
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    epilog = "A file without such a record is not thereby genuine: it is easily removed."
    parser = command_parser(__doc__, "FILE", epilog=epilog)
    parser.add_argument("file", metavar="FILE", help="video, gif, PNG or folder of PNGs that animate wrote")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    print(json.dumps(read(parse_arguments(arguments).file), indent=1))
    return 0


if __name__ == "__main__":
    run_command(main)
