"""Export to ONNX: `python -m mrfomm.export weights/vox -o onnx/vox --check`."""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from mrfomm.animation import Animator, Model, contributions, images_to_array, load_model, model_digest
from mrfomm.config import FUSION_MODES, ModelConfig
from mrfomm.errors import AnyPath, UserError, command_parser, run_command
from mrfomm.files import locked, sha256_of, whole_file
from mrfomm.media.images import fit
from mrfomm.media.reading import open_frames
from mrfomm.model import References, Synthesis, encode_references, keypoints_of, repeat_references, synthesise
from mrfomm.networks.keypoints import Keypoints
from mrfomm.onnx_backend import OnnxAnimator, OnnxGraphs, quantize
from mrfomm.onnx_graph import INT8_REWRITES, REWRITES, SIZES, Graph, Signature, Sizes, trace, write_onnx

DETAILS = """
Animation is three graphs (B driving frames, K references, n keypoints, image
size S; B and K are free). Images are RGB, float32 from 0 to 1.

  reference.onnx  image [K,3,S,S] -> reference_value, reference_jacobian,
                  reference_image, reference_features
  keypoints.onnx  image [B,3,S,S] -> driving_value [B,n,2],
                  driving_jacobian [B,n,2,2]
  frame.onnx      the outputs of both -> prediction [B,3,S,S]

Keypoints and frame are apart because relative motion changes the driving
keypoints in between. With --breakdown, breakdown.onnx is the frame with each
reference's share: warped [B,K,3,S,S] and mask [B,K,1,S,S]. With --quantize
int8, frame-int8.onnx is the frame with 8-bit convolutions.
"""
TOLERANCE = 1e-4  # of --check
CALIBRATION_FRAMES = 32
CACHED_MODELS = 4  # the cache keeps those that were used last


# --- The graphs of animation -----------------------------------------------------------------------------------------


def reference_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """What is computed once for K references, see ``model.encode_references``."""
    image = nn.Variable((sizes.references, 3, config.image_size, config.image_size))
    references = encode_references(F.reshape(image, (1, *image.shape)), config)
    return Signature({"image": image}, _reference_names(references))


def keypoint_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """The driving frames' keypoints."""
    image = nn.Variable((sizes.batch, 3, config.image_size, config.image_size))
    return Signature({"image": image}, _driving_names(keypoints_of(image, config)))


def frame_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """Driving keypoints and references -> prediction."""
    inputs, synthesis = _synthesis(config, sizes)
    return Signature(inputs, {"prediction": synthesis.prediction})


def breakdown_graph(config: ModelConfig, sizes: Sizes) -> Signature:
    """Driving keypoints and references -> prediction, and each reference's share (see ``animation.Breakdown``)."""
    inputs, synthesis = _synthesis(config, sizes)
    warped, mask = contributions(synthesis, config)
    return Signature(inputs, {"prediction": synthesis.prediction, "warped": warped, "mask": mask})


def _synthesis(config: ModelConfig, sizes: Sizes) -> Tuple[Dict[str, nn.Variable], Synthesis]:
    example = reference_graph(config, sizes).outputs
    references = {name: nn.Variable(variable.shape) for name, variable in example.items()}
    count = config.num_keypoints
    driving = Keypoints(nn.Variable((sizes.batch, count, 2)), nn.Variable((sizes.batch, count, 2, 2)))
    value, jacobian, image, features = references.values()
    repeated = repeat_references(References(image, Keypoints(value, jacobian), features), sizes.batch)
    return {**_driving_names(driving), **references}, synthesise(repeated, driving, config)


def _reference_names(references: References) -> Dict[str, nn.Variable]:
    image, (value, jacobian), features = references
    names = ("reference_value", "reference_jacobian", "reference_image", "reference_features")
    return dict(zip(names, (value, jacobian, image, features)))


def _driving_names(keypoints: Keypoints) -> Dict[str, nn.Variable]:
    return {"driving_value": keypoints.value, "driving_jacobian": keypoints.jacobian}


GRAPHS = {"reference": reference_graph, "keypoints": keypoint_graph, "frame": frame_graph, "breakdown": breakdown_graph}


