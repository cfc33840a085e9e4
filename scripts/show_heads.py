"""Pictures of rendered heads: `python -m scripts.show_heads conventions -o docs/heads-conventions.png`.

``conventions`` shows the signs of the labels on one head; ``people`` is a contact sheet of random people at rest,
``moments`` one of frames from the middle of their clips, ``turns`` shows some of them from all sides, with open mouths
and closed eyes.
"""

import numpy as np
from PIL import Image

from mrfomm.errors import command_parser, run_command
from mrfomm.heads.motion import AXES, EXPRESSIONS, both, random_motion, random_performance, weights_of
from mrfomm.heads.person import render_frame
from mrfomm.heads.photographed.camera import film
from mrfomm.heads.scene import PAPER_FRAMING, Backdrop, Scene, make_stage, paper_lights, sample_scene
from mrfomm.heads.studio import open_studio
from mrfomm.store import whole_file
from scripts.sheets import degrees, sheet, stacked

TURNS = {"yaw": (-60, -30, 0, 30, 60), "pitch": (-30, -15, 0, 15, 30), "roll": (-30, -15, 0, 15, 30)}  # degrees
ACROSS = 8
FACES = {
    "jaw open": {"jawOpen": 0.7},
    "eyes closed": both(eyeBlink=1),
    "laugh": EXPRESSIONS["laugh"],
    "eyes down": both(eyeLookDown=0.8),
    "doubt": EXPRESSIONS["doubt"],
}
MOMENTS = 40  # frames of a clip


def conventions(studio, rng, options):
    """A sheet for each angle, a head for each of its values."""
    person = studio.person(rng)
    backdrop = Backdrop("plain", ((0.75, 0.77, 0.8),) * 3, 0)
    scene = Scene(paper_lights()["soft"], backdrop, PAPER_FRAMING)
    stage, face = make_stage(person.bounds, scene, options.size), np.zeros(len(studio.template.units))
    for axis, values in TURNS.items():
        poses = [tuple(value * (axis == name) for name in AXES) for value in values]
        yield [[render_frame(person, stage, pose, face) for pose in poses]], [degrees(v, axis) for v in values]


def crowd(frame):
    """A function that draws rows of eight random people, each by ``frame(studio, rng, size)``, numbered."""

    def draw(studio, rng, options):
        rows = [[frame(studio, rng, options.size) for _ in range(ACROSS)] for _ in range(options.rows)]
        first, last = range(1, options.rows * ACROSS, ACROSS), range(ACROSS, options.rows * ACROSS + 1, ACROSS)
        yield rows, [], [f"people\n{one} to {other}" for one, other in zip(first, last)]

    return draw


def at_rest(studio, rng, size):
    """A random person's face at rest, from the front."""
    person = studio.person(rng)
    stage = make_stage(person.bounds, sample_scene(rng), size)
    return render_frame(person, stage, (0, 0, 0), np.zeros(len(studio.template.units)))


def moment(studio, rng, size):
    """A random person in motion, as a camera takes it."""
    person = studio.person(rng)
    stage = make_stage(person.bounds, sample_scene(rng), size)
    poses = random_motion(MOMENTS, rng)
    faces = random_performance(list(studio.template.units), MOMENTS, rng)
    return next(film(person, stage, [(poses[MOMENTS // 2], faces[MOMENTS // 2])], rng))


def turns(studio, rng, options):
    """Rows of one person each: yaw -60 to 60, FACES, looking down and up."""
    units, rows = list(studio.template.units), []
    shown = {degrees(yaw, "yaw"): ((yaw, 0, 0), {}) for yaw in range(-60, 61, 15)}
    shown |= {name: ((0, 0, 0), face) for name, face in FACES.items()}
    shown |= {degrees(pitch, "pitch"): ((0, pitch, 0), {}) for pitch in (-30, 30)}
    for _ in range(options.rows):
        person = studio.person(rng)
        stage = make_stage(person.bounds, sample_scene(rng)._replace(framing=PAPER_FRAMING), options.size)
        rows.append([render_frame(person, stage, pose, weights_of(units, face)) for pose, face in shown.values()])
    yield rows, list(shown), [f"person {number}" for number in range(1, options.rows + 1)]


PICTURES = {"conventions": conventions, "people": crowd(at_rest), "moments": crowd(moment), "turns": turns}


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
    drawn = PICTURES[options.picture](studio, rng, options)  # arguments of sheet
    picture = Image.fromarray(stacked([sheet(*parts) for parts in drawn]))
    with whole_file(options.output) as aside:
        picture.save(aside, optimize=True, quality=93)


if __name__ == "__main__":
    run_command(main)
