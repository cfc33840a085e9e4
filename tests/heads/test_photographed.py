"""People from a folder of assets. The folder is a small one of the same formats, made here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("numba")

from eval.labels import read_labels
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.errors import UserError
from mrfomm.heads import rendering, scene, studio
from mrfomm.heads.dataset import SetOptions, make_dataset
from mrfomm.heads.geometry import load_template, shape_vertices
from mrfomm.heads.motion import both, weights_of
from mrfomm.heads.painted.textures import MATERIALS
from mrfomm.heads.person import draw_identity, make_person, pose_mesh, render_frame
from mrfomm.heads.photographed import assets as assets_of
from mrfomm.heads.photographed import camera as camera_of
from mrfomm.heads.photographed.assets import PARTS, load_assets
from mrfomm.heads.photographed.dressing import blend_skins, dress, recolor, soften
from mrfomm.heads.photographed.outfit import EYES, HAIR, RESTING, SKINS, sample_outfit
from mrfomm.heads.photographed.parts import BASE_VERTICES, Part, blend, load_fit, mirror, place, with_helpers

ROOT = Path(__file__).parent.parent.parent
SIZE = 64
RULERS = {"x": (5399, 11998), "y": (791, 881), "z": (962, 5320)}
TINY = SetOptions("train", subjects=2, clips=1, frames=3, size=32, seed=5)


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def fit():
    return load_fit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, template, fit):
    """A folder of assets: skins and textures of one colour each; hair is a cap, other parts are a few triangles."""
    root = tmp_path_factory.mktemp("assets")
    for number, name in enumerate(SKINS):
        write_picture(root / f"skins/{name}.jpg", (200 - 15 * number, 120, 90))
    for name in EYES:
        write_picture(root / f"eyes/materials/{name}_eye.png", (90, 120, 150, 255))
    for name, texture in PARTS.items():
        write_picture(root / f"{texture}.png", (120, 100, 80, 255))
        offset = 0.12 if name.startswith("hair/") else 0.01
        write_part(root / name / Path(name).name, template, fit, triangles_of(name, template), offset)
    return root


def write_picture(path, color, size=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(color) == 4 else "RGB", (size, size), color).save(path, quality=100)


def triangles_of(name, template):
    """Of the template: all of the scalp for hair, two of the teeth's for the teeth, two somewhere on the skin else."""
    skin = template.triangles[template.of("skin")]
    if name.startswith("hair/"):
        return skin[(template.vertices[skin][..., 1] > 0.62).all(1) & (template.follow[skin] == 1).all(1)]
    return template.triangles[template.of("teeth")][-2:] if name.startswith("teeth") else skin[:2]


def write_part(stem, template, fit, triangles, offset):
    """A shell over triangles of the template, ``offset`` away along the normals."""
    numbers = np.flatnonzero(fit.row >= 0)[np.argsort(fit.row[fit.row >= 0])]  # in the base mesh, by row
    skin = template.triangles[template.of("skin")]
    normals = rendering.vertex_normals(template.vertices.astype(float), skin)
    used, corners = np.unique(triangles, return_inverse=True)
    stem.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# a comment", f"obj_file {stem.name}.obj"]
    for axis, (first, second) in RULERS.items():
        ends = template.vertices[fit.row[[first, second]], "xyz".index(axis)]
        lines.append(f"{axis}_scale {first} {second} {abs(ends[0] - ends[1]):.6f}")
    lines += ["verts 0", "material other.mhmat"]
    for row in used:
        lines.append(" ".join(map(str, [numbers[row]] * 3 + [0.5, 0.25, 0.25] + (offset * normals[row]).tolist())))
    stem.with_name(f"{stem.name}.mhclo").write_text("\n".join(lines) + "\n")
    faces = [" ".join(f"{corner + 1}/1" for corner in face) for face in corners.reshape(-1, 3)]
    mesh = ["v 0 0 0"] * len(used) + ["vt 0.5 0.5"] + [f"f {face}" for face in faces]
    stem.with_name(f"{stem.name}.obj").write_text("\n".join(mesh) + "\n")


@pytest.fixture(scope="module")
def somewhere(folder):
    return studio.open_studio(SIZE, folder)


def plain_identity(template, seed=3):
    """Somebody with nothing on, and with no cloth near the head."""
    identity = draw_identity(template, np.random.default_rng(seed))
    look = identity.look._replace(earrings=False, glasses=identity.look.glasses._replace(worn=False))
    look = look._replace(hair=look.hair._replace(style="bald"), beard=look.beard._replace(kind="none"))
    return identity._replace(look=look._replace(clothing=look.clothing._replace(garment="crew", neckline=-9.0)))