def export_graph(name: str, model: Model, path: Path, rewrites: Sequence[Callable[..., object]] = REWRITES) -> None:
    """Write one of GRAPHS of an ``animation.Model`` as an ONNX file, in one step.

    Args:
        rewrites: see REWRITES; () leaves convolutions as they are, for a GPU or for other runtimes than onnxruntime.

    Raises:
        UserError: the extra `onnx` is missing, a function has no ONNX form, or the file can't be written.
    """
    with model.tree.scope():
        signature, calls = trace(lambda sizes: GRAPHS[name](model.config, sizes))
    write_onnx(signature, Graph(signature, calls, rewrites), name, path)


# --- Graphs for the onnx backend, kept for the next time -------------------------------------------------------------


def cached_graphs(model: Model, breakdown: bool = False) -> OnnxGraphs:
    """The graphs of an ``animation.Model`` for OnnxAnimator, exported if the user's cache doesn't hold them.

    Args:
        breakdown: breakdown.onnx in place of frame.onnx.

    Returns:
        OnnxGraphs.

    Raises:
        UserError: the extra `onnx` is missing, or there is no room.
    """
    root = cache_root()
    folder = root / fingerprint(model)
    names = ("reference", "keypoints", "breakdown" if breakdown else "frame")
    missing = [name for name in names if not _is_kept(folder / f"{name}.onnx")]
    if missing:
        print(f"preparing the model for onnxruntime; kept in {folder}", file=sys.stderr)
    for name in missing:
        export_graph(name, model, folder / f"{name}.onnx")
        checksum = sha256_of(folder / f"{name}.onnx")
        with whole_file(_checksum_file(folder / f"{name}.onnx")) as aside:
            aside.write_text(checksum)
    os.utime(folder)
    for old in sorted(root.iterdir(), key=os.path.getmtime)[:-CACHED_MODELS]:
        shutil.rmtree(old, ignore_errors=True)  # another process may be at it
    return OnnxGraphs(folder)


def _is_kept(graph: Path) -> bool:
    """Whether a cached graph is there as it was written: a damaged one might run, and draw something else."""
    try:
        return _checksum_file(graph).read_text() == sha256_of(graph)
    except (OSError, ValueError):
        return False  # then it is exported again


def _checksum_file(graph: Path) -> Path:
    return graph.with_suffix(".sha256")


def fingerprint(model: Model) -> str:
    """A digest of what the graphs depend on: the model (with its fusion mode) and the code behind them."""
    package = Path(__file__).parent
    digest = hashlib.sha256(model_digest(model).encode())
    for name in ("export.py", "onnx_graph.py", "onnx_backend.py", "animation.py", "model.py"):
        digest.update((package / name).read_bytes())
    for path in sorted(package.glob("networks/**/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


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


# --- The command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(
        __doc__,
        "[OPTION ...] -o DIR CKPT",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", metavar="CKPT", help="checkpoint or run folder")
    add("-o", "--output", metavar="DIR", required=True, help="folder for the .onnx files")
    add("--fusion", choices=FUSION_MODES, help="how references are fused (as the weights were trained)")
    add("--breakdown", action="store_true", help="write breakdown.onnx too")
    add("--plain", action="store_true", help="leave convolutions as they are: for a GPU, or other runtimes")
    add("--check", action="store_true", help="compare with nnabla on random input")
    add("--quantize", choices=["int8"], help="write the frame with 8-bit convolutions too")
    add("--calibration", metavar="CLIP", help="video or folder of frames to choose the 8-bit ranges from")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if bool(args.quantize) != bool(args.calibration):
        raise UserError("--quantize needs --calibration CLIP, typical frames to choose the 8-bit ranges from")
    model = load_model(args.weights, args.fusion)
    folder = Path(args.output)
    with locked(folder, make=True):
        export_graphs(model, folder, args.breakdown, () if args.plain else REWRITES)
        print(folder)
        if args.check:
            report_errors(largest_errors(model, OnnxGraphs(folder), args.breakdown))
        if args.quantize:
            export_int8(model, folder, args.calibration, () if args.plain else INT8_REWRITES)
    return 0


def export_graphs(model: Model, folder: Path, breakdown: bool, rewrites: Sequence[Callable[..., object]]) -> None:
    """Write the graphs of a model into a folder, in the place of all that an earlier export has left there."""
    names = ["reference", "keypoints", "frame"] + ["breakdown"] * breakdown
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        for name in names:
            export_graph(name, model, Path(aside, f"{name}.onnx"), rewrites)
        for name in (*GRAPHS, "frame-int8"):  # of another model, perhaps
            (folder / f"{name}.onnx").unlink(missing_ok=True)
        for name in names:
            Path(aside, f"{name}.onnx").replace(folder / f"{name}.onnx")


def largest_errors(
    model: Model, graphs: OnnxGraphs, breakdown: bool = False, sizes: Sizes = SIZES[0]
) -> Dict[str, float]:
    """How far onnxruntime is from nnabla on random images.

    Returns:
        name of an output -> largest difference, as a share of the largest value where that is above 1.
    """
    rng, size = np.random.default_rng(0), model.config.image_size
    references, driving = (rng.random((count, 3, size, size), np.float32) for count in reversed(sizes))
    expected = Animator(model.config, model.tree, references, sizes.batch, breakdown)
    actual = OnnxAnimator(graphs, references, sizes.batch, breakdown)
    detected = expected.keypoints(driving)
    pairs: Dict[str, Tuple[Sequence[np.ndarray], Sequence[np.ndarray]]] = {
        "reference keypoints": (expected.reference_keypoints, actual.reference_keypoints),
        "driving keypoints": (detected, actual.keypoints(driving)),
    }
    if breakdown:
        (prediction, shares), (other, other_shares) = (each.render_breakdown(detected) for each in (expected, actual))
        pairs["breakdown"] = ([prediction, *shares], [other, *other_shares])
    actual = OnnxAnimator(graphs, references, sizes.batch)
    pairs["prediction"] = ([expected.render(detected)], [actual.render(detected)])
    return {name: float(np.max([*map(_error, *arrays)])) for name, arrays in pairs.items()}  # max() passes NaN over


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))


