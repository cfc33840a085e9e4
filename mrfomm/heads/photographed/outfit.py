"""Which of MakeHuman's assets somebody wears: names and numbers, drawn so that they go with a painted person's look."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mrfomm.heads.person import Identity
from mrfomm.heads.scene import Color, from_hsv

# name of a skin -> (male, age, light), each in 0..1
SKINS = {
    "middleage_darkskinned_female_diffuse": (0, 0.5, 0), "middleage_darkskinned_male_diffuse": (1, 0.5, 0),
    "middleage_lightskinned_male_diffuse2": (1, 0.5, 1), "old_darkskinned_female_diffuse": (0, 1, 0),
    "old_darkskinned_male_diffuse": (1, 1, 0), "old_lightskinned_male_diffuse2": (1, 1, 1),
    "young_lightskinned_female_diffuse2": (0, 0, 1), "young_lightskinned_male_diffuse": (1, 0, 1),
    "young_lightskinned_male_diffuse3": (1, 0, 1),
}  # fmt: skip
# name -> its chance for a man and for a woman
HAIR = {
    "bob02": (0.05, 0.4), "braid01": (0, 0.8), "long01": (0.2, 1.0), "ponytail01": (0.2, 1.0), "short01": (1.0, 0.1),
    "short02": (1.0, 0.6), "short03": (0.6, 0.5), "short04": (1.0, 0.3),
}  # fmt: skip
CLOTHES = {
    "female_casualsuit01": (0, 1), "female_elegantsuit01": (0, 1), "female_sportsuit01": (0, 1),
    "male_casualsuit02": (1, 0.5), "male_casualsuit03": (1, 0.5), "male_casualsuit04": (1, 0.5),
    "male_casualsuit05": (1, 0.5), "male_casualsuit06": (1, 0.5), "male_elegantsuit01": (1.5, 0.3),
    "male_worksuit01": (0.5, 0.2),
}  # fmt: skip
# name -> the colour of the iris
EYES = {
    "blue": (0.30, 0.42, 0.58), "bluegreen": (0.30, 0.48, 0.50), "brown": (0.20, 0.12, 0.07),
    "brownlight": (0.36, 0.23, 0.11), "deepblue": (0.20, 0.32, 0.55), "green": (0.32, 0.42, 0.26),
    "grey": (0.48, 0.50, 0.52), "ice": (0.50, 0.60, 0.66), "lightblue": (0.40, 0.54, 0.68),
}  # fmt: skip
BROWS = tuple(f"eyebrow{number:03d}" for number in range(1, 13))
LASHES = tuple(f"eyelashes{number:02d}" for number in range(1, 5))
# unit of the face -> its greatest weight at rest, where the bundled head looks stern
RESTING = {
    "browInnerUp": 0.6, "browOuterUpLeft": 0.3, "browOuterUpRight": 0.3, "mouthSmileLeft": 0.25, "mouthSmileRight": 0.25
}  # fmt: skip
_PAINTED = ("bald", "buzz", "beanie")  # the styles of painted hair that have no better here


class Outfit(NamedTuple):
    skins: tuple[float, ...]  # the shares of SKINS, sum 1
    hair: str  # one of HAIR, or "" for painted hair or none
    brows: str
    lashes: str
    eyes: str
    clothes: str
    dye: Color  # factors of the clothes' own colours
    tint: float  # 0..1: how far the skin takes the painted one's tone
    flipped: bool  # whether the hair is its mirror image
    rest: tuple[float, ...]  # weights in 0..1 of RESTING in a neutral face


def sample_outfit(identity: Identity, rng: np.random.Generator) -> Outfit:
    """A random Outfit that goes with an Identity's sex and age, its tone of skin and colour of eyes."""
    shape, look = identity
    light = np.clip((np.mean(look.skin.tone) - 0.2) / 0.4, 0, 1)
    # a step from man to woman or from young to old makes a skin rare; from dark to light the shares follow the tone
    likeness = [
        np.exp(-4 * abs(male - shape.male) - 2 * abs(age - shape.age)) * (light if is_light else 1 - light)
        for male, age, is_light in SKINS.values()
    ]
    shares = (rng.gamma(0.8, size=len(SKINS)) + 1e-3) * likeness
    strength = rng.uniform(0.4, 1.5)
    return Outfit(
        skins=tuple((shares / shares.sum()).tolist()),
        hair="" if look.hair.style in _PAINTED else _choose(HAIR, shape.male, rng),
        brows=str(rng.choice(BROWS)),
        lashes=str(rng.choice(LASHES)),
        eyes=min(EYES, key=lambda name: float(np.linalg.norm(np.subtract(EYES[name], look.eyes.iris)))),
        clothes=_choose(CLOTHES, shape.male, rng),
        dye=from_hsv(rng.random(), rng.uniform(0, 0.6), strength),
        tint=rng.uniform(0.3, 0.9),
        flipped=bool(rng.random() < 0.5),
        rest=tuple((rng.uniform(0, 1, len(RESTING)) * list(RESTING.values())).tolist()),
    )


def _choose(chances: Mapping[str, tuple[float, float]], male: float, rng: np.random.Generator) -> str:
    weights = np.array(list(chances.values())) @ [male, 1 - male]
    return str(rng.choice(list(chances), p=weights / weights.sum()))