def outfit_of(identity, **changes):
    outfit = sample_outfit(identity, np.random.default_rng(1))
    return outfit._replace(rest=(0.0,) * len(RESTING), flipped=False, **changes)


def dressed(somewhere, identity, **changes):
    return dress(somewhere.template, somewhere.canvas, somewhere.assets, identity, outfit_of(identity, **changes))


def seen(person, pose, weights, stage, only=None):
    """The triangles in view int [H,W], -1 where there is none; ``only`` some of the mesh's, whatever their textures."""
    pixels = scene.project(pose_mesh(person, pose, weights), stage.camera)
    pixels[:, 2] = 1 / pixels[:, 2]
    triangles = person.mesh.triangles if only is None else person.mesh.triangles[only]
    return rendering.rasterize(pixels, np.ascontiguousarray(triangles), SIZE)[0]


def test_a_part_lies_where_makehuman_puts_it(template, fit):
    """The formula of MakeHuman's clothes, vertex by vertex."""
    rng = np.random.default_rng(0)
    known = np.flatnonzero(fit.row >= 0)
    corners, weights, offsets = rng.choice(known, (6, 3)), rng.dirichlet(np.ones(3), 6), rng.normal(0, 0.1, (6, 3))
    rulers, lengths = np.array(list(RULERS.values())), np.array([1.4, 2.2, 1.9])
    rows = fit.row[corners]
    part = Part(rows, weights, offsets, fit.row[rulers], lengths, np.empty(0, int), np.empty(0), np.empty(0))
    head = shape_vertices(template, draw_identity(template, rng).shape).astype(float)
    where = {number: head[row] for number, row in enumerate(fit.row) if 0 <= row < len(head)}
    helpers = zip(known[fit.row[known] >= len(head)], fit.anchors, fit.offsets)
    where |= {number: head[anchor] + offset for number, anchor, offset in helpers}
    stretch = [abs(where[a][k] - where[b][k]) / lengths[k] for k, (a, b) in enumerate(rulers)]
    expected = [
        sum(weight * where[number] for weight, number in zip(weights[n], corners[n])) + offsets[n] * stretch
        for n in range(6)
    ]
    np.testing.assert_allclose(place(part, fit, head), expected, atol=1e-9)


def test_a_mirrored_part_is_the_mirror_image(template, fit):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(fit.mirrored), (50, 3))
    offsets = rng.normal(0, 0.1, (50, 3))
    rulers = fit.row[np.array(list(RULERS.values()))]
    part = Part(rows, np.full((50, 3), 1 / 3), offsets, rulers, np.ones(3), np.empty(0, int), rows, rows)
    there, here = place(mirror(part, fit), fit, template.vertices), place(part, fit, template.vertices)
    np.testing.assert_allclose(there, here * [-1, 1, 1], atol=0.03)


def test_all_ways_to_write_a_fit_are_read(tmp_path, template, fit):
    scales = "".join(f"{axis}_scale {a} {b} 2.0\n" for axis, (a, b) in RULERS.items())
    rows = "verts 0\n7\n 5 6 7 0.5 0.25 0.25\n5 6 7 1 0 0 0.1 0.2 0.3\n18000 18000 18000 1 0 0\n"
    (tmp_path / "x.mhclo").write_text(f"{scales}{rows}delete_verts\n4 6 - 8\n")
    (tmp_path / "x.obj").write_text("v 0 0 0\n" * 4 + "vt 0 0\nvt 1 0.25\nf 1/1 2/2 3/1 1/2\nf 1/1 2/1 4/1\n")
    part = assets_of.read_part(tmp_path / "x", fit)
    numbers = np.full(len(fit.mirrored), -1)
    numbers[fit.row[fit.row >= 0]] = np.flatnonzero(fit.row >= 0)
    assert numbers[part.corners].tolist() == [[7, 7, 7], [5, 6, 7], [5, 6, 7]]  # nobody has vertex 18000, nor a hand
    assert part.weights.tolist() == [[1, 0, 0], [0.5, 0.25, 0.25], [1, 0, 0]]
    assert part.offsets.tolist() == [[0, 0, 0], [0, 0, 0], [0.1, 0.2, 0.3]]
    assert numbers[part.hidden].tolist() == [4, 6, 7, 8]
    assert part.triangles.tolist() == [[0, 1, 2], [0, 2, 0]]  # a polygon is cut into triangles
    assert part.uv.tolist() == [[[0, 1], [1, 0.75], [0, 1]], [[0, 1], [0, 1], [1, 0.75]]]


