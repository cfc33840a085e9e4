"""What the page in web/ is given of a model: three small graphs, and ``model.json`` about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mrfomm import bundled
from mrfomm.data.labels import KINDS, read_labels
from mrfomm.media.images import fit
from mrfomm.media.reading import open_frames
from mrfomm.model import Model
from mrfomm.networks.fusion import modes_of
from mrfomm.onnx.convolutions import fold_upsampling
from mrfomm.onnx.graphs import export_graph
from mrfomm.reenactment.animator import images_to_array
from mrfomm.reenactment.onnx_backend import OnnxGraphs
from mrfomm.store import whole_file

GRAPHS = ("encoder", "keypoints", "blend")
RECORDED = bundled.BENCHMARK / "s1_soft"  # a head that turns about one axis after the other
STEP = 10  # frames of it between two poses that are kept: 10 degrees of yaw, 5 of pitch and roll
MAX_REFERENCES = 8


def write_web_model(model: Model, folder: Path) -> None:
    """Write the graphs, in half precision, and model.json into a folder. The page fetches nothing else of a model."""
    for name in GRAPHS:  # the other rewrites enlarge the weights
        export_graph(name, model, folder / f"{name}.onnx", (fold_upsampling,), half=True)
    graphs = OnnxGraphs(folder)
    record = {
        "size": model.config.image_size,
        "keypoints": model.config.num_keypoints,
        "max_references": MAX_REFERENCES,
        "fusion": modes_of(model.config.fusion.mode),
        "graphs": {name: graphs.names(name)._asdict() for name in GRAPHS},
        "turn": {axis: recorded_poses(graphs, axis, model.config.image_size) for axis in KINDS},
    }
    with whole_file(folder / "model.json") as aside:
        aside.write_text(json.dumps(record))


def recorded_poses(graphs: OnnxGraphs, axis: str, size: int) -> dict[str, Any]:
    """The poses of a head that turns about one axis: ``angles`` in degrees, P of them, ascending; ``value`` [P][2n],
    ``jacobian`` [P][4n]."""
    angles = read_labels(RECORDED / f"{axis}.csv")[::STEP, KINDS.index(axis)].tolist()
    frames = list(open_frames(RECORDED / f"{axis}.mp4"))[::STEP]
    found = graphs.run("keypoints", {"image": images_to_array([fit(frame, size) for frame in frames])})
    value, jacobian = (
        np.round(found[name].reshape(len(angles), -1).astype(float), 6).tolist()
        for name in ("driving_value", "driving_jacobian")
    )
    return {"angles": angles, "value": value, "jacobian": jacobian}
