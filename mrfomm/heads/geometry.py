"""The head's mesh: identities as sums of morph targets, rotation of the head on its neck, and projection.

Space is right-handed, in decimetres, seen from the front: x points to image right, y up, z to the camera; the origin
lies between the eyes. Angles are degrees: yaw > 0 turns the face to image right, pitch > 0 up, roll > 0 tilts the top
of the head to image right. A rotation is R = R_y(yaw) R_x(pitch) R_z(roll), applied to column vectors.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrfomm.bundled import ASSETS
from mrfomm.errors import AnyPath

HEADS = ASSETS / "heads.npz"

PARTS = ("skin", "eye", "lashes", "teeth", "tongue")  # what Mesh.part counts
SHAPES = ("oval", "round", "square", "rectangular", "triangular", "invertedtriangular", "diamond")
PEOPLE = ("african", "asian", "caucasian")  # MakeHuman's names of the three shapes it blends

# Standard deviation of the weights of the local morph targets, 1 being the end of MakeHuman's slider.
_DEVIATION = 0.36
_ASYMMETRY = 0.12


class Morphs(NamedTuple):
    """Sparse displacements of the vertices: those of target n are rows offsets[n] to offsets[n + 1] - 1.

    names: tuple of str; indices int [M]; deltas float32 [M,3] in decimetres.
    """

    names: tuple[str, ...]
    offsets: np.ndarray
    indices: np.ndarray
    deltas: np.ndarray

    def add(self, vertices: np.ndarray, name: str, weight: float) -> None:
        """Add ``weight`` times the target to vertices [V,3], in place."""
        number = self.names.index(name)
        rows = slice(self.offsets[number], self.offsets[number + 1])
        vertices[self.indices[rows]] += np.float32(weight) * self.deltas[rows]

    def dense(self, count: int) -> np.ndarray:
        """All displacements as float32 [targets, count, 3]."""
        full = np.zeros((len(self.names), count, 3), np.float32)
        for number, target in enumerate(full):
            rows = slice(self.offsets[number], self.offsets[number + 1])
            target[self.indices[rows]] = self.deltas[rows]
        return full


class Template(NamedTuple):
    """What the asset holds (docs/heads.md tells its origin).

    vertices float32 [V,3]; triangles int32 [T,3], anticlockwise seen from outside; part uint8 [T] counts PARTS;
    uv float32 [T,3,2] in [0,1], v down; follow float32 [V]: the share of the head's rotation a vertex takes;
    openness float32 [V] in [0,1]: the share of the sky a vertex sees; pivot int [P]: vertices whose mean the head turns
    about; identity and units: Morphs; masks: name -> float32 [S,S] in [0,1] on the skin's uv square.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    part: np.ndarray
    uv: np.ndarray
    follow: np.ndarray
    openness: np.ndarray
    pivot: np.ndarray
    identity: Morphs
    units: Morphs
    masks: dict[str, np.ndarray]

    def of(self, *parts: str) -> np.ndarray:
        """bool [T]: the triangles of some parts."""
        return np.isin(self.part, [PARTS.index(part) for part in parts])


class Shape(NamedTuple):
    """The form of one person's head.

    male, age (0 young, 1 old) in [0,1]; weight, muscle in [-1,1]; people: the shares of PEOPLE, sum 1; outline: a pair
    (name of SHAPES, weight); local: pairs (name of a morph target, weight).
    """

    male: float
    age: float
    weight: float
    muscle: float
    people: tuple[float, ...]
    outline: tuple[str, float]
    local: tuple[tuple[str, float], ...]


class Camera(NamedTuple):
    """A pinhole camera that looks along -z. position [3] in decimetres; focal and center [2] in pixels."""

    position: np.ndarray
    focal: float
    center: np.ndarray


def load_template(path: AnyPath = HEADS) -> Template:
    """Read the packed head data as a Template."""
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
    names = tuple(str(name) for name in data[f"{kind}_names"])
    deltas = data[f"{kind}_deltas"].astype(np.float32) / 1000  # MakeHuman's files have three decimals
    return Morphs(names, data[f"{kind}_offsets"], data[f"{kind}_indices"].astype(np.int32), deltas)


def sample_shape(template: Template, rng: np.random.Generator) -> Shape:
    """A random Shape, from a numpy Generator."""
    people = rng.dirichlet(np.full(len(PEOPLE), 0.45))
    # most faces are clearly of one gender: an arcsine distribution
    male = rng.beta(0.35, 0.35)
    outline = (SHAPES[rng.integers(len(SHAPES))], float(rng.uniform(0.1, 0.75)))
    return Shape(
        male=float(male),
        age=float(rng.beta(0.8, 1.7)),
        weight=float(np.clip(rng.normal(0, 0.45), -1, 1)),
        muscle=float(np.clip(rng.normal(0, 0.35), -1, 1)),
        people=tuple(float(share) for share in people),
        outline=outline,
        local=tuple(_sample_local(template.identity.names, rng)),
    )


