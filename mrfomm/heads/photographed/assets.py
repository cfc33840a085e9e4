"""The folder of MakeHuman's CC0 assets: which files it holds, read and checked. docs/heads.md says where they are."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError
from mrfomm.heads.geometry import Template
from mrfomm.heads.painted.canvas import bake
from mrfomm.heads.photographed.outfit import BROWS, CLOTHES, EYES, HAIR, LASHES, SKINS
from mrfomm.heads.photographed.parts import Fit, Part, load_fit, read_part
from mrfomm.heads.scene import single
from mrfomm.media.images import read_rgba
from mrfomm.store import sha256_of

_LEAST = 16  # pixels
# by how much the textures of small things are coarser: what is finer than a frame's pixels would be seen as noise
_COARSER = {"eyes": 8, "teeth": 4, "tongue": 4, "eyebrows": 4, "eyelashes": 4}
EYEBALLS, TEETH, TONGUE = "eyes/high-poly", "teeth/teeth_base", "tongue/tongue01"
# the folders of meshes, and their textures without suffix
PARTS = {
    **{f"hair/{name}": f"hair/{name}/{name}_diffuse" for name in HAIR},
    **{f"eyebrows/{name}": f"eyebrows/{name}/{name}" for name in BROWS},
    **{f"eyelashes/{name}": f"eyelashes/{name}/{name}" for name in LASHES},
    **{f"clothes/{name}": f"clothes/{name}/{name}_diffuse" for name in CLOTHES},
    TEETH: "teeth/materials/teeth",
    TONGUE: "tongue/tongue01/tongue01_diffuse",
    EYEBALLS: "eyes/materials/brown_eye",
}
_EYES = {f"eyes/{name}": f"eyes/materials/{name}_eye" for name in EYES}


class Assets(NamedTuple):
    """All that a folder holds, ready for frames of one size."""

    fit: Fit
    skins: np.ndarray  # uint8 [len(SKINS),S,S,3], on the canvas' square
    parts: dict[str, Part]  # by their folders
    textures: dict[str, np.ndarray]  # uint8 [S,S,4], by the same names, and eyes/COLOUR


def check_folder(folder: AnyPath) -> str:
    """SHA-256 of all files that are read; a UserError that names the first one missing, or the folder."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--assets {folder}: is no folder; docs/heads.md says where to get MakeHuman's assets")
    files = [root / name / f"{Path(name).name}.{end}" for name in PARTS for end in ("mhclo", "obj")]
    files += [_picture(_skins(root) / name) for name in SKINS]
    files += [_picture(root / name) for name in sorted({*PARTS.values(), *_EYES.values()})]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: missing; docs/heads.md lists the files of --assets")
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def _skins(folder: Path) -> Path:
    """Where the skins are: in MakeHuman's repository they have a folder of their own."""
    return folder / "skins/textures" if (folder / "skins/textures").is_dir() else folder / "skins"


def _picture(stem: Path) -> Path:
    """The picture of this name: the .jpg if there is one, else the .png."""
    jpeg, png = (stem.with_name(f"{stem.name}.{end}") for end in ("jpg", "png"))
    return jpeg if jpeg.exists() else png


def load_assets(folder: AnyPath, template: Template, size: int) -> Assets:
    """Read a folder for textures of a size, that of the canvas.

    Raises:
        UserError: a file is missing, damaged, or of a size that doesn't go with another's.
    """
    check_folder(folder)
    fit, root = load_fit(), Path(folder)
    return Assets(
        fit,
        _read_skins(_skins(root), template, fit, size),
        {name: read_part(root / name / Path(name).name, fit) for name in PARTS},
        {name: _read_texture(root, stem, size) for name, stem in {**PARTS, **_EYES}.items()},
    )


def _read_skins(folder: Path, template: Template, fit: Fit, size: int) -> np.ndarray:
    """The skins, moved from MakeHuman's layout to the canvas' [len(SKINS),size,size,3]."""
    corners = np.arange(3 * len(fit.uv)).reshape(-1, 3)
    where = bake(template.uv[template.of("skin")], corners, fit.uv.reshape(-1, 2), size)
    u, v = np.moveaxis(where * 2 * size - 0.5, -1, 0)
    skins, sides = [], []
    for path in (_picture(folder / name) for name in SKINS):
        image = _read_square(path)
        sides.append(len(image))
        if sides[-1] != sides[0]:
            raise UserError(
                f"{path}: {sides[-1]} pixels wide, the skins before it {sides[0]}; they must be of one size"
            )
        small = cv2.resize(image[..., :3], (2 * size, 2 * size), interpolation=cv2.INTER_AREA)
        skins.append(cv2.remap(small, u, v, cv2.INTER_LINEAR))
    return np.stack(skins)


def _read_square(path: Path) -> np.ndarray:
    image = read_rgba(path)
    height, width = image.shape[:2]
    if width != height or width < _LEAST:
        raise UserError(f"{path}: {width} x {height} pixels; it must be square, and {_LEAST} wide at least")
    return image


def _read_texture(root: Path, stem: str, size: int) -> np.ndarray:
    """A texture uint8 [size,size,4]; the colour of what is transparent doesn't count when pixels are averaged."""
    image, detail = single(_read_square(_picture(root / stem))), size // _COARSER.get(stem.split("/")[0], 1)
    image[..., :3] *= image[..., 3:] / 255
    coarse = cv2.resize(image, (detail, detail), interpolation=cv2.INTER_AREA)
    texture = single(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR))
    texture[..., :3] *= 255 / np.maximum(texture[..., 3:], 1)
    return np.clip(texture + 0.5, 0, 255).astype(np.uint8)
