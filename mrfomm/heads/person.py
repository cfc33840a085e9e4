"""A person before the camera: everything that the other modules make, put together, so that a frame is one call."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrfomm.heads import rendering
from mrfomm.heads.appearance import Look, Scene
from mrfomm.heads.geometry import Camera, Shape, Template, project, rotation, shape_vertices, turn_head
from mrfomm.heads.meshes import Body, build_body
from mrfomm.heads.textures import Canvas, paint_backdrop, paint_materials

_LEAST_ASPECT = 1.5  # height over width of a head, below which it is framed by its width


class Identity(NamedTuple):
    """One person: the form of the head and the look."""

    shape: Shape
    look: Look


class Person(NamedTuple):
    """An identity made ready for rendering.

    body: meshes.Body; units float32 [units,V,3]: the face units; pivot [3]: what the head turns about; bounds [2,3]:
    chin to top of the hair, ear to ear, back and front; materials: rendering.Materials.
    """

    body: Body
    units: np.ndarray
    pivot: np.ndarray
    bounds: np.ndarray
    materials: rendering.Materials


class Stage(NamedTuple):
    """A scene made ready for one person and size: camera, light, backdrop float32 [S,S,3], and the shadow's focus."""

    camera: Camera
    light: rendering.Light
    backdrop: np.ndarray
    focus: tuple[np.ndarray, float]


def texture_size(size: int) -> int:
    """Side of the textures for frames of a size: finer ones would only alias."""
    return int(np.clip(4 * size, 256, 1024))


def make_person(template: Template, canvas: Canvas, identity: Identity) -> Person:
    """Build the meshes and paint the textures of an Identity.

    Args:
        template: geometry.Template.
        canvas: textures.Canvas of the template; its size suits frames as :func:`texture_size` says.
        identity: Identity.

    Returns:
        Person.
    """
    vertices = shape_vertices(template, identity.shape)
    body = build_body(template, vertices, identity.look)
    own = (template.follow == 1) & (template.vertices[:, 2] > -0.5)  # the chin, not the neck
    bounds = np.array([vertices[own].min(0), vertices[own].max(0)], float)
    materials = paint_materials(canvas, identity.look)
    units = template.units.dense(len(vertices))
    return Person(body, units, vertices[template.pivot].mean(0).astype(float), bounds, materials)


def make_stage(person: Person, scene: Scene, size: int) -> Stage:
    """Place camera, light and backdrop of an appearance.Scene for a person, as a Stage."""
    low, high = person.bounds
    middle = (low + high) / 2
    framing = scene.framing
    position = np.array([0.0, middle[1], high[2] - 0.5 + framing.distance])
    height = max(high[1] - low[1], _LEAST_ASPECT * (high[0] - low[0]))
    focal = framing.fill * size * framing.distance / height
    center = size * np.array([0.5 + framing.shift[0], 0.5 - framing.shift[1]])
    backdrop = paint_backdrop(scene.backdrop, size)
    reach = 1.6 * height  # with the hair
    return Stage(Camera(position, focal, center), scene.light, backdrop, (middle, reach))


def pose_body(person: Person, angles: np.ndarray | Sequence[float], weights: np.ndarray) -> np.ndarray:
    """The person's vertices float64 [N,3] with (yaw, pitch, roll) in degrees and face unit weights [units]."""
    change = np.tensordot(np.asarray(weights, np.float32), person.units, 1)  # [V,3]
    body = person.body
    at_rest = body.vertices + change[body.source] * body.moved[:, None]
    return turn_head(at_rest, body.follow, rotation(*angles), person.pivot)


def render_frame(person: Person, stage: Stage, angles: np.ndarray | Sequence[float], weights: np.ndarray) -> np.ndarray:
    """One frame, uint8 [S,S,3] RGB.

    Args:
        person: Person.
        stage: Stage.
        angles: (yaw, pitch, roll) in degrees.
        weights: float [units] in [0,1], the face units.
    """
    body = person.body
    vertices = pose_body(person, angles, weights)
    mesh = rendering.Mesh(vertices, body.triangles, body.uv, body.material, body.openness)
    pixels = project(vertices, stage.camera)
    return rendering.render(mesh, person.materials, stage.light, stage.camera, stage.backdrop, pixels, stage.focus)
