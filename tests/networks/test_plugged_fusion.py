"""Fusion modes of others: the example of docs/fusion.md from training to ONNX, and whose word imports a module."""

import re
import sys
from pathlib import Path
from unittest.mock import MagicMock

import imageio.v2 as imageio
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
import tiny
from reference.graphs import variable

from mrfomm.app import page, studio
from mrfomm.commands import animate, export, train
from mrfomm.config import FUSION_MODES, config_to_yaml
from mrfomm.errors import UserError
from mrfomm.model import load_model, model_digest
from mrfomm.model.checkpoint import load_checkpoint
from mrfomm.networks import fusion

DOCS = Path(__file__).parents[2] / "docs"
UNNAMED = r"my_fusion:trusting is not known here .*; one of your own is imported only where you name it"
RNG = np.random.default_rng(0)
WARPED, OCCLUSION = RNG.normal(size=(2, 3, 4, 5, 6)), RNG.uniform(0.1, 1, (2, 3, 1, 5, 6))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Each test has its own registry, and imports plugged modules anew."""
    forgotten(monkeypatch)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with my_fusion.py as the page has it, tiny.yaml and data."""
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "fusion.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_fusion.py").write_text(example, encoding="utf-8")
    changes = {"model": {"fusion": {"mode": "my_fusion:trusting"}}, "data": {"num_repeats": 1}}
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(tiny.config(**changes)), encoding="utf-8")
    tiny.data(tmp_path / "data")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(place):
    arguments = ["--config", "tiny.yaml", "--data", "data", "--output", "run", "--context", "cpu"]
    assert train.main(arguments) == 0
    return place / "run"


def forgotten(monkeypatch):
    """As in another process."""
    monkeypatch.setattr(fusion, "_MODES", {name: mode for name, mode in fusion._MODES.items() if ":" not in name})
    for name in ("my_fusion", "my_plain"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def fuse(mode):
    with nn.parameter_scope("", {}):
        fused = fusion.fuse(variable(WARPED), variable(OCCLUSION), mode)
        nn.forward_all(fused)
    return fused


def test_config_and_registry_know_the_same_modes():
    assert [name for name in fusion._MODES if ":" not in name] == list(FUSION_MODES)


def test_the_example_begins_as_occlusion_does_and_learns(place):
    """Its scores start equal, so that what is left are the occlusion maps."""
    fusion.plug("my_fusion:trusting")
    np.testing.assert_allclose(fuse("my_fusion:trusting").feature.d, fuse("occlusion").feature.d, rtol=1e-4, atol=1e-6)
    weights = load_checkpoint(trained(place)).parameters
    assert np.abs(weights["fusion/scores/conv/W"]).max() > 0


def test_a_checkpoint_imports_nothing_by_itself(place, monkeypatch):
    run = trained(place)
    assert model_digest(load_model(run)) == model_digest(load_model(run))
    forgotten(monkeypatch)
    words = ["--weights", "run", "--context", "cpu"]
    for refused in (
        lambda: load_model(run),
        lambda: load_model(run, "my_fusion:trusting"),
        lambda: animate.main(words),
        lambda: studio.Workshop(run, "cpu", "nnabla", studio.Limits(1, 1)),
        lambda: train.main(["--resume", "run", "--context", "cpu"]),
        lambda: train.main(["--resume", "run", "--context", "cpu", "--set", "train.epochs=3"]),
    ):
        with pytest.raises(UserError, match=UNNAMED):
            refused()
        assert "my_fusion" not in sys.modules
    assert load_model(run, "mean").config.fusion.mode == "mean"
    named = "model.fusion.mode=my_fusion:trusting"
    assert train.main(["--resume", "run", "--context", "cpu", "--set", "train.epochs=3", named]) == 0
    assert load_checkpoint(run).state["step"] == 3


def test_animating_with_it_and_exporting_it(place, monkeypatch, capsys):
    run = trained(place)
    forgotten(monkeypatch)
    (place / "refs").mkdir()
    for i, frame in enumerate(tiny.frames(5, seed=3)):
        imageio.imwrite(place / "refs" / f"{i}.png", frame)
    words = ["--weights", "run", "--driving", "refs", "--refs", "refs/0.png", "refs/3.png", "--context", "cpu"]
    for backend in ("nnabla", "onnx"):
        assert not animate.main(
            [*words, "--fusion", "my_fusion:trusting", "--backend", backend, "--output", f"{backend}/"]
        )
    for ours, theirs in zip(sorted(Path("nnabla").glob("*.png")), sorted(Path("onnx").glob("*.png")), strict=True):
        assert np.abs(np.int16(imageio.imread(ours)) - imageio.imread(theirs)).max() <= 1
    assert export.main([str(run), "--output", "graphs", "--check"]) == 0


def test_a_loop_over_references_is_refused_by_the_export_alone(place):
    def looping(warped, occlusion, kernel):
        parts = [occlusion[:, k] for k in range(occlusion.shape[1])]
        return F.stack(*(part / sum(parts) for part in parts), axis=1)

    fusion.register("my:looping", looping)
    tiny.checkpoint(place / "weights", model={"fusion": {"mode": "mean"}})
    model = load_model(place / "weights", "my:looping")
    assert model.config.fusion.mode == "my:looping"
    with pytest.raises(UserError, match="can't become an ONNX graph .*; use --backend nnabla"):
        export.main([str(place / "weights"), "--output", "graphs", "--fusion", "my:looping"])


def test_the_page_offers_it_by_its_name(place, monkeypatch):
    """One without parameters, of a module that registers nothing."""
    (place / "my_plain.py").write_text("def first(warped, occlusion, kernel):\n    return occlusion * 0 + 1\n")
    from mrfomm.app.__main__ import parse_arguments

    assert parse_arguments(["--plugin", "my_plain:first"]).plugin == "my_plain:first"
    tiny.checkpoint(place / "weights")
    worker = studio.Workshop(place / "weights", "cpu", "nnabla", studio.Limits(1, 1))
    assert worker.fusion_modes == ["patch", "mean", "occlusion", "my_plain:first"]
    monkeypatch.setattr(page, "gradio", MagicMock())
    page._options(worker)
    assert page.gradio.Dropdown.call_args[0][0][-2:] == [("by occlusion maps", "occlusion"), ("my_plain:first",) * 2]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda w, o, k: PF.convolution(o[:, 0], 1, (1, 1)), "has parameters; register it with learned=True"),
        (lambda w, o, k: o[:, :1], r"mask of shape \(2, 1, 1, 5, 6\); it must be \(2, 3, 1, 5, 6\) or \(2, 3, 4, 5"),
    ],
)
def test_what_a_mode_must_not_do(function, problem):
    fusion.register("my:own", function)
    with pytest.raises(fusion.FusionError, match=f"my:own .*{problem}|my:own {problem}"):
        fuse("my:own")


@pytest.mark.parametrize("name", ["os", "os:nothing", "os:sep", "no_such_module:f", "..os:path"])
def test_what_is_not_there(name):
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        train.check_fusion(name, is_asked=True)
    assert "\n" not in str(caught.value)
    if ":" not in name:
        with pytest.raises(fusion.FusionError, match="has a colon"):
            fusion.register(name, lambda *_: None)


def test_a_changed_source_is_another_model(place, monkeypatch):
    """Else frames and graphs in the caches would be taken for the new one's."""
    fusion.plug("my_fusion:trusting")
    before = fusion.mode_of("my_fusion:trusting").version
    with open("my_fusion.py", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    forgotten(monkeypatch)
    fusion.plug("my_fusion:trusting")
    assert fusion.mode_of("my_fusion:trusting").version != before
