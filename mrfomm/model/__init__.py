"""A configuration and its weights: how the networks are put together, and the files that hold them."""

from mrfomm.model.composition import (
    Model,
    References,
    Synthesis,
    contributions,
    create_parameters,
    encode_references,
    judge,
    kept,
    keypoints_of,
    load_model,
    model_digest,
    paint,
    repeat_each,
    repeat_references,
    synthesise,
)

__all__ = [
    "Model",
    "References",
    "Synthesis",
    "contributions",
    "create_parameters",
    "encode_references",
    "judge",
    "kept",
    "keypoints_of",
    "load_model",
    "model_digest",
    "paint",
    "repeat_each",
    "repeat_references",
    "synthesise",
]
