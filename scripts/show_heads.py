"""Pictures of rendered heads: `python scripts/show_heads.py conventions -o docs/heads-conventions.png`.

``conventions`` shows the signs of the labels on one head; ``people`` is a contact sheet of random people at rest,
``moments`` one of frames from the middle of their clips, ``turns`` shows some of them from all sides, with open mouths
and closed eyes.
"""

import cv2
import numpy as np
from PIL import Image

from mrfomm.errors import command_parser, run_command
from mrfomm.heads import motion
from mrfomm.heads.motion import AXES, EXPRESSIONS, both, weights_of
from mrfomm.heads.person import render_frame
from mrfomm.heads.photographed.camera import film
from mrfomm.heads.scene import PAPER_FRAMING, Backdrop, Scene, make_stage, paper_lights, sample_scene
from mrfomm.heads.studio import open_studio
from mrfomm.reenactment.pictures import tile
from mrfomm.store import whole_file

TURNS = {"yaw": (-60, -30, 0, 30, 60), "pitch": (-30, -15, 0, 15, 30), "roll": (-30, -15, 0, 15, 30)}
FACES = ({"jawOpen": 0.7}, both(eyeBlink=1), EXPRESSIONS["laugh"], both(eyeLookDown=0.8), EXPRESSIONS["doubt"])
MOMENTS = 40  # frames of a clip


def conventions(studio, rng, options):
    """A row for each angle, a head for each of its values."""
    person = studio.person(rng)
    backdrop = Backdrop("plain", ((0.75, 0.77, 0.8),) * 3, 0)
    scene = Scene(paper_lights()["soft"], backdrop, PAPER_FRAMING)
    stage, face = make_stage(person.bounds, scene, options.size), np.zeros(len(studio.template.units))
    for axis, values in TURNS.items():
        poses = [tuple(value * (axis == name) for name in AXES) for value in values]
        frames = [render_frame(person, stage, pose, face) for pose in poses]
        yield [labelled(f, f"{axis} {v:+d}") for f, v in zip(frames, values)]


def people(studio, rng, options):
    """Rows of eight random people at rest."""
    for _ in range(options.rows):
        yield [at_rest(studio, rng, options.size) for _ in range(8)]


def at_rest(studio, rng, size):
    person = studio.person(rng)
    stage = make_stage(person.bounds, sample_scene(rng), size)
    return render_frame(person, stage, (0, 0, 0), np.zeros(len(studio.template.units)))


def moments(studio, rng, options):
    """Rows of eight people in motion, as a camera takes them."""
    for _ in range(options.rows):
        yield [moment(studio, rng, options.size) for _ in range(8)]


def moment(studio, rng, size):
    person = studio.person(rng)
    stage = make_stage(person.bounds, sample_scene(rng), size)
    poses, faces = (
        motion.random_motion(MOMENTS, rng),
        motion.random_performance(list(studio.template.units), MOMENTS, rng),
    )
    return next(film(person, stage, [(poses[MOMENTS // 2], faces[MOMENTS // 2])], rng))


def turns(studio, rng, options):
    """Rows of one person each: yaw -60 to 60, FACES, looking down and up."""
    units = list(studio.template.units)
    for _ in range(options.rows):
        person = studio.person(rng)
        stage = make_stage(person.bounds, sample_scene(rng)._replace(framing=PAPER_FRAMING), options.size)
        shown = [((yaw, 0, 0), {}) for yaw in range(-60, 61, 15)]
        shown += [((0, 0, 0), face) for face in FACES] + [((0, -30, 0), {}), ((0, 30, 0), {})]
        yield [render_frame(person, stage, pose, weights_of(units, face)) for pose, face in shown]


def labelled(frame, text):
    """The frame with a line of text at its top."""
    frame = frame.copy()
    for color, thickness in (((255, 255, 255), 3), ((20, 20, 20), 1)):
        cv2.putText(frame, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, color, thickness, cv2.LINE_AA)
    return frame


PICTURES = {"conventions": conventions, "people": people, "moments": moments, "turns": turns}


def main(arguments=None):
    parser = command_parser(__doc__, "[OPTION ...] -o OUT PICTURE")
    parser.add_argument("picture", choices=PICTURES, help="what to draw")
    parser.add_argument("--seed", type=int, default=11, help="number that draws the people (%(default)s)")
    parser.add_argument("--size", type=int, default=192, help="side of a frame in pixels (%(default)s)")
    parser.add_argument("--rows", type=int, default=3, help="rows of people (%(default)s)")
    parser.add_argument("--assets", metavar="DIR", help="people with photographed skin: a folder of MakeHuman's assets")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="picture to write, .png or .jpg")
    options = parser.parse_args(arguments)
    studio, rng = open_studio(options.size, options.assets), np.random.default_rng(options.seed)
    sheet = tile(list(PICTURES[options.picture](studio, rng, options)), gap=0)
    with whole_file(options.output) as aside:
        Image.fromarray(sheet).save(aside, optimize=True, quality=93)


if __name__ == "__main__":
    run_command(main)
