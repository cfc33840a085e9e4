"""Measure everything once, on this machine: `python -m benchmarks.run`.

Whole commands, parts of inference on every backend, a training step, the data loader and LPIPS, with the machine's own
float32 peak in the same run, so that every figure also stands as a share of the limit. Writes benchmarks.json and
benchmarks.md. Leave the machine alone meanwhile.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import imageio.v2 as imageio
import nnabla as nn
import numpy as np
from tqdm import tqdm

from benchmarks import inference
from benchmarks.timing import Row, machine, matrix_peak, median_seconds
from eval.lpips import load_lpips
from mrfomm import bundled
from mrfomm.config import load_config
from mrfomm.data.clips import find_clips
from mrfomm.data.loader import Loader
from mrfomm.errors import command_parser, run_command
from mrfomm.model import create_parameters
from mrfomm.model.checkpoint import ParameterTree, save_checkpoint
from mrfomm.networks import ops

ROOT = Path(__file__).parent.parent
ARCHITECTURE = "vox-256.yaml"
CLIP_LENGTHS = (2, 14)  # of the driving clips for whole commands


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    several = {"nargs": "+", "metavar": "NAME"}
    sections = list(MEASURES)
    add("--sections", **several, choices=sections, default=sections, help=f"what to do: {', '.join(sections)} (all)")
    add("--sizes", nargs="+", type=int, metavar="S", default=[64, 128, 256], help="sides, in pixels (64 128 256)")
    add("--references", nargs="+", type=int, metavar="K", default=[1, 3, 8], help="numbers of references (1 3 8)")
    runners = list(inference.RUNNERS)
    add("--backends", **several, choices=runners, default=runners, help=f"back ends: {', '.join(runners)} (all)")
    add(
        "--seconds",
        type=float,
        default=2.0,
        metavar="T",
        help="seconds to spend on each measurement, 3 calls at least (%(default)s)",
    )
    add("-o", "--output", metavar="DIR", default="benchmark", help="folder for benchmarks.json and .md (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    peak = matrix_peak()
    print(f"{peak:.0f} GFLOP/s: float32 product of two 4096x4096 matrices", file=sys.stderr)
    rows, profiles = [], {}
    for section in args.sections:
        rows += MEASURES[section](args, profiles)
    report = {
        "date": date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.run", *(sys.argv[1:] if arguments is None else arguments)]),
        "machine": machine(),
        "peak_gflops": {"before": peak, "after": matrix_peak()},
        "rows": [row._asdict() for row in rows],
        "profiles": profiles,
    }
    (folder / "benchmarks.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measure_inference(args, _):
    """Parts of the vox-256 architecture at several image sizes (keypoints and motion at 64x64), on every backend."""

    def config(size):
        scales = [f"model.{part}.scale={64 / size}" for part in ("keypoints", "motion")]
        return load_config(bundled.CONFIGS / ARCHITECTURE, [f"model.image_size={size}", *scales]).model

    return list(inference.measure(config, args.sizes, args.references, args.backends, args.seconds))


def measure_commands(args, _):
    """animate.py as a user starts it: start-up and seconds a frame, from two clips of different length; peak memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        weights = _random_checkpoint(folder / "weights")
        short, long = (_noise_clip(folder / str(count), count) for count in CLIP_LENGTHS)
        cases = [(backend, count) for backend in ("onnx", "nnabla") for count in args.references[:2]]
        for backend, count in tqdm(cases, desc="animate.py", unit="case"):
            options = ["--weights", weights, "--backend", backend, "--refs", *[short / "000000.png"] * count]
            _animate(folder, options, short)  # exports the graphs
            few, many = ([_animate(folder, options, clip) for _ in range(3)] for clip in (short, long))
            seconds = [statistics.median(run.seconds for run in runs) for runs in (few, many)]
            frame = (seconds[1] - seconds[0]) / (CLIP_LENGTHS[1] - CLIP_LENGTHS[0])
            rows.append(Row("commands", "animate.py, a frame", backend, 256, count, frame))
            memory = max(run.megabytes for run in many)
            start = seconds[1] - CLIP_LENGTHS[1] * frame
            rows.append(Row("commands", f"animate.py, start (peak {memory:.0f} MB)", backend, 256, count, start))
    return rows


def _random_checkpoint(folder):
    config = load_config(bundled.CONFIGS / ARCHITECTURE)
    tree = ParameterTree()
    with tree.scope():
        create_parameters(config.model)
    save_checkpoint(folder, config, tree.all())
    return folder


def _noise_clip(folder, count, size=256):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        imageio.imwrite(folder / f"{i:06d}.png", rng.integers(0, 256, (size, size, 3), np.uint8))
    return folder


class CommandRun(NamedTuple):
    """Wall seconds, and the peak memory of the process in MB."""

    seconds: float
    megabytes: float


# A small process in between: the peak that the kernel reports of a child includes its parent's size before exec.
_WAIT = "import resource as r, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=sys.stderr); "
_WAIT += "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"


def _animate(folder, options, clip):
    """Run animate.py -> CommandRun."""
    command = [sys.executable, ROOT / "animate.py", "--driving", clip, "--output", folder / "out.mp4", *options]
    start = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    result = subprocess.run([sys.executable, "-c", _WAIT, *map(str, command)], check=True, **pipes)
    return CommandRun(time.perf_counter() - start, int(result.stdout) / 1024)