def report_errors(errors: Dict[str, float]) -> None:
    """Print the largest errors; UserError if one is too large."""
    for name, error in errors.items():
        print(f"{name}: differs from nnabla by at most {error:.1e}")
    if not all(error <= TOLERANCE for error in errors.values()):
        raise UserError(f"onnxruntime and nnabla differ by more than {TOLERANCE:g}; please report it with the above")


def spread_frames(path: AnyPath, size: int, count: int) -> List[np.ndarray]:
    """At least ``count`` (or all) and less than twice as many evenly spaced frames of a clip, uint8 [size,size,3]."""
    frames, step = [], 1
    for i, frame in enumerate(open_frames(path)):
        if i % step == 0:
            frames.append(fit(frame, size))
        if len(frames) == 2 * count:
            frames, step = frames[::2], 2 * step
    return frames


def export_int8(model: Model, folder: Path, clip: AnyPath, rewrites: Sequence[Callable[..., object]]) -> None:
    """Write frame-int8.onnx and print what it loses and gains against frame.onnx.

    References are the clip's first, middle and last frame. Of all its frames, those three among them, every second
    serves to choose the ranges of the 8-bit numbers, and the others to compare.
    """
    images = images_to_array(spread_frames(clip, model.config.image_size, CALIBRATION_FRAMES))
    graphs = OnnxGraphs(folder)
    animator = OnnxAnimator(graphs, images[[0, len(images) // 2, -1]])
    keypoints = animator.keypoints(images)
    inputs = [animator.frame_inputs(keypoints.frame(i)) for i in range(len(images))]
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        source, result = Path(aside, "frame.onnx"), Path(aside, "int8.onnx")
        export_graph("frame", model, source, rewrites)
        quantize(source, result, inputs[::2])
        result.replace(folder / "frame-int8.onnx")
    compared = inputs[1::2] or inputs
    (exact, seconds), (rounded, seconds_int8) = (_render(graphs, name, compared) for name in ("frame", "frame-int8"))
    psnr = -10 * np.log10(np.mean((exact - rounded) ** 2))
    print(f"int8: {psnr:.1f} dB against float over {len(compared)} frames, {seconds / seconds_int8:.2f} times as fast")


def _render(graphs: OnnxGraphs, name: str, inputs: Sequence[Dict[str, np.ndarray]]) -> Tuple[np.ndarray, float]:
    """Predictions [N,3,S,S] of a graph, and the median seconds a frame."""
    graphs.run(name, inputs[0])  # the first run of a session is slower
    images, times = [], []
    for each in inputs:
        start = time.perf_counter()
        images.append(graphs.run(name, each)["prediction"])
        times.append(time.perf_counter() - start)
    return np.concatenate(images), float(np.median(times))


if __name__ == "__main__":
    run_command(main)