def test_a_scale_measured_off_the_head_is_refused(tmp_path, fit):
    """Vertices of a hip: the offsets would be stretched by whatever stands last in the head's list."""
    scales = "".join(f"{axis}_scale {a} {b} 2.0\n" for axis, (a, b) in {**RULERS, "z": (10854, 10981)}.items())
    (tmp_path / "x.mhclo").write_text(f"{scales}verts 0\n5\n6\n7\n")
    (tmp_path / "x.obj").write_text("v 0 0 0\n" * 3 + "vt 0 0\nf 1/1 2/1 3/1\n")
    with pytest.raises(UserError, match="x.mhclo: its scale is measured where the head has no vertices"):
        assets_of.read_part(tmp_path / "x", fit)


def test_blended_skins_have_the_mixed_colour(somewhere):
    skins = np.stack([np.full((4, 4, 3), color, np.uint8) for color in ((200, 100, 0), (100, 200, 40))])
    np.testing.assert_allclose(blend_skins(skins, (0.25, 0.75))[2, 2] * 255, (125, 175, 30), atol=1e-4)
    first = somewhere.assets.skins[0][somewhere.canvas.masks["face"] > 0.5]
    np.testing.assert_allclose(first, np.broadcast_to((200, 120, 90), first.shape), atol=2)  # all of the face has it


def test_recoloured_hair_has_the_colour_and_keeps_its_strands():
    texture = np.full((8, 8, 4), 100, np.uint8)
    texture[::2, :, :3] = 60
    changed = recolor(texture, (0.4, 0.2, 0.1), 2.0)
    np.testing.assert_allclose(changed[..., :3].mean((0, 1)), (102, 51, 25), atol=3)
    assert (changed[1::2, :, 0] > changed[::2, :, 0] + 20).all()
    assert (changed[..., 3] == 200).all()


@pytest.mark.parametrize("pose", [(0, 0, 0), (50, -10, 15)])
def test_silhouette_is_the_painted_ones(somewhere, template, pose):
    identity = plain_identity(template)
    painted = make_person(template, somewhere.canvas, identity)
    photographed = dressed(somewhere, identity, hair="")
    np.testing.assert_array_equal(photographed.bounds, painted.bounds)
    stage = scene.make_stage(painted.bounds, scene.sample_scene(np.random.default_rng(0)), SIZE)
    weights = weights_of(list(template.units), {"jawOpen": 0.6, **both(mouthSmile=0.5)})
    outlines = [
        seen(person, pose, weights, stage, person.mesh.material == MATERIALS.index("skin")) >= 0
        for person in (painted, photographed)
    ]
    assert outlines[0].mean() > 0.2
    np.testing.assert_array_equal(*outlines)


def test_hair_covers_the_scalp_and_not_the_face(somewhere, template):
    identity = plain_identity(template)
    bald, hairy = dressed(somewhere, identity, hair=""), dressed(somewhere, identity, hair="short01")
    stage = scene.make_stage(bald.bounds, scene.sample_scene(np.random.default_rng(0)), SIZE)
    rest = np.zeros(len(template.units))
    below, above = (seen(person, (0, 0, 0), rest, stage) for person in (bald, hairy))
    hair = (above >= 0) & (hairy.mesh.material[above] == hairy.mesh.material.max())
    corners = template.vertices[template.triangles[template.of("skin")], 1]  # heights, of the triangles in their order
    skin = (below >= 0) & (bald.mesh.material[below] == 0)
    assert hair[skin][corners[below[skin]].min(1) > 0.8].all()  # at its rim one looks below the cap
    assert not hair[skin][corners[below[skin]].max(1) < 0.5].any()
    frame = render_frame(hairy, stage, (0, 0, 0), rest)
    other = soften(identity.look._replace(hair=identity.look.hair._replace(color=(0.0, 0.9, 0.0))), outfit_of(identity))
    green = render_frame(dressed(somewhere, identity._replace(look=other), hair="short01"), stage, (0, 0, 0), rest)
    changed = np.abs(frame.astype(int) - green).max(2) > 30
    assert changed[hair].mean() > 0.9
    assert not changed[below < 0][~hair[below < 0]].any()


def test_teeth_follow_the_jaw_as_their_corners_do(somewhere, template):
    identity = plain_identity(template)
    person = dressed(somewhere, identity, hair="")
    teeth, fit = somewhere.assets.parts["teeth/teeth_base"], somewhere.assets.fit
    jaw = weights_of(list(template.units), {"jawOpen": 1.0})
    rows = np.unique(person.mesh.triangles[person.mesh.material == len(MATERIALS) + 1])  # after the eyeballs
    moved = pose_mesh(person, (0, 0, 0), jaw)[rows] - person.mesh.vertices[rows]
    units = np.zeros((len(template.vertices), 3))
    index, deltas = template.units["jawOpen"]
    units[index] = deltas
    np.testing.assert_allclose(moved, blend(teeth, with_helpers(fit, units)), atol=1e-5)
    assert np.abs(moved).max() > 0.1