def measure_training(_, profiles):
    """A training step: nnabla's own functions, the CPU operators, and the same batch shared by two processes."""
    two = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    cases = {
        "nnabla": ([], {ops.SWITCH: "0"}),
        "CPU operators, 1 thread": ([], {"OMP_NUM_THREADS": "1"}),
        "CPU operators": ([], {}),
        "CPU operators, 2 processes": (two, {}),
    }
    step = [sys.executable, "-m", "benchmarks.training_step", "--seconds", "20"]
    step += ["--configs", "person-64", "--references", "3", "--stages", "1"]
    rows = []
    for backend, (launcher, settings) in tqdm(cases.items(), desc="training step", unit="case"):
        profiled = [] if launcher else ["--profile"]
        result = _training_step([*launcher, *step, *profiled], settings)
        rows.append(Row("training", "step, batch 8", backend, 64, 3, result["seconds"]))
        if profiled:
            profiles[backend] = result["profile"]
    return rows


def _training_step(command, settings):
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    environment = {**os.environ, **root, **settings}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # mpirun is in the environment
    output = subprocess.run(command, env={**environment, "PATH": path}, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(re.search(rb"^\{.*\}$", output.stdout, re.MULTILINE).group())


def measure_data(args, _):
    """The loader: seconds a sample (three references and a driving frame), from the bundled mp4 clips."""
    config = load_config(bundled.CONFIGS / "demo-64.yaml")
    rows = []
    for workers in (0, 1):
        loader = Loader(
            find_clips(bundled.SAMPLE_DATA / "train"),
            config.data.augmentation,
            size=config.model.image_size,
            num_references=3,
            batch_size=8,
            seed=0,
            num_repeats=1000,
            num_workers=workers,
        )
        with loader:
            batches = loader.epoch(0, 0)
            seconds = median_seconds(lambda: next(batches), args.seconds) / 8  # noqa: B023 - called at once
            batches.close()
        rows.append(Row("data", f"a sample, {workers} workers", "-", config.model.image_size, 3, seconds))
    return rows


def measure_metrics(args, _):
    """LPIPS (AlexNet): seconds a pair of pictures, eight at a time, by nnabla's functions and the CPU operators."""
    pairs = np.random.default_rng(0).integers(0, 256, (2, 8, 256, 256, 3), np.uint8)
    rows = []
    for backend, operators in {"nnabla": ops.NNABLA, "CPU operators": ops.fastest(nn.get_current_context())}.items():
        with ops.implementation(operators):
            metric = load_lpips(bundled.LPIPS_ALEXNET)
            seconds = median_seconds(lambda: metric(*pairs), args.seconds) / 8  # noqa: B023 - called at once
        rows.append(Row("metrics", "LPIPS of a pair", backend, 256, 1, seconds))
    return rows


MEASURES = {
    "inference": measure_inference,
    "commands": measure_commands,
    "training": measure_training,
    "data": measure_data,
    "metrics": measure_metrics,
}


def markdown(report):
    """The report as a page."""
    peak = report["peak_gflops"]
    limit = max(peak.values())
    where = report["machine"]
    lines = [
        "# Benchmarks",
        "",
        f"`{report['command']}`, {report['date']}: {where['processor']}, {where['cores']} cores.",
        f"The product of two 4096x4096 float32 matrices ran at {peak['before']:.0f} GFLOP/s before and "
        f"{peak['after']:.0f} after; shares are of the larger. Rewritten convolutions need fewer operations than are",
        "counted, so a share can pass 100 %. Times vary by some 20 % between runs: compare within this page.",
        "",
        "Parts are of the vox-256 architecture with random weights, with keypoints and motion at 64x64 whatever the",
        "size, not of the bundled 64x64 models; training steps are of `configs/person-64.yaml` with ten keypoints.",
    ]
    for section in dict.fromkeys(row["section"] for row in report["rows"]):
        lines += ["", f"## {section.capitalize()}", "", *_table(section, report["rows"], limit)]
    for backend, profile in report["profiles"].items():
        lines += ["", f"## Profile of a training step: {backend}", "", *_profile_table(profile)]
    return "\n".join(lines) + "\n"


def _table(section, rows, limit):
    yield "| part | backend | size | K | ms | GFLOP | share of the peak |"
    yield "|---|---|---|---|---|---|---|"
    for row in (Row(**row) for row in rows if row["section"] == section):
        work = ("", "") if row.gflop is None else (f"{row.gflop:.2f}", f"{row.gflop / row.seconds / limit:.0%}")
        cells = (row.part, row.backend, row.size, row.references, f"{1000 * row.seconds:.1f}", *work)
        yield "| " + " | ".join(map(str, cells)) + " |"


def _profile_table(profile):
    total = sum(profile.values())
    yield f"{1000 * total:.0f} ms in the graph, forward and backward."
    yield ""
    yield "| operator | ms | share |"
    yield "|---|---|---|"
    for name, seconds in profile.items():
        if seconds > total / 100:
            yield f"| {name} | {1000 * seconds:.1f} | {seconds / total:.1%} |"


if __name__ == "__main__":
    run_command(main)
