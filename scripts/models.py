"""Models as the scripts' command lines name them, and who is in the recordings that drive them."""

from typing import NamedTuple

from eval.generation import Poses, reference_frames
from mrfomm.config import load_config
from mrfomm.errors import UserError
from mrfomm.model import load_model
from mrfomm.model.checkpoint import find_checkpoint
from mrfomm.reenactment.backends import Engine, open_engine
from mrfomm.reenactment.motion import Transfer
from mrfomm.reenactment.reenactor import Reenactor

POSES = Poses(tolerance=5, allow_missing=False)


class Model(NamedTuple):
    """One of the command line. single: takes one reference; pseudo: the best of the single-reference results."""

    name: str
    engine: Engine
    single: bool
    pseudo: bool

    def animate(self, references, driving, transfer):
        """Its pictures, a list of uint8 [S,S,3], of references (the first of them, if it is single) and frames."""
        if self.pseudo:
            raise UserError(f"{self.name}: pseudo chooses by a truth, which isn't looked at here; leave it out")
        return list(Reenactor(self.engine, references[: 1 if self.single else None]).animate(driving, transfer))

    def follow(self, references, sequence, start, numbers):
        """Its pictures of frames of a recording, in motion relative to frame ``start``, from the first reference."""
        frames = sequence.content.frames.read([start, *numbers], self.engine.size)
        return self.animate(references, frames, Transfer(start=0, anchor=0))[1:]


def parse_model(text):
    """NAME=CKPT[:MODE] -> Model."""
    name, separator, rest = text.partition("=")
    if not separator:
        raise UserError(f"{text}: give models as NAME=CKPT or NAME=CKPT:MODE")
    path, _, mode = rest.partition(":")
    model = load_model(path, mode if mode not in ("", "pseudo") else None)
    single = not mode and load_config(find_checkpoint(path) / "config.yaml").data.num_references == 1
    return Model(name, open_engine(model), single, mode == "pseudo")


def person_of(pattern):
    """Whose head it is, by the name of a pattern."""
    return pattern.partition("_")[0]


def references_of(pattern, size):
    """The three pictures of a pattern, uint8 [S,S,3]."""
    return list(pattern.sequences["yaw"].content.frames.read(reference_frames(pattern, 3, POSES), size))
