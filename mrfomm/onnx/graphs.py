"""The graphs of animation as ONNX files, and the user's cache of them."""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nnabla as nn
import nnabla.functions as F

from mrfomm.config import ModelConfig
from mrfomm.errors import UserError
from mrfomm.model import (
    Model,
    References,
    Synthesis,
    contributions,
    encode_references,
    keypoints_of,
    model_digest,
    paint,
    repeat_references,
    synthesise,
)
from mrfomm.networks.fusion import fuse, modes_of
from mrfomm.networks.keypoints import Keypoints
from mrfomm.onnx.convolutions import REWRITES, Rewrite
from mrfomm.onnx.functions import export
from mrfomm.onnx.trace import Signature, Sizes
from mrfomm.store import sha256_of, whole_file

VERSION = 1  # one more whenever the same model gives another picture: of networks, graphs and animation
CACHED_MODELS = 4  # the cache keeps those that were used last
IN_USE = 86400.0  # seconds in which no model that was opened is forgotten: graphs are loaded when needed


def reference_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """What is computed once for K references, see ``model.encode_references``."""
    image = nn.Variable((sizes.references, 3, config.image_size, config.image_size))
    small, (value, jacobian), features = encode_references(F.reshape(image, (1, *image.shape)), config)
    names = ("reference_value", "reference_jacobian", "reference_image", "reference_features")
    return Signature({"image": image}, dict(zip(names, (value, jacobian, small, features))))


def keypoint_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """The driving frames' keypoints."""
    image = nn.Variable((sizes.batch, 3, config.image_size, config.image_size))
    return Signature({"image": image}, _driving_names(keypoints_of(image, config)))


def frame_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """Driving keypoints and references -> prediction."""
    inputs, synthesis = _synthesis(config, sizes)
    return Signature(inputs, {"prediction": synthesis.prediction})


def breakdown_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """Driving keypoints and references -> prediction, and each reference's share (see ``animator.Breakdown``)."""
    inputs, synthesis = _synthesis(config, sizes)
    warped, mask = contributions(synthesis, config)
    return Signature(inputs, {"prediction": synthesis.prediction, "warped": warped, "mask": mask})


def encoder_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """The part of ``reference_graph`` that isn't ``keypoint_graph``: with that one, a page loads no weight twice."""
    whole = reference_graph(config, sizes)
    return Signature(whole.inputs, {name: whole.outputs[name] for name in ("reference_image", "reference_features")})


def blend_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """Driving keypoints, references and a share of each of ``modes_of`` -> prediction, and the mask [B,K,h,w]."""
    inputs, synthesis = _synthesis(config, sizes)
    warped, modes = synthesis.warped, modes_of(config.fusion.mode)
    fusion = nn.Variable((len(modes), 1))
    shares = (F.reshape(F.slice(fusion, start=(i, 0), stop=(i + 1, 1)), (1,) * 5) for i in range(len(modes)))
    masks = (fuse(warped, synthesis.occlusion, mode, config.fusion.kernel).mask for mode in modes)
    mask = sum((share * mask for share, mask in zip(shares, masks)), start=0.0)
    fused = F.sum(F.mul2(warped, mask), axis=1)
    shown = F.reshape(F.mean(mask, axis=2), (sizes.batch, sizes.references, *warped.shape[3:]))
    prediction = paint(fused, mask, synthesis.copies, config)
    return Signature({**inputs, "fusion": fusion}, {"prediction": prediction, "mask": shown})


def _synthesis(config: ModelConfig, sizes: Sizes) -> tuple[dict[str, nn.Variable], Synthesis]:
    example = reference_graph(config, sizes).outputs
    references = {name: nn.Variable(variable.shape) for name, variable in example.items()}
    count = config.num_keypoints
    driving = Keypoints(nn.Variable((sizes.batch, count, 2)), nn.Variable((sizes.batch, count, 2, 2)))
    value, jacobian, image, features = references.values()
    repeated = repeat_references(References(image, Keypoints(value, jacobian), features), sizes.batch)
    return {**_driving_names(driving), **references}, synthesise(repeated, driving, config)


def _driving_names(keypoints: Keypoints) -> dict[str, nn.Variable]:
    return {"driving_value": keypoints.value, "driving_jacobian": keypoints.jacobian}


GRAPHS = {
    "reference": reference_graph,
    "keypoints": keypoint_graph,
    "frame": frame_graph,
    "breakdown": breakdown_graph,
    "encoder": encoder_graph,
    "blend": blend_graph,
}


def export_graph(
    name: str, model: Model, path: Path, rewrites: Sequence[Rewrite] = REWRITES, half: bool = False
) -> None:
    """Write one of GRAPHS of a ``model.Model`` as an ONNX file, see ``functions.export``."""
    with model.tree.scope():
        export(lambda sizes: GRAPHS[name](model.config, sizes), name, path, rewrites, half)


def cached_graphs(model: Model, breakdown: bool = False) -> Path:
    """The folder with the graphs of a Model for OnnxGraphs, exported if the user's cache doesn't hold them.

    Args:
        breakdown: breakdown.onnx in place of frame.onnx.

    Raises:
        UserError: the extra `onnx` is missing, or there is no room.
    """
    root = cache_root()
    folder = root / fingerprint(model)
    graphs = [folder / f"{name}.onnx" for name in ("reference", "keypoints", "breakdown" if breakdown else "frame")]
    missing = [graph for graph in graphs if not _is_kept(graph)]
    if missing:
        print(f"preparing the model for onnxruntime; kept in {folder}", file=sys.stderr)
    for graph in missing:
        export_graph(graph.stem, model, graph)
        with whole_file(_checksum_file(graph)) as aside:
            aside.write_text(sha256_of(graph))
    os.utime(folder)
    _forget_old(root, len(folder.name))
    return folder


def _forget_old(root: Path, name_length: int) -> None:
    """Remove models beyond CACHED_MODELS that nobody has opened for IN_USE seconds: a process may still load graphs of
    those. What others keep in the same folder has names of another length."""
    models = (path for path in root.iterdir() if len(path.name) == name_length)
    for old in sorted(models, key=os.path.getmtime)[:-CACHED_MODELS]:
        if time.time() - old.stat().st_mtime > IN_USE:
            shutil.rmtree(old, ignore_errors=True)  # another process may be at it


def _is_kept(graph: Path) -> bool:
    """Whether a cached graph is there as it was written: a damaged one might run, and draw something else."""
    try:
        return _checksum_file(graph).read_text() == sha256_of(graph)
    except (OSError, ValueError):
        return False  # then it is exported again


def _checksum_file(graph: Path) -> Path:
    return graph.with_suffix(".sha256")


def fingerprint(model: Model) -> str:
    """A digest of what the graphs, and the pictures drawn with them, depend on."""
    return hashlib.sha256(f"{VERSION} {model_digest(model)}".encode()).hexdigest()


def cache_root() -> Path:
    """The user's cache folder (below XDG_CACHE_HOME or ~/.cache), or one for temporary files where that can't be."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mrfomm")
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        print(f"{root}: can't write there ({error}); using the folder for temporary files", file=sys.stderr)
        root = Path(tempfile.gettempdir(), f"mrfomm-{os.getuid()}")
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise UserError(f"{root}: belongs to somebody else; set XDG_CACHE_HOME to a folder of yours") from error
    return root
