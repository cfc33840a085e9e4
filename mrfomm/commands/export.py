"""Export to ONNX: `python -m mrfomm.export weights/vox -o onnx/vox --check`."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrfomm.commands.options import add_fusion
from mrfomm.commands.web_model import write_web_model
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model import Model, model_digest
from mrfomm.onnx.convolutions import REWRITES, Rewrite
from mrfomm.onnx.exported import RECORD, Exported, write_record
from mrfomm.onnx.graphs import GRAPHS, export_graph
from mrfomm.onnx.trace import SIZES
from mrfomm.reenactment.animator import Animator
from mrfomm.reenactment.backends import load_weights
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs
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
reference's share: warped [B,K,3,S,S] and mask [B,K,1,S,S].

export.json says what model it is. The folder animates where nnabla isn't:
animate.py --weights DIR, and the page if breakdown.onnx is there.

With --web, the folder gets what the page in web/ needs instead: keypoints.onnx;
encoder.onnx, the rest of reference.onnx; blend.onnx, the frame with a choice of
fusion, and the mask; model.json. Weights are in half precision.
"""
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.05  # of --check, whose pictures are noise


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = command_parser(__doc__, "[OPTION ...] -o DIR CKPT", epilog=DETAILS, formatter_class=layout)
    add = parser.add_argument
    add("weights", metavar="CKPT", help="checkpoint or run folder")
    add("-o", "--output", metavar="DIR", required=True, help="folder for the .onnx files")
    add_fusion(parser)
    add("--breakdown", action="store_true", help="write breakdown.onnx too")
    add("--plain", action="store_true", help="leave convolutions as they are: for a GPU, or other runtimes")
    add("--half", action="store_true", help="keep weights in half precision: files of half the size")
    add("--web", action="store_true", help="write what a page for browsers needs (make web)")
    add("--check", action="store_true", help="compare the graphs with nnabla on random input")
    args = parser.parse_args(arguments)
    if args.web and (args.breakdown or args.plain or args.check or args.half):
        raise UserError("--web: its graphs are of one kind; leave out --breakdown, --plain, --half and --check")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    weights = load_weights(args.weights, args.fusion)
    model, folder = weights.model, Path(args.output)
    if isinstance(model, Exported):
        raise UserError(f"{args.weights}: is an exported model already; give the checkpoint it was made of")
    with locked(folder, make=True):
        if args.web:
            write_web_model(model, folder)
        else:
            names = export_graphs(model, folder, args.breakdown, () if args.plain else REWRITES, args.half)
            config, digest = model.config, model_digest(model)
            numbers = (config.image_size, config.num_keypoints, config.fusion.mode, digest)
            write_record(Exported(folder, *numbers, {}, weights.knowledge), names)
        print(folder)
        if args.check:
            tolerance = HALF_TOLERANCE if args.half else TOLERANCE
            report_errors(largest_errors(model, OnnxGraphs(folder), args.breakdown), tolerance)
    return 0


def export_graphs(
    model: Model, folder: Path, breakdown: bool, rewrites: Sequence[Rewrite], half: bool = False
) -> list[str]:
    """Write the graphs of a model into a folder, in the place of all that an earlier export has left there; returns
    their names."""
    names = ["reference", "keypoints", "frame"] + ["breakdown"] * breakdown
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        for name in names:
            export_graph(name, model, Path(aside, f"{name}.onnx"), rewrites, half)
        (folder / RECORD).unlink(missing_ok=True)
        for name in GRAPHS:  # of another model, perhaps
            (folder / f"{name}.onnx").unlink(missing_ok=True)
        for name in names:
            Path(aside, f"{name}.onnx").replace(folder / f"{name}.onnx")
    return names


def largest_errors(model: Model, graphs: OnnxGraphs, breakdown: bool = False) -> dict[str, float]:
    """How far onnxruntime is from nnabla on random images.

    Returns:
        name of an output -> largest difference, as a share of the largest value where that is above 1.
    """
    rng, size = np.random.default_rng(0), model.config.image_size
    batch, count = SIZES[0]
    references, driving = (rng.random((number, 3, size, size), np.float32) for number in (count, batch))
    expected = Animator(NnablaGraphs(*model), references, batch, breakdown)
    actual = Animator(graphs, references, batch, breakdown)
    detected = expected.keypoints(driving)
    pairs: dict[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]] = {
        "reference keypoints": (expected.reference_keypoints, actual.reference_keypoints),
        "driving keypoints": (detected, actual.keypoints(driving)),
    }
    if breakdown:
        (prediction, shares), (other, other_shares) = (each.render_breakdown(detected) for each in (expected, actual))
        pairs["breakdown"] = ([prediction, *shares], [other, *other_shares])
    rendered = Animator(graphs, references, batch).render(detected)
    pairs["prediction"] = ([expected.render(detected)], [rendered])
    return {name: float(np.max([*map(_error, *arrays)])) for name, arrays in pairs.items()}  # max() passes NaN over


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))


def report_errors(errors: dict[str, float], tolerance: float = TOLERANCE) -> None:
    """Print the largest errors; UserError if one is too large."""
    for name, error in errors.items():
        print(f"{name}: differs from nnabla by at most {error:.1e}")
    if not all(error <= tolerance for error in errors.values()):
        raise UserError(f"onnxruntime and nnabla differ by more than {tolerance:g}; please report it with the above")


if __name__ == "__main__":
    run_command(main)
