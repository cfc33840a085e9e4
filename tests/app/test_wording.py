"""What visitors are told: no options, no commands, no folders."""

import ast
from pathlib import Path

import pytest

import mrfomm
from mrfomm.app.wording import COMMAND, COUNT, CROP, OTHERWISE, for_visitors

FOLDER = "/tmp/mrfomm-app-1"
SAID = {
    f"{FOLDER}/0ab/a b.png:\n no face": "a b.png: no face",
    f"{FOLDER}/0ab/a.png: no face found; leave out --crop, or crop it by hand": (
        f"a.png: no face found; untick “{CROP}”, or crop it by hand"
    ),
    f"{FOLDER}/0ab/a.png: the middle square is taken; give --crop to find the face, or crop it": (
        f"a.png: the middle square is taken; tick “{CROP}”, or crop it"
    ),
    "--count 8: a.mp4 has 9 frames, of which 7 are sharp; choose no more than that": (
        f"a.mp4 has 9 frames, of which 7 are sharp; set “{COUNT}” to no more than that, not 8"
    ),
    "a.mp4: no sound; leave it out (--no-audio), or encode it": "a.mp4: no sound; cut it out, or encode it",
    "a singular jacobian; choose another --start": "a singular jacobian; give another clip",
    "a.mp4: cut (x); get a whole copy, or keep what is left of it: ffmpeg -i a.mp4 b.mp4": (
        "a.mp4: cut (x); get a whole copy, or keep what is left of it with a video editor"
    ),
    "the picture is not finite; try other --weights": f"the picture is not finite{OTHERWISE}",
    "--context cudnn: no GPU; use --context cpu": f"this page is not set up for that{OTHERWISE}",
    "mrfomm-result.mp4: broken -x": "mrfomm-result.mp4: broken -x",
}
REPLACED = (
    "leave out --crop",
    "give --crop to find the face",
    "choose no more than that",
    "leave it out (--no-audio)",
    "choose another --start",
    "keep what is left of it: ",
)


@pytest.mark.parametrize(("text", "shown"), SAID.items())
def test_words_of_the_page(text, shown):
    assert for_visitors(text, FOLDER) == shown


def test_no_text_of_a_job_shows_an_option():
    rooms = [Path(mrfomm.__file__).with_name(name) for name in ("reenactment", "media", "onnx", "model", "networks")]
    trees = [ast.parse(path.read_text()) for room in rooms for path in room.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [node.value for node in nodes if isinstance(node.value, str)]
    assert not [text for text in texts if COMMAND.search(for_visitors(text, FOLDER))]
    assert [words for words in REPLACED if not any(words in text for text in texts)] == []