def _sample_local(names: Sequence[str], rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Weights of the targets ``local/AXIS|SIDE``, where SIDE is - or + (or only one exists), and ``asym/...``."""
    axes = sorted({name.split("|")[0] for name in names if name.startswith(("local/", "asym/"))})
    present = set(names)
    for axis in axes:
        deviation = _ASYMMETRY if axis.startswith("asym/") else _DEVIATION
        weight = float(np.clip(rng.normal(0, deviation), -1, 1))
        target = f"{axis}|{'+' if weight > 0 else '-'}"
        if target in present:
            yield target, abs(weight)


def shape_vertices(template: Template, shape: Shape) -> np.ndarray:
    """The vertices of an identity with a neutral face, float32 [V,3], from the point between its eyes."""
    vertices = template.vertices.copy()
    for name, weight in (*_macro_targets(shape), (f"outline/{shape.outline[0]}|+", shape.outline[1]), *shape.local):
        if weight:
            template.identity.add(vertices, name, weight)
    eyes = np.unique(template.triangles[template.of("eye")])
    return vertices - vertices[eyes].mean(0)  # tall and short people: their eyes are the origin


def _macro_targets(shape: Shape) -> Iterator[tuple[str, float]]:
    """MakeHuman's interpolation: products of the weights of gender, age and people or build."""
    for gender, of_gender in (("male", shape.male), ("female", 1 - shape.male)):
        for age, of_age in (("young", 1 - shape.age), ("old", shape.age)):
            share = of_gender * of_age
            for people, of_people in zip(PEOPLE, shape.people):
                yield f"macro/{people}-{gender}-{age}|+", share * of_people
            for build, of_build in _builds(shape.weight, shape.muscle):
                yield f"macro/universal-{gender}-{age}-{build}|+", share * of_build


def _builds(weight: float, muscle: float) -> Iterator[tuple[str, float]]:
    for muscles, of_muscles in (("averagemuscle", 1 - abs(muscle)), (_extreme(muscle) + "muscle", abs(muscle))):
        for fat, of_fat in (("averageweight", 1 - abs(weight)), (_extreme(weight) + "weight", abs(weight))):
            yield f"{muscles}-{fat}", of_muscles * of_fat


def _extreme(value: float) -> str:
    return "max" if value > 0 else "min"


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation R = R_y(yaw) R_x(pitch) R_z(roll) as float64 [3,3]; degrees, signs as in the module's docstring."""
    (cy, cp, cr), (sy, sp, sr) = (function(np.deg2rad([yaw, pitch, roll])) for function in (np.cos, np.sin))
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return turn @ nod @ tilt


def angles(matrix: np.ndarray) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of a rotation [3,3], with |pitch| < 90: the inverse of :func:`rotation`."""
    yaw = np.arctan2(matrix[0, 2], matrix[2, 2])
    pitch = np.arcsin(np.clip(matrix[1, 2], -1, 1))
    roll = np.arctan2(matrix[1, 0], matrix[1, 1])
    yaw, pitch, roll = np.rad2deg([yaw, pitch, -roll])
    return float(yaw), float(pitch), float(roll)


def turn_head(vertices: np.ndarray, follow: np.ndarray, matrix: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Rotate vertices [N,3] about ``pivot`` [3], each by its share ``follow`` [N] of the angle of ``matrix`` [3,3].

    A vertex with share 1 gets the whole rotation, exactly; the neck twists in between; 0 stays.
    """
    axis, angle = _axis_angle(matrix)
    arms = vertices - pivot
    cos, sin = np.cos(follow * angle)[:, None], np.sin(follow * angle)[:, None]
    along = (arms @ axis)[:, None] * axis
    return pivot + arms * cos + np.cross(axis, arms) * sin + along * (1 - cos)


def _axis_angle(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit axis [3] and angle in radians, below pi, of a rotation matrix."""
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2
    sine = np.linalg.norm(skew)
    angle = np.arctan2(sine, (np.trace(matrix) - 1) / 2)
    return (skew / sine if sine > 1e-12 else np.array([0.0, 1.0, 0.0])), angle


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Pixels and depth of points [N,3]: float64 [N,3], x right and y down (a pixel's centre is at .5), distance."""
    relative = points - camera.position
    depth = -relative[:, 2]
    pixels = np.empty((len(points), 3))
    pixels[:, 0] = camera.center[0] + camera.focal * relative[:, 0] / depth
    pixels[:, 1] = camera.center[1] - camera.focal * relative[:, 1] / depth
    pixels[:, 2] = depth
    return pixels
