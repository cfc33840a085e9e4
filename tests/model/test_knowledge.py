"""What a model knows goes with it: from training, or packing, into checkpoint, export and the words of animate."""

import json

import numpy as np
import pytest
import tiny

from mrfomm import bundled
from mrfomm.commands import export
from mrfomm.config.knowledge import Knowledge, knowledge_of
from mrfomm.errors import UserError
from mrfomm.model import load_model, model_digest
from mrfomm.model.checkpoint import load_checkpoint, read_h5, save_checkpoint
from mrfomm.reenactment.backends import load_weights, open_engine
from mrfomm.reenactment.onnx_backend import OnnxGraphs
from scripts import ship_weights

TOLD = {"trained_on": "blobs, 32x32 pixels", "expect": "anything else melts"}


@pytest.fixture
def weights(tmp_path):
    config = tiny.config(model={"fusion": {"mode": "mean"}})
    save_checkpoint(tmp_path / "weights", config, tiny.random_tree(config.model).all(), {"step": 3, **TOLD})
    return tmp_path / "weights"


def test_a_checkpoint_carries_it(weights):
    loaded = load_weights(weights)
    assert loaded.knowledge == Knowledge(*TOLD.values())
    assert loaded.fusion_modes == ("mean", "occlusion")
    assert loaded.digest == model_digest(load_model(weights))
    assert load_weights(weights, "occlusion").fusion_modes == ("occlusion", "mean")
    line = loaded.expectation([*bundled.SAMPLE_REFERENCES, "me.mp4"])
    assert line.startswith("the model was trained on blobs, 32x32 pixels; anything else melts; published weights")
    assert loaded.expectation([*bundled.SAMPLE_REFERENCES, bundled.SAMPLE_DRIVING]) is None


def test_older_checkpoints_know_nothing_and_say_nothing(tmp_path):
    loaded = load_weights(tiny.checkpoint(tmp_path / "old"))
    assert loaded.knowledge == Knowledge("", "")
    assert loaded.expectation(["me.png"]) is None


def test_packing_keeps_it_or_says_it_anew(weights, tmp_path):
    ship_weights.main([str(weights), "-o", str(tmp_path / "kept")])
    assert load_checkpoint(tmp_path / "kept").state == {"step": 3, **TOLD}
    ship_weights.main([str(weights), "-o", str(tmp_path / "anew"), "--expect", ""])
    assert load_weights(tmp_path / "anew").knowledge == Knowledge(TOLD["trained_on"], "")


def test_exporting_keeps_it(weights, tmp_path):
    folder = tmp_path / "exported"
    assert export.main([str(weights), "-o", str(folder)]) == 0
    ours, theirs = load_weights(folder), load_weights(weights)
    assert (ours.knowledge, ours.digest, ours.model.size, ours.model.keypoints, ours.fusion_modes) == (
        theirs.knowledge,
        theirs.digest,
        32,
        3,
        ("mean",),
    )
    with pytest.raises(UserError, match="is an exported model already"):
        export.main([str(folder), "-o", str(tmp_path / "again")])
    with pytest.raises(UserError, match="is an exported model, for animation only; give the checkpoint"):
        load_model(folder)


def test_half_precision_halves_the_files_and_says_how_far_off_it_is(weights, tmp_path, capsys):
    for name, options in (("whole", []), ("half", ["--half", "--check"])):
        assert export.main([str(weights), "-o", str(tmp_path / name), *options]) == 0
    assert "prediction: differs from nnabla by at most" in capsys.readouterr().out
    image = {"image": np.random.default_rng(0).random((2, 3, 32, 32), np.float32)}
    whole, half = (OnnxGraphs(tmp_path / name).run("keypoints", image)["driving_value"] for name in ("whole", "half"))
    assert 0 < np.abs(whole - half).max() < 0.01


def test_the_bundled_exported_model_is_the_bundled_model():
    """Else: export it again, see mrfomm/assets/README.md."""
    theirs, ours = load_weights(bundled.MODELS["patch"]), load_weights(bundled.EXPORTED)
    assert (ours.digest, ours.knowledge) == (theirs.digest, theirs.knowledge)
    assert bundled.MODELS["patch"] == bundled.MODEL  # where nnabla is
    assert open_engine(ours, breakdown=True).digest() == ours.digest
    for folder in bundled.MODELS.values():
        knowledge = load_weights(folder).knowledge
        assert knowledge.trained_on.startswith("800 clips of 400 rendered heads, 64x64 pixels")
        assert "photographs" in knowledge.expect
        assert {value.dtype for value in read_h5(folder / "parameters.h5").values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("value", [None, 7, ["x"], {"a": 1}, True])
def test_what_is_no_text_counts_as_unknown(value):
    assert knowledge_of({"trained_on": value}) == Knowledge("", "")


def test_texts_of_strangers_are_one_short_line():
    text = knowledge_of(json.loads('{"expect": "a\\u001b[2J\\n b\\u202e' + "c" * 9999 + '"}')).expect
    assert text.startswith("a[2J bc")
    assert len(text) == 300
