"""The bundled references and driving clip: `python scripts/make_samples.py -o mrfomm/assets/samples`.

Three pictures of one rendered head, at yaw 0, -30 and 30, and a clip of another one in motion. The heads are of a
stream of random numbers of their own: no model was trained on them. The bundled clips and the paper's set beside them
come from `python -m mrfomm.heads` (mrfomm/assets/README.md has the commands).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from mrfomm.errors import command_parser, run_command
from mrfomm.heads import motion, scene
from mrfomm.heads.dataset import PROTOCOLS
from mrfomm.heads.person import render_frame
from mrfomm.heads.studio import open_studio
from mrfomm.media.writing import open_sink
from mrfomm.store import whole_file

YAWS = {"front": 0, "left": -30, "right": 30}
REFERENCE_SIZE, DRIVING_SIZE, FRAMES = 256, 128, 75


def make_head(size, rng):
    """A random Person, the Stage it stands on, and the names of face units."""
    studio = open_studio(size)
    person = studio.person(rng)
    around = scene.Scene(scene.paper_lights()["soft"], scene.sample_backdrop(rng), scene.PAPER_FRAMING)
    return person, scene.make_stage(person.bounds, around, size), list(studio.template.units)


def write_references(folder, rng):
    """``reference_front.png``, ``_left`` and ``_right``, each with the expression of a moment of talking."""
    person, stage, units = make_head(REFERENCE_SIZE, rng)
    faces = motion.random_performance(units, FRAMES, rng)[:: FRAMES // len(YAWS)]
    for (name, yaw), face in zip(YAWS.items(), faces):
        with whole_file(folder / f"reference_{name}.png") as aside:
            Image.fromarray(render_frame(person, stage, (yaw, 0, 0), face)).save(aside)


def write_driving(folder, rng):
    """``driving.mp4``: a head that looks around and talks."""
    person, stage, units = make_head(DRIVING_SIZE, rng)
    angles, faces = motion.random_motion(FRAMES, rng), motion.random_performance(units, FRAMES, rng)
    with open_sink(folder / "driving.mp4", motion.FPS) as sink:
        for pose, face in zip(angles, faces):
            sink.write(render_frame(person, stage, pose, face))


def main(arguments=None):
    parser = command_parser(__doc__, "[OPTION ...] -o DIR")
    parser.add_argument("--seed", type=int, default=0, help="number that draws the heads (%(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    stream = len(PROTOCOLS)  # one that no protocol has
    write_references(options.output, np.random.default_rng([options.seed, stream, 1]))
    write_driving(options.output, np.random.default_rng([options.seed, stream, 2]))


if __name__ == "__main__":
    run_command(main)