def test_clothes_hide_the_skin_below(somewhere, template):
    identity = plain_identity(template)
    person = dressed(somewhere, identity, hair="", clothes="male_elegantsuit01")
    skin = template.of("skin").sum()
    assert (person.mesh.material == 0).sum() == skin  # those of the folder hide nothing
    name = "clothes/male_elegantsuit01"
    hidden = np.unique(template.triangles[template.of("skin")][5])
    parts = {**somewhere.assets.parts, name: somewhere.assets.parts[name]._replace(hidden=hidden)}
    other = somewhere._replace(assets=somewhere.assets._replace(parts=parts))
    assert 1 <= skin - (dressed(other, identity, hair="", clothes="male_elegantsuit01").mesh.material == 0).sum() < 5


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_soft_alpha_is_the_share_of_samples(alpha):
    points = np.array([[0.0, 0, 1], [200, 0, 1], [0, 200, 1], [0, 0, 0.5], [200, 0, 0.5], [0, 200, 0.5]])
    triangles = np.array([[0, 2, 1], [3, 5, 4]], np.int32)
    texture = np.full((1, 4, 4, 4), round(255 * alpha), np.uint8)
    surface = np.full((2, 3, 2), 0.5, np.float32), np.zeros(2, np.int32), texture, np.array([True]), np.array([True])
    triangle = rendering.rasterize(points, triangles, 90, surface)[0]
    assert (triangle == 0).mean() == pytest.approx(alpha, abs=0.06)
    assert (triangle >= 0).mean() >= min(1, 1.3 * alpha) - 1e-9  # a second layer fills what the first leaves


def test_people_vary_and_are_the_same_again(somewhere):
    template = somewhere.template
    outfits = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        identity = draw_identity(template, rng)
        outfits.append(sample_outfit(identity, rng))
        assert sum(outfits[-1].skins) == pytest.approx(1)
    assert {outfit.hair for outfit in outfits} == {*HAIR, ""}
    assert {outfit.eyes for outfit in outfits} > {"brown", "blue", "green"}
    for field in ("brows", "lashes", "clothes", "flipped"):
        assert len({getattr(outfit, field) for outfit in outfits}) >= 2
    assert len({outfit.skins for outfit in outfits}) == 150
    first, same, other = (somewhere.person(np.random.default_rng(seed)) for seed in (1, 1, 2))
    stage = scene.make_stage(first.bounds, scene.sample_scene(np.random.default_rng(0)), SIZE)
    frames = [render_frame(person, stage, (20, 0, 0), np.zeros(52)) for person in (first, same, other)]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert np.abs(frames[0].astype(int) - frames[2]).mean() > 3


