"""The form of a head: identities as sums of morph targets, and its rotation on the neck.

Space is right-handed, in decimetres, seen from the front: x points to image right, y up, z to the camera; the origin
lies between the eyes. Angles are degrees: yaw > 0 turns the face to image right, pitch > 0 up, roll > 0 tilts the top
of the head to image right. A rotation is R = R_y(yaw) R_x(pitch) R_z(roll), applied to column vectors.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mrfomm.bundled import ASSETS
from mrfomm.errors import AnyPath

HEADS = ASSETS / "heads.npz"

PARTS = ("skin", "eye", "lashes", "teeth", "tongue")  # what Template.part counts
SHAPES = ("oval", "round", "square", "rectangular", "triangular", "invertedtriangular", "diamond")
PEOPLE = ("african", "asian", "caucasian")  # MakeHuman's names of the three shapes it blends

# Standard deviation of the weights of the local morph targets, 1 being the end of MakeHuman's slider.
_DEVIATION = 0.36
_ASYMMETRY = 0.12

# name of a target -> the vertices int32 [M] that it moves, and by what, float32 [M,3] in decimetres
Morphs = dict[str, tuple[np.ndarray, np.ndarray]]


class Template(NamedTuple):
    """What the asset holds (docs/heads.md tells its origin)."""

    vertices: np.ndarray  # float32 [V,3]
    triangles: np.ndarray  # int32 [T,3], anticlockwise seen from outside
    part: np.ndarray  # uint8 [T], counts PARTS
    uv: np.ndarray  # float32 [T,3,2] in [0,1], v down
    follow: np.ndarray  # float32 [V] in [0,1]: the share of the head's rotation that a vertex takes
    openness: np.ndarray  # float32 [V] in [0,1]: the share of the sky that it sees
    pivot: np.ndarray  # int [P]: vertices whose mean the head turns about
    identity: Morphs
    units: Morphs  # of the face, with ARKit's names
    masks: dict[str, np.ndarray]  # name -> float32 [S,S] in [0,1] on the skin's uv square

    def of(self, *parts: str) -> np.ndarray:
        """bool [T]: the triangles of some parts."""
        return np.isin(self.part, [PARTS.index(part) for part in parts])

    def eyes(self) -> np.ndarray:
        """int [E]: the vertices of both eyes."""
        return np.unique(self.triangles[self.of("eye")])


class Shape(NamedTuple):
    """The form of one person's head."""

    male: float  # 0..1
    age: float  # 0 young, 1 old
    weight: float  # -1..1
    muscle: float  # -1..1
    people: tuple[float, ...]  # the shares of PEOPLE, sum 1
    outline: tuple[str, float]  # one of SHAPES, and its weight
    local: tuple[tuple[str, float], ...]  # names of further targets, and their weights


def load_template(path: AnyPath = HEADS) -> Template:
    """Read the packed head data."""
    with np.load(path) as file:
        data = dict(file)
    return Template(
        vertices=data["vertices"].astype(np.float32),
        triangles=data["triangles"].astype(np.int32),
        part=data["part"],
        uv=data["uv"].astype(np.float32) / 65535,
        follow=data["follow"].astype(np.float32) / 255,
        openness=data["openness"].astype(np.float32) / 255,
        pivot=data["pivot"],
        identity=_morphs(data, "identity"),
        units=_morphs(data, "units"),
        masks={key[5:]: data[key].astype(np.float32) / 255 for key in data if key.startswith("mask_")},
    )


def _morphs(data: dict[str, np.ndarray], kind: str) -> Morphs:
    names, offsets, indices, deltas = (data[f"{kind}_{field}"] for field in ("names", "offsets", "indices", "deltas"))
    indices, deltas = indices.astype(np.int32), deltas.astype(np.float32) / 1000  # MakeHuman's have three decimals
    return {str(name): (indices[a:b], deltas[a:b]) for name, a, b in zip(names, offsets, offsets[1:])}


def dense(morphs: Morphs, count: int) -> np.ndarray:
    """All displacements of ``count`` vertices as float32 [targets,count,3]."""
    full = np.zeros((len(morphs), count, 3), np.float32)
    for target, (rows, deltas) in zip(full, morphs.values()):
        target[rows] = deltas
    return full


