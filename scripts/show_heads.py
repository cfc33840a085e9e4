"""Pictures of rendered heads: `python scripts/show_heads.py conventions -o docs/heads-conventions.png`.

``conventions`` shows the signs of the labels on one head; ``people`` is a contact sheet of random people.
"""

import cv2
import numpy as np
from PIL import Image

from mrfomm.errors import command_parser, run_command
from mrfomm.heads.geometry import load_template
from mrfomm.heads.motion import AXES
from mrfomm.heads.painted.canvas import make_canvas
from mrfomm.heads.person import draw_identity, make_person, render_frame, texture_size
from mrfomm.heads.scene import PAPER_FRAMING, Backdrop, Scene, make_stage, paper_lights, sample_scene
from mrfomm.store import whole_file

SIZE = 192
TURNS = {"yaw": (-60, -30, 0, 30, 60), "pitch": (-30, -15, 0, 15, 30), "roll": (-30, -15, 0, 15, 30)}
COLUMNS = 8


def conventions(template, canvas, seed):
    """A row for each angle, a head for each of its values: uint8 [H,W,3]."""
    person = make_person(template, canvas, draw_identity(template, np.random.default_rng(seed)))
    backdrop = Backdrop("plain", ((0.75, 0.77, 0.8),) * 3, 0)
    scene = Scene(paper_lights()["soft"], backdrop, PAPER_FRAMING)
    stage, face = make_stage(person.bounds, scene, SIZE), np.zeros(len(template.units))
    rows = []
    for axis, values in TURNS.items():
        poses = [tuple(value * (axis == name) for name in AXES) for value in values]
        frames = [render_frame(person, stage, pose, face) for pose in poses]
        rows.append(np.concatenate([labelled(f, f"{axis} {v:+d}") for f, v in zip(frames, values)], 1))
    return np.concatenate(rows)


def people(template, canvas, seed):
    """A contact sheet of 24 random people at rest: uint8 [H,W,3]."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(3 * COLUMNS):
        person = make_person(template, canvas, draw_identity(template, rng))
        stage = make_stage(person.bounds, sample_scene(rng), SIZE)
        frames.append(render_frame(person, stage, (0, 0, 0), np.zeros(len(template.units))))
    return np.concatenate([np.concatenate(frames[i : i + COLUMNS], 1) for i in range(0, len(frames), COLUMNS)])


def labelled(frame, text):
    """The frame with a line of text at its top."""
    frame = frame.copy()
    for color, thickness in (((255, 255, 255), 3), ((20, 20, 20), 1)):
        cv2.putText(frame, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, color, thickness, cv2.LINE_AA)
    return frame


PICTURES = {"conventions": conventions, "people": people}


def main(arguments=None):
    parser = command_parser(__doc__, "[OPTION ...] -o OUT.png PICTURE")
    parser.add_argument("picture", choices=PICTURES, help="what to draw")
    parser.add_argument("--seed", type=int, default=11, help="number that draws the people (%(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.png", help="picture to write")
    options = parser.parse_args(arguments)
    template = load_template()
    canvas = make_canvas(template, texture_size(SIZE))
    with whole_file(options.output) as aside:
        Image.fromarray(PICTURES[options.picture](template, canvas, options.seed)).save(aside, optimize=True)


if __name__ == "__main__":
    run_command(main)
