"""Export to ONNX: `python -m mrfomm.export weights/vox -o onnx/vox --check`."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mrfomm.config import FUSION_MODES
from mrfomm.errors import AnyPath, UserError, command_parser, run_command
from mrfomm.media.images import fit
from mrfomm.media.reading import open_frames
from mrfomm.model import Model, load_model
from mrfomm.onnx.graph import INT8_REWRITES, REWRITES, SIZES, Sizes
from mrfomm.onnx.graphs import GRAPHS, export_graph
from mrfomm.reenactment.animator import Animator, images_to_array
from mrfomm.reenactment.onnx_backend import OnnxAnimator, OnnxGraphs, quantize
from mrfomm.store import locked

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


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
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


def main(arguments: Sequence[str] | None = None) -> int:
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
) -> dict[str, float]:
    """How far onnxruntime is from nnabla on random images.

    Returns:
        name of an output -> largest difference, as a share of the largest value where that is above 1.
    """
    rng, size = np.random.default_rng(0), model.config.image_size
    references, driving = (rng.random((count, 3, size, size), np.float32) for count in reversed(sizes))
    expected = Animator(model.config, model.tree, references, sizes.batch, breakdown)
    actual = OnnxAnimator(graphs, references, sizes.batch, breakdown)
    detected = expected.keypoints(driving)
    pairs: dict[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]] = {
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


def report_errors(errors: dict[str, float]) -> None:
    """Print the largest errors; UserError if one is too large."""
    for name, error in errors.items():
        print(f"{name}: differs from nnabla by at most {error:.1e}")
    if not all(error <= TOLERANCE for error in errors.values()):
        raise UserError(f"onnxruntime and nnabla differ by more than {TOLERANCE:g}; please report it with the above")


def spread_frames(path: AnyPath, size: int, count: int) -> list[np.ndarray]:
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


def _render(graphs: OnnxGraphs, name: str, inputs: Sequence[dict[str, np.ndarray]]) -> tuple[np.ndarray, float]:
    """Predictions [N,3,S,S] of a graph, and the median seconds a frame."""
    graphs.run(name, inputs[0])  # the first run of a session is slower
    images, times = [], []
    for each in inputs:
        start = time.perf_counter()
        images.append(graphs.run(name, each)["prediction"])
        times.append(time.perf_counter() - start)
    return np.concatenate(images), float(np.median(times))


def command() -> None:
    """The console command."""
    run_command(main)
