"""What jobs say, in the words of the page: visitors know its labels and their files, no command line and no folder."""

import logging
import re

COUNT = "Frames from a clip of the face"
CROP = "Find the face and crop to it, in pictures and clips"
OTHERWISE = "; tell whoever runs this page"
WORDS = {
    r"leave out --crop": f"untick “{CROP}”",
    r"give --crop to find the face": f"tick “{CROP}”",
    r"--count (\d+): (.*); choose no more than that": rf"\2; set “{COUNT}” to no more than that, not \1",
    r"leave it out \(--no-audio\)": "cut it out",
    r"choose another --start": "give another clip",
    r"keep what is left of it: ffmpeg .*": "keep what is left of it with a video editor",
}
# an option, or something to type
COMMAND = re.compile(
    r"(?<![\w-])--[a-z]|pip install|python -m |ffmpeg -|\bmrfomm (export|convert)\b"
    r"|\b((animate|reconstruct|train)\.py|mrfomm-(animate|reconstruct|train))\b"
)
_log = logging.getLogger(__name__)


def for_visitors(text: str, folder: str) -> str:
    """One line without command lines and the places of temporary files, which are below ``folder``. What only whoever
    runs the page can mend is left out, and logged."""
    line = re.sub(rf"{re.escape(folder)}/(?:[^/\s]+/)?", "", " ".join(text.split()))
    for pattern, words in WORDS.items():
        line = re.sub(pattern, words, line)
    if not COMMAND.search(line):
        return line
    _log.warning("not shown to a visitor as it is: %s", line)
    parts = [part for part in line.split("; ") if not COMMAND.search(part)]
    return "; ".join(parts or ["this page is not set up for that"]) + OTHERWISE
