"""The benchmarks count operations right, time what they say, and report it."""

import itertools
import json
from types import SimpleNamespace

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
import tiny

from benchmarks import inference, library, run, timing, training_step
from benchmarks.timing import Row, convolution_gflop, matrix_peak, median_seconds


def test_operations_of_convolutions_are_counted_once_each():
    x = nn.Variable((2, 3, 10, 12))
    weight = nn.Variable((5, 3, 3, 3))
    y = F.convolution(x, weight, pad=(1, 1))
    both = [F.relu(y), F.convolution(y, nn.Variable((7, 5, 1, 1)), stride=(2, 2))]
    first = 2 * (2 * 5 * 10 * 12) * (3 * 3 * 3)
    second = 2 * (2 * 7 * 5 * 6) * 5
    assert convolution_gflop(both) == pytest.approx((first + second) / 1e9)


def test_vox_needs_what_its_layers_add_up_to():
    """The decoder of vox-256: twelve 3x3 convolutions of 256 at 64x64, two after upsampling, the last 7x7."""
    config = run.load_config(run.bundled.CONFIGS / run.ARCHITECTURE).model
    with nn.parameter_scope("", {}):
        outputs = inference.decoder_graph(config, inference.Sizes(1, 1)).outputs.values()
        residual = 12 * 64**2 * 256 * 256 * 9
        up = 128**2 * 256 * 128 * 9 + 256**2 * 128 * 64 * 9
        assert convolution_gflop(outputs) == pytest.approx(2 * (residual + up + 256**2 * 64 * 3 * 49) / 1e9)


@pytest.fixture
def clock(monkeypatch):
    """The clock of what is timed, which stands still; ``clock.now`` is the test's to set."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_the_median_leaves_the_first_call_out(clock):
    waits = iter([200, 1, 3, 2])

    def wait():
        clock.now += next(waits)

    assert median_seconds(wait, seconds=0, at_least=3) == 2


def test_peak_is_a_rate(clock, monkeypatch):
    """Two operations for each of 64^3 pairs of numbers, in a product that takes a second."""
    monkeypatch.setattr(clock, "perf_counter", itertools.count().__next__)
    assert matrix_peak(64, seconds=0) == pytest.approx(2 * 64**3 / 1e9)


@pytest.mark.parametrize("backend", inference.RUNNERS)
def test_every_part_runs_on_every_backend(backend):
    rows = list(inference.measure(lambda size: tiny.config().model, [32], [1, 2], [backend], seconds=0))
    assert {(row.part, row.references) for row in rows} == {
        (part, count) for part, (_, by_count) in inference.PARTS.items() for count in ([1, 2] if by_count else [1])
    }
    work = {(row.part, row.references): row.gflop for row in rows}
    assert work["frame", 2] == pytest.approx(work["motion", 2] + work["warp and fusion", 2] + work["decoder", 1])
    assert all(row.seconds > 0 for row in rows)


def test_backends_compute_the_same():
    build, model = inference.frame_graph, tiny.config().model
    with tiny.random_tree(model, scale=0.1).scope():
        results = [runner(build, model, 2)() for runner in inference.RUNNERS.values()]
        signature = inference._build(build, model, 2, run.ops.NNABLA)
        for name, array in inference._examples(signature).items():
            signature.inputs[name].d = array
        signature.outputs["prediction"].forward()
    assert np.abs(results[-1]["prediction"] - signature.outputs["prediction"].d).max() < 1e-5


def test_training_step_prints_its_figures_and_its_profile(capfd):
    case = ["--configs", "person-64", "--references", "3", "--stages", "2"]
    assert training_step.main([*case, "--batch", "2", "--seconds", "0", "--profile"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    wanted = {"config": "person-64", "references": 3, "stage": 2, "batch": 2, "context": "cpu:float", "processes": 1}
    assert wanted.items() <= result.items()
    assert {"Convolution forward", "Convolution backward"} <= result["profile"].keys()
    assert min(result["seconds"], result["memory_mb"], *result["profile"].values()) > 0
    assert 0 < result["host_share"] < 0.5


def test_training_step_gives_each_case_a_process_and_ends_at_one_that_fails(monkeypatch):
    ran = []

    def run(command, cwd):
        ran.append(" ".join(command[3:9]))
        return SimpleNamespace(returncode=2 if "vox-256" in command else 0)

    monkeypatch.setattr(training_step.subprocess, "run", run)
    assert training_step.main([]) == 0
    cases = [f"--configs heads-64 --references {count} --stages {stage}" for count in (1, 3) for stage in (1, 2)]
    assert ran == cases
    assert training_step.main(["--configs", "vox-256", "heads-64"]) == 2
    assert len(ran) == len(cases) + 1


def test_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "matrix_peak", lambda: 100.0)
    rows = [Row("inference", "decoder", "onnxruntime", 256, 3, 0.5, 40.0), Row("data", "a sample", "-", 64, 3, 0.012)]
    for row in rows:
        monkeypatch.setitem(run.MEASURES, row.section, lambda args, profiles, row=row: [row])
    assert run.main(["--sections", "inference", "data", "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "benchmarks.json").read_text())
    assert [Row(**row) for row in report["rows"]] == rows
    text = (tmp_path / "out" / "benchmarks.md").read_text()
    assert "| decoder | onnxruntime | 256 | 3 | 500.0 | 40.00 | 80% |" in text
    assert "| a sample | - | 64 | 3 | 12.0 |  |  |" in text
    assert text in capsys.readouterr().out


@pytest.mark.slow
def test_the_library_writes_the_commands_frames(capsys):
    assert library.main(["--runs", "1", "--repeats", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "75 frames, 1 pairs; same frames: True"
    assert [line.partition(":")[0] for line in told[1:]] == ["wall", "processor"]
