"""A person before the camera: everything that the other modules make, put together, so that a frame is one call."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrfomm.heads.geometry import Shape, Template, dense, rotation, sample_shape, shape_vertices, turn_head
from mrfomm.heads.painted.look import Look, sample_look
from mrfomm.heads.painted.meshes import build_mesh
from mrfomm.heads.painted.textures import Canvas, paint_materials
from mrfomm.heads.rendering import Materials, Mesh, render
from mrfomm.heads.scene import Stage


class Identity(NamedTuple):
    """Who somebody is: the form of the head and the look."""

    shape: Shape
    look: Look


class Person(NamedTuple):
    """An identity made ready for rendering."""

    mesh: Mesh  # at rest
    units: np.ndarray  # float32 [units,N,3]: how face units move the sources of the mesh
    pivot: np.ndarray  # [3]: what the head turns about
    bounds: np.ndarray  # [2,3]: chin to top of the hair, ear to ear, back and front
    materials: Materials


def draw_identity(template: Template, rng: np.random.Generator) -> Identity:
    """A random person's Identity."""
    shape = sample_shape(template, rng)
    return Identity(shape, sample_look(shape, rng))


def texture_size(size: int) -> int:
    """Side of the textures for frames of a size: finer ones would only alias."""
    return int(np.clip(4 * size, 256, 1024))


def make_person(template: Template, canvas: Canvas, identity: Identity) -> Person:
    """Build the meshes and paint the textures of an Identity; the canvas' size suits frames as texture_size() says."""
    vertices = shape_vertices(template, identity.shape)
    return Person(
        build_mesh(template, vertices, identity.look),
        dense(template.units, len(vertices)),
        pivot=vertices[template.pivot].mean(0).astype(float),
        bounds=head_bounds(template, vertices),
        materials=paint_materials(canvas, identity.look),
    )


def head_bounds(template: Template, vertices: np.ndarray) -> np.ndarray:
    """Person.bounds of an identity's vertices [V,3]."""
    own = vertices[(template.follow == 1) & (template.vertices[:, 2] > -0.5)]  # the chin, not the neck
    return np.array([own.min(0), own.max(0)], float)


def pose_mesh(person: Person, angles: np.ndarray | Sequence[float], weights: np.ndarray) -> np.ndarray:
    """The person's vertices float64 [N,3] with (yaw, pitch, roll) in degrees and face unit weights [units]."""
    change = np.tensordot(np.asarray(weights, np.float32), person.units, 1)  # [V,3]
    mesh = person.mesh
    at_rest = mesh.vertices + change[mesh.source] * mesh.moved[:, None]
    return turn_head(at_rest, mesh.follow, rotation(*angles), person.pivot)


def render_frame(person: Person, stage: Stage, angles: np.ndarray | Sequence[float], weights: np.ndarray) -> np.ndarray:
    """One frame, uint8 [S,S,3] RGB; angles (yaw, pitch, roll) in degrees, weights [units] in [0,1]."""
    mesh = person.mesh._replace(vertices=pose_mesh(person, angles, weights))
    return render(mesh, person.materials, stage)
