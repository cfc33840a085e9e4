"""Parts of inference, each on every backend: seconds a call, and the work in it."""

import tempfile
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
from tqdm import tqdm

from benchmarks.timing import Row, convolution_gflop, median_seconds
from mrfomm.model.checkpoint import ParameterTree
from mrfomm.networks import ops
from mrfomm.networks.fusion import fuse
from mrfomm.networks.generator import decode, warp_features
from mrfomm.networks.geometry import coordinate_grid
from mrfomm.networks.keypoints import Keypoints
from mrfomm.networks.motion import Motion, estimate_motion
from mrfomm.onnx.functions import export
from mrfomm.onnx.graphs import frame_graph, keypoint_graph, reference_graph
from mrfomm.onnx.trace import Signature, Sizes
from mrfomm.reenactment.onnx_backend import OnnxGraphs


def motion_graph(config, sizes):
    """Small images of the references, their keypoints and the driving frame's, one for each -> motion."""
    outputs = reference_graph(config, sizes).outputs
    shapes = {name: variable.shape for name, variable in outputs.items() if name != "reference_features"}
    shapes.update(
        {name.replace("reference", "driving"): shape for name, shape in shapes.items() if "image" not in name}
    )
    inputs = {name: nn.Variable(shape) for name, shape in shapes.items()}
    driving, references = (
        Keypoints(inputs[f"{side}_value"], inputs[f"{side}_jacobian"]) for side in ("driving", "reference")
    )
    options = {name: value for name, value in vars(config.motion).items() if name != "scale"}
    flow, occlusion, _ = estimate_motion(inputs["reference_image"], references, driving, **options)
    return Signature(inputs, {"flow": flow, "occlusion": occlusion})


def fusion_graph(config, sizes):
    """The references' features and motions of one frame -> fused feature: warp, occlusion and fusion."""
    features = nn.Variable(reference_graph(config, sizes).outputs["reference_features"].shape)
    small = int(config.image_size * config.motion.scale)
    flow, occlusion = nn.Variable((sizes.references, small, small, 2)), nn.Variable((sizes.references, 1, small, small))
    warped, shown = warp_features(features, Motion(flow, occlusion, None))
    warped, shown = (F.reshape(each, (1, *each.shape)) for each in (warped, shown))  # [1,K,C,h,w]
    fused, _ = fuse(warped, shown, config.fusion.mode, config.fusion.kernel)
    return Signature({"features": features, "flow": flow, "occlusion": occlusion}, {"fused": fused})


def decoder_graph(config, sizes):
    """Fused feature -> prediction."""
    _, channels, height, width = reference_graph(config, sizes).outputs["reference_features"].shape
    fused = nn.Variable((sizes.batch, channels, height, width))
    net = config.generator
    painted = decode(fused, net.expansion, net.max_features, net.down_blocks, net.bottleneck_blocks)
    return Signature({"fused": fused}, {"prediction": painted})


# name of a part -> (its graph, whether its cost depends on K); "frame" is motion, fusion and decoder together
PARTS = {
    "keypoints": (keypoint_graph, False),
    "reference (once a run)": (reference_graph, True),
    "motion": (motion_graph, True),
    "warp and fusion": (fusion_graph, True),
    "decoder": (decoder_graph, False),
    "frame": (frame_graph, True),
}


def measure(config, sizes, counts, backends, seconds):
    """Rows of every part for image sizes, numbers of references and backends.

    Args:
        config: function of the image size -> ModelConfig.
        sizes: image sizes. counts: K. backends: names from RUNNERS. seconds: to spend on one measurement.
    """
    cases = [
        (size, name, count)
        for size in sizes
        for name, (_, by_count) in PARTS.items()
        for count in (counts if by_count else counts[:1])
    ]
    for size, name, count in tqdm(cases, desc="inference", unit="case"):
        build, _ = PARTS[name]
        model, tree = config(size), ParameterTree()
        with tree.scope():
            gflop = convolution_gflop(_build(build, model, count, ops.NNABLA).outputs.values())
            for backend in backends:
                run = RUNNERS[backend](build, model, count)
                yield Row("inference", name, backend, size, count, median_seconds(run, seconds), gflop)


def _build(build, model, count, operators):
    with ops.implementation(operators):
        return build(model, Sizes(1, count))


def _examples(signature):
    """Arrays for a graph's inputs: small motions, everything else at random."""
    rng = np.random.default_rng(0)
    return {name: _example(name, variable.shape, rng) for name, variable in signature.inputs.items()}


def _example(name, shape, rng):
    if name.endswith("jacobian"):
        return np.broadcast_to(np.eye(2, dtype=np.float32), shape)
    if name == "flow":
        return np.broadcast_to(coordinate_grid(*shape[1:3]), shape)
    return rng.random(shape, np.float32)


def _nnabla_runner(build, model, count, operators=ops.NNABLA):
    signature = _build(build, model, count, operators)
    for name, array in _examples(signature).items():
        signature.inputs[name].d = array
    outputs = list(signature.outputs.values())
    return lambda: nn.forward_all(outputs, clear_no_need_grad=True)


def _cpu_runner(build, model, count):
    return _nnabla_runner(build, model, count, ops.fastest(nn.get_current_context()))


def _onnx_runner(build, model, count):
    inputs = _examples(_build(build, model, count, ops.NNABLA))
    with tempfile.TemporaryDirectory() as folder:
        export(lambda sizes: build(model, sizes), "part", Path(folder, "part.onnx"))
        graphs = OnnxGraphs(folder)
        graphs.run("part", inputs)  # loads the file, before its folder goes
    return lambda: graphs.run("part", inputs)


RUNNERS = {"nnabla": _nnabla_runner, "nnabla + CPU operators": _cpu_runner, "onnxruntime": _onnx_runner}