def sample_shape(template: Template, rng: np.random.Generator) -> Shape:
    """A random Shape."""
    people = tuple(rng.dirichlet(np.full(len(PEOPLE), 0.45)).tolist())
    male = rng.beta(0.35, 0.35)  # most faces are clearly of one gender: an arcsine distribution
    outline = SHAPES[rng.integers(len(SHAPES))], rng.uniform(0.1, 0.75)
    age = rng.beta(0.8, 1.7)
    weight, muscle = (float(np.clip(rng.normal(0, deviation), -1, 1)) for deviation in (0.45, 0.35))
    return Shape(male, age, weight, muscle, people, outline, tuple(_sample_local(template.identity, rng)))


def _sample_local(names: Morphs, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Weights of the targets ``local/AXIS|SIDE``, where SIDE is - or + (or only one exists), and ``asym/...``."""
    for axis in sorted({name.split("|")[0] for name in names if name.startswith(("local/", "asym/"))}):
        deviation = _ASYMMETRY if axis.startswith("asym/") else _DEVIATION
        weight = float(np.clip(rng.normal(0, deviation), -1, 1))
        target = f"{axis}|{'+' if weight > 0 else '-'}"
        if target in names:
            yield target, abs(weight)


def shape_vertices(template: Template, shape: Shape) -> np.ndarray:
    """The vertices of an identity with a neutral face, float32 [V,3], from the point between its eyes."""
    vertices = template.vertices.copy()
    for name, weight in (*_macro_targets(shape), (f"outline/{shape.outline[0]}|+", shape.outline[1]), *shape.local):
        if weight:
            rows, deltas = template.identity[name]
            vertices[rows] += np.float32(weight) * deltas
    return vertices - vertices[template.eyes()].mean(0)  # tall and short people: their eyes are the origin


def _macro_targets(shape: Shape) -> Iterator[tuple[str, float]]:
    """MakeHuman's interpolation: products of the weights of gender, age and people or build."""
    for gender, of_gender in (("male", shape.male), ("female", 1 - shape.male)):
        for age, of_age in (("young", 1 - shape.age), ("old", shape.age)):
            share = of_gender * of_age
            for people, of_people in zip(PEOPLE, shape.people):
                yield f"macro/{people}-{gender}-{age}|+", share * of_people
            for muscle, of_muscle in _degrees(shape.muscle):
                for weight, of_weight in _degrees(shape.weight):
                    build = f"{gender}-{age}-{muscle}muscle-{weight}weight"
                    yield f"macro/universal-{build}|+", share * (of_muscle * of_weight)


def _degrees(value: float) -> tuple[tuple[str, float], tuple[str, float]]:
    """The two targets on both sides of a value in -1..1, with their shares."""
    return ("average", 1 - abs(value)), ("max" if value > 0 else "min", abs(value))


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation R = R_y(yaw) R_x(pitch) R_z(roll) as float64 [3,3]; degrees, signs as in the module's docstring."""
    (cy, cp, cr), (sy, sp, sr) = (function(np.deg2rad([yaw, pitch, roll])) for function in (np.cos, np.sin))
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return turn @ nod @ tilt


def angles(matrix: np.ndarray) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of a rotation [3,3], with |pitch| < 90: the inverse of :func:`rotation`."""
    yaw, roll = np.arctan2(matrix[0, 2], matrix[2, 2]), -np.arctan2(matrix[1, 0], matrix[1, 1])
    pitch = np.arcsin(np.clip(matrix[1, 2], -1, 1))
    return float(np.rad2deg(yaw)), float(np.rad2deg(pitch)), float(np.rad2deg(roll))


def turn_head(vertices: np.ndarray, follow: np.ndarray, matrix: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Rotate vertices [N,3] about ``pivot`` [3], each by its share ``follow`` [N] of the angle of ``matrix`` [3,3].

    A vertex with share 1 gets the whole rotation, exactly; the neck twists in between; 0 stays.
    """
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2
    sine = float(np.linalg.norm(skew))
    axis, angle = skew / max(sine, 1e-12), follow[:, None] * np.arctan2(sine, (np.trace(matrix) - 1) / 2)
    arms, cos = vertices - pivot, np.cos(angle)
    return pivot + arms * cos + np.cross(axis, arms) * np.sin(angle) + (arms @ axis)[:, None] * axis * (1 - cos)
