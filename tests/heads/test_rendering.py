"""The rasteriser against slow loops in plain numpy."""

import numpy as np
import pytest

pytest.importorskip("numba")

from mrfomm.heads import rendering
from mrfomm.heads.painted.canvas import bake
from mrfomm.heads.rendering import Materials, Mesh
from mrfomm.heads.scene import to_linear

SIDE = 24


def materials(texture, two_sided=True):
    count = len(texture)
    return Materials(
        texture=texture,
        wrap=np.zeros((count, 3), np.float32),
        gloss=np.zeros(count, np.float32),
        hardness=np.ones(count, np.float32),
        two_sided=np.full(count, two_sided),
        casts=np.ones(count, bool),
        soft=np.zeros(count, bool),
    )


def triangles_in_view(rng, count):
    """Random triangles as pixels [3*count,3] and a Mesh."""
    pixels = np.concatenate([rng.uniform(-4, SIDE + 4, (3 * count, 2)), rng.uniform(5, 9, (3 * count, 1))], 1)
    mesh = Mesh(
        vertices=rng.normal(size=(3 * count, 3)),
        triangles=np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
        uv=rng.uniform(0, 1, (count, 3, 2)).astype(np.float32),
        material=np.zeros(count, np.int32),
        openness=np.ones(3 * count, np.float32),
        source=np.zeros(3 * count, int),
        moved=np.zeros(3 * count),
        follow=np.ones(3 * count),
    )
    return pixels, mesh


def slow_rasterize(pixels, mesh, texture, two_sided):
    """One pixel and one triangle at a time: solve for the image's barycentric coordinates, then perspective."""
    triangle, weights = np.full((SIDE, SIDE), -1), np.zeros((SIDE, SIDE, 2))
    for y in range(SIDE):
        for x in range(SIDE):
            nearest = np.inf
            for number, corners in enumerate(mesh.triangles):
                a, b, c = pixels[corners]
                facing = np.linalg.det(np.stack([b[:2] - a[:2], c[:2] - a[:2]]))
                if facing > 0 and not two_sided:
                    continue
                system = np.stack([np.append(corner[:2], 1) for corner in (a, b, c)], 1)
                flat = np.linalg.solve(system, [x + 0.5, y + 0.5, 1])
                if flat.min() < 0:
                    continue
                inverse = flat / pixels[corners, 2]
                depth = 1 / inverse.sum()
                true = inverse * depth
                size = texture.shape[1]
                u, v = true @ mesh.uv[number] * size - 0.5
                if depth < nearest and slow_alpha(texture[0, ..., 3], u, v) >= 0.5:
                    nearest, triangle[y, x], weights[y, x] = depth, number, true[:2]
    return triangle, weights


def slow_alpha(alpha, u, v):
    last = len(alpha) - 1
    u, v = np.clip(u, 0, last), np.clip(v, 0, last)
    total = 0.0
    for row in (int(v), int(v) + 1):
        for column in (int(u), int(u) + 1):
            share = (1 - abs(u - column)) * (1 - abs(v - row))
            if share > 0:
                total += share * alpha[min(row, last), min(column, last)]
    return total / 255


@pytest.mark.parametrize("two_sided", [True, False])
def test_rasterize_against_a_slow_loop(two_sided):
    rng = np.random.default_rng(7)
    pixels, mesh = triangles_in_view(rng, 9)
    texture = rng.integers(0, 256, (1, 8, 8, 4), dtype=np.uint8)
    kinds = materials(texture, two_sided)
    surface = mesh.uv, mesh.material, texture, kinds.two_sided, kinds.soft
    points = np.concatenate([pixels[:, :2], 1 / pixels[:, 2:]], 1)
    triangle, weights, _ = rendering.rasterize(points, mesh.triangles, SIDE, surface)
    expected, expected_weights = slow_rasterize(pixels, mesh, texture, two_sided)
    np.testing.assert_array_equal(triangle, expected)
    assert len(np.unique(triangle)) > 5
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)


def test_neighbours_leave_no_gap():
    """Two triangles that share an edge cover the square between them."""
    corners = np.array([[2.3, 2.1], [20.7, 3.2], [21.1, 19.9], [3.4, 20.2]])
    pixels = np.concatenate([corners, np.full((4, 1), 0.2)], 1)
    triangle, _, nearest = rendering.rasterize(pixels, np.array([[0, 1, 2], [0, 2, 3]], np.int32), SIDE)
    np.testing.assert_allclose(nearest, np.where(triangle >= 0, 0.2, 0))
    assert (triangle[4:19, 4:20] >= 0).all()


def test_normals_of_a_tetrahedron_point_outwards():
    vertices = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    triangles = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], np.int32)
    np.testing.assert_allclose(rendering.vertex_normals(vertices, triangles), vertices / np.sqrt(3), atol=1e-12)


def test_bake_interpolates_over_the_texture():
    uv = np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    values = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    baked = bake(uv, np.array([[0, 1, 3], [1, 2, 3]]), values, 16)
    grid = (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(baked, np.stack(np.meshgrid(grid, grid), -1), atol=1e-5)


def test_shadow_map_holds_the_greatest_height_towards_the_lamp():
    square = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    points = np.array([[0.0, 0, -0.5], [0.8, 0.8, 0], [1.5, 0, 0]])
    vertices = np.concatenate([square, square * 0.5 + [0, 0, 0.7], points])
    triangles = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32)
    places, highest = rendering.depth_map(vertices, triangles, np.array([0.0, 0, 1]), (np.zeros(3), 2.0), 32)
    np.testing.assert_allclose(places[:, 2], vertices[:, 2] + 1.5)
    np.testing.assert_allclose(places[-3:, :2], [[16, 16], [22.4, 9.6], [28, 16]])
    for (column, row, _), height in zip(places[-3:], (2.2, 1.5, 0)):
        assert highest[int(row), int(column)] == pytest.approx(height)


def test_tone_map_keeps_order_and_range():
    tones = rendering.tone_map(np.linspace(0, 50, 400)[:, None])
    assert tones.min() == 0
    assert tones.max() == 255
    assert (np.diff(tones[:, 0].astype(int)) >= 0).all()
    assert rendering.tone_map(to_linear([0.5])) == pytest.approx(127.5, abs=0.5)


def test_average_is_the_mean_of_blocks():
    samples = np.random.default_rng(0).random((4, 6, 3))
    averaged = rendering.average(samples, 2)
    np.testing.assert_allclose(averaged[1, 2], samples[2:4, 4:6].mean((0, 1)))
    assert averaged.shape == (2, 3, 3)
