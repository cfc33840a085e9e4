"""MakeHuman's meshes of hair, eyes, clothes and so on, fitted to vertices of its base mesh by their numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mrfomm.errors import AnyPath, UserError, named
from mrfomm.heads.geometry import HEADS

BASE_VERTICES = 19158
Value = TypeVar("Value")


class Fit(NamedTuple):
    """What the bundled head has of MakeHuman's base mesh: the template's V vertices, and H helpers beside them."""

    row: np.ndarray  # int [BASE_VERTICES]: the place of a vertex among the V + H, -1 for one that isn't there
    anchors: np.ndarray  # int [H]: the template's vertex that a helper moves with
    offsets: np.ndarray  # float64 [H,3]: and the way from there to it, decimetres
    mirrored: np.ndarray  # int [V+H]: a vertex' mirror image
    uv: np.ndarray  # float32 [T,3,2] in [0,1], v down: where the template's skin is in MakeHuman's skins


class Part(NamedTuple):
    """A mesh, and what fits it to the V + H vertices of a head."""

    corners: np.ndarray  # int [N,3]: a vertex lies near these three,
    weights: np.ndarray  # float64 [N,3]: at their mean with these weights,
    offsets: np.ndarray  # float64 [N,3]: and this far beside it on the base mesh,
    rulers: np.ndarray  # int [3,2]: for x, y, z two vertices whose distance stretches the offset,
    lengths: np.ndarray  # float64 [3]: and their distance on the base mesh
    hidden: np.ndarray  # int [K]: vertices of the skin that it covers
    triangles: np.ndarray  # int32 [T,3]
    uv: np.ndarray  # float32 [T,3,2] in [0,1], v down


def load_fit(path: AnyPath = HEADS) -> Fit:
    """Read the Fit beside the template."""
    with np.load(path) as file:
        fields = ("numbers", "anchors", "offsets", "mirrored", "uv")
        numbers, anchors, offsets, mirrored, uv = (file[f"fit_{name}"] for name in fields)
    row = np.full(BASE_VERTICES, -1)
    row[numbers] = np.arange(len(numbers))
    return Fit(row, anchors.astype(int), offsets / 1000, mirrored, uv.astype(np.float32) / 65535)


def with_helpers(fit: Fit, values: np.ndarray) -> np.ndarray:
    """Values [...,V,C] of the template's vertices, and after them those of the helpers' anchors: [...,V+H,C]."""
    return np.concatenate([values, values[..., fit.anchors, :]], -2)


def mirror(part: Part, fit: Fit) -> Part:
    """The part on the other side, where it isn't symmetric."""
    return part._replace(corners=fit.mirrored[part.corners], offsets=part.offsets * [-1, 1, 1])


def place(part: Part, fit: Fit, vertices: np.ndarray) -> np.ndarray:
    """The part's vertices float64 [N,3] on a head's vertices [V,3]."""
    everything = with_helpers(fit, vertices.astype(np.float64))
    everything[len(vertices) :] += fit.offsets
    ends = everything[part.rulers, np.arange(3)[:, None]]  # [3,2]: an axis' two vertices, along that axis
    return blend(part, everything) + part.offsets * (np.abs(ends[:, 0] - ends[:, 1]) / part.lengths)


def blend(part: Part, values: np.ndarray) -> np.ndarray:
    """Values [...,V+H,C] at the part's vertices: [...,N,C]."""
    return np.einsum("...nkc,nk->...nc", values[..., part.corners, :], part.weights.astype(values.dtype))


def read_part(stem: Path, fit: Fit) -> Part:
    """Read ``stem.mhclo`` and ``stem.obj``; triangles whose vertices the head doesn't have, below it, are left out.

    Raises:
        UserError: one can't be read or is damaged, or they don't belong together.
    """
    rows, rulers, hidden = _read(stem.with_name(f"{stem.name}.mhclo"), _parse_fit)
    count, polygons, uv = _read(stem.with_name(f"{stem.name}.obj"), _parse_mesh)
    if count != len(rows):
        raise UserError(f"{stem}.obj: has {count} vertices, {stem.name}.mhclo fits {len(rows)}; get both again")
    corners = fit.row[rows[:, :3].astype(int)]
    polygons = polygons[(corners[polygons[..., 0]] >= 0).all((1, 2))]
    used, triangles = np.unique(polygons[..., 0], return_inverse=True)
    covered, ends = fit.row[hidden], fit.row[rulers[:, :2].astype(int)]
    if ends.min() < 0:
        raise UserError(f"{stem}.mhclo: its scale is measured where the head has no vertices; get it again")
    return Part(
        *(corners[used], rows[used, 3:6], rows[used, 6:]),
        *(ends, rulers[:, 2], covered[covered >= 0]),
        triangles.reshape(-1, 3).astype(np.int32),
        np.clip(uv[polygons[..., 1]] * [1, -1] + [0, 1], 0, 1).astype(np.float32),
    )


def _read(path: Path, parse: Callable[[list[list[str]]], Value]) -> Value:
    """What ``parse`` makes of the words of a text file's lines."""
    with named(path, "can't be read", "docs/heads.md lists the files of --assets"):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return parse([line.split() for line in text.splitlines() if line.strip() and line[0] != "#"])
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error!r}); get it again") from error


def _parse_fit(lines: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a .mhclo file: a row [N,9] of corners, weights and offset for every vertex; for x, y, z [3,3] two vertices and
    their distance; numbers [K] of vertices that are covered."""
    rows, covered, rulers, section = [], [], {}, ""
    for words in lines:
        if not words[0].isdigit():
            section = words[0] if words[0] in ("verts", "delete_verts") else section
            if words[0].endswith("_scale"):
                rulers[words[0][0]] = words[1:4]
        elif section == "verts":
            rows.append([*words, *"000"] if len(words) == 6 else [*3 * words, *"100000"] if len(words) == 1 else words)
        else:
            covered += words
    ranges = [word.partition("-")[::2] for word in " ".join(covered).replace(" - ", "-").split()]
    hidden = [number for first, last in ranges for number in range(int(first), int(last or first) + 1)]
    numbers, scales = np.array(rows, float), np.array([rulers[axis] for axis in "xyz"], float)
    if not 0 <= numbers[:, :3].min() <= max(numbers[:, :3].max(), *hidden, *scales[:, 0]) < BASE_VERTICES:
        raise ValueError(f"made for another mesh than MakeHuman's of {BASE_VERTICES} vertices")
    return numbers[:, :9], scales, np.array(hidden, int)


def _parse_mesh(lines: list[list[str]]) -> tuple[int, np.ndarray, np.ndarray]:
    """Of an .obj file: the number of vertices; the vertex and the uv of triangles' corners int [T,3,2]; uv [U,2]."""
    uv = np.array([words[1:3] for words in lines if words[0] == "vt"], float)
    faces = [[word.split("/")[:2] for word in words[1:]] for words in lines if words[0] == "f"]
    triangles = [[face[0], *pair] for face in faces for pair in zip(face[1:], face[2:])]
    corners, count = np.array(triangles, int) - 1, sum(words[0] == "v" for words in lines)
    if not 0 <= corners.min() <= corners[..., 0].max() < count or corners[..., 1].max() >= len(uv):
        raise ValueError("a face has a corner that isn't there")
    return count, corners, uv