def test_a_camera_without_faults_changes_nothing():
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    fine = camera_of.Camera((1.0, 1.0, 1.0), 1.0, 1.0, 0.02, 0.0, 0.0)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(camera_of.take(frame, fine, rng), frame)
    brighter = camera_of.take(frame // 2, fine._replace(gain=(1.5, 1.0, 0.5)), rng)
    np.testing.assert_allclose(brighter, frame // 2 * np.array([1.5, 1, 0.5]), atol=0.51)
    grey = np.full((32, 32, 3), 128, np.uint8)
    assert camera_of.take(grey, fine._replace(noise=4.0), rng).std() == pytest.approx(4, rel=0.1)
    assert camera_of.take(frame, fine._replace(blur=3.0), rng).std() < frame.std() / 2
    assert np.ptp(camera_of.take(frame, fine._replace(saturation=0.0), rng), axis=2).max() == 0


def bytes_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.mp4")}


@pytest.fixture(scope="module")
def sets(folder, tmp_path_factory):
    """The same set with painted and with photographed people."""
    painted, photographed = tmp_path_factory.mktemp("painted"), tmp_path_factory.mktemp("photographed")
    make_dataset(painted, TINY)
    make_dataset(photographed, TINY._replace(assets=folder))
    return painted, photographed


def test_labels_and_layout_are_the_painted_ones(sets):
    names = [[clip.name for clip in find_clips(root / "train")] for root in sets]
    assert names[0] == names[1] == ["train00000#0", "train00001#0"]
    for name in names[0]:
        np.testing.assert_array_equal(*(read_labels(root / f"labels/train/{name}.csv") for root in sets))
    for first, second in zip(*(find_clips(root / "train") for root in sets)):
        frames = [open_clip(clip).read(range(3), 32).astype(int) for clip in (first, second)]
        assert np.abs(frames[0] - frames[1]).mean() > 5


@pytest.mark.slow
def test_several_processes_make_the_same_bytes(sets, folder, tmp_path):
    make_dataset(tmp_path, TINY._replace(assets=folder), workers=2)
    assert bytes_below(tmp_path) == bytes_below(sets[1])


def test_a_folder_is_not_gone_on_with_with_other_assets(sets, folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="begun with assets None, not [0-9a-f]{64}; choose another --output"):
        make_dataset(sets[0], TINY._replace(assets=folder))
    with pytest.raises(UserError, match="begun with assets [0-9a-f]{64}, not None"):
        make_dataset(sets[1], TINY)
    make_dataset(sets[1], TINY._replace(assets=folder))


def test_papers_protocol_has_no_camera(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mrfomm.heads.dataset.film", None)
    make_dataset(tmp_path, TINY._replace(protocol="paper", subjects=1, frames=2, assets=folder))
    assert len(list(tmp_path.glob("s1_*/yaw.mp4"))) == 2


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder, of links: what is replaced is replaced in the copy."""
    for path in folder.rglob("*.*"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    return tmp_path


def replace(path, content):
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("skins/old_darkskinned_male_diffuse.jpg", None, "old_darkskinned_male_diffuse.png: missing; docs/heads.md"),
        ("hair/long01/long01.obj", None, "long01.obj: missing; docs/heads.md"),
        ("hair/long01/long01_diffuse.png", b"no picture", "long01_diffuse.png: not a readable image"),
        ("hair/long01/long01.mhclo", b"verts 0\n1 2\n", "long01.mhclo: damaged"),
        ("hair/long01/long01.mhclo", b"", "long01.mhclo: damaged"),
        (
            "hair/long01/long01.obj",
            b"v 0 0 0\nvt 0 0\nf 1/1 1/1 1/1\n",
            "long01.obj: has 1 vertices, long01.mhclo fits",
        ),
        ("hair/long01/long01.obj", b"v 0 0 0\nvt 0 0\nf 1/1 1/1 2/1\n", "long01.obj: damaged .*isn't there"),
        ("hair/long01/long01.obj", b"v 0 0 0\n", "long01.obj: damaged"),
    ],
)
def test_bad_assets_are_named(broken, template, name, content, message):
    replace(broken / name, content)
    with pytest.raises(UserError, match=message):
        load_assets(broken, template, 64)


def test_pictures_of_other_sizes_are_named(broken, template):
    skin = broken / "skins/young_lightskinned_male_diffuse.jpg"
    skin.unlink()
    write_picture(skin, (1, 2, 3), 32)
    with pytest.raises(UserError, match=r"young_lightskinned_male_diffuse.jpg: 32 pixels wide, .* 16; .* one size"):
        load_assets(broken, template, 64)
    skin.unlink()
    Image.new("RGB", (16, 20)).save(skin)
    with pytest.raises(UserError, match="16 x 20 pixels; it must be square"):
        load_assets(broken, template, 64)


def test_skins_may_be_where_makehumans_repository_has_them(broken, template, somewhere, monkeypatch):
    (broken / "skins").rename(broken / "there")
    (broken / "skins").mkdir()
    (broken / "there").rename(broken / "skins/textures")
    monkeypatch.chdir(broken.parent)  # a relative path
    again = load_assets(broken.name, template, len(somewhere.canvas.points))
    np.testing.assert_array_equal(again.skins, somewhere.assets.skins)
    assert assets_of.check_folder(broken) == assets_of.check_folder(broken.name)


def test_a_fit_to_another_mesh_is_refused(broken, template):
    path = broken / "teeth/teeth_base/teeth_base.mhclo"
    text = path.read_text()
    replace(path, text.replace("verts 0\n", f"verts 0\n{BASE_VERTICES}\n").encode())
    with pytest.raises(UserError, match="teeth_base.mhclo: damaged .*another mesh than MakeHuman's"):
        load_assets(broken, template, 64)


@pytest.mark.parametrize("what", ["nothing", "file"])
def test_a_command_without_its_folder_writes_nothing(tmp_path, what):
    path = tmp_path / "assets"
    if what == "file":
        path.write_text("x")
    command = [sys.executable, "-m", "mrfomm.heads", "-o", str(tmp_path / "out"), "--assets", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        f"error: --assets {path}: is no folder; docs/heads.md says where to get MakeHuman's assets"
    ]
    assert not (tmp_path / "out").exists()
