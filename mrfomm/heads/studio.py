"""Where people are made: with painted looks, or with photographed ones from a folder of assets."""

from typing import NamedTuple

import numpy as np

from mrfomm.errors import AnyPath
from mrfomm.heads.geometry import Template, load_template
from mrfomm.heads.painted.canvas import Canvas, make_canvas
from mrfomm.heads.person import Person, draw_identity, make_person, texture_size
from mrfomm.heads.photographed.assets import Assets, load_assets
from mrfomm.heads.photographed.dressing import dress
from mrfomm.heads.photographed.outfit import sample_outfit


class Studio(NamedTuple):
    template: Template
    canvas: Canvas
    assets: Assets | None  # None for painted people

    def person(self, rng: np.random.Generator) -> Person:
        """A random Person; with and without assets equal numbers make equal heads."""
        identity = draw_identity(self.template, rng)
        if self.assets is None:
            return make_person(self.template, self.canvas, identity)
        shape = identity.shape  # photographed skin shows what is odd in a form
        identity = identity._replace(shape=shape._replace(local=tuple((n, 0.6 * w) for n, w in shape.local)))
        return dress(self.template, self.canvas, self.assets, identity, sample_outfit(identity, rng))


def open_studio(size: int, folder: AnyPath | None = None) -> Studio:
    """A Studio for frames of a size; a UserError if the folder of assets isn't as it must be."""
    template, side = load_template(), texture_size(size)
    assets = None if folder is None else load_assets(folder, template, side)
    return Studio(template, make_canvas(template, side), assets)
