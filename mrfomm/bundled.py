"""Paths of the files that come with the package: what the commands take when nothing else is named."""

import importlib.util
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
LPIPS_ALEXNET = ASSETS / "lpips_alex.npz"
MODELS = {name: ASSETS / f"heads-{name}" for name in ("fomm", "patch", "element")}  # docs/heads.md, The experiment
EXPORTED = ASSETS / "heads-patch-onnx"  # the same as MODELS["patch"], for where nnabla isn't
MODEL = MODELS["patch"] if importlib.util.find_spec("nnabla") else EXPORTED
SAMPLE_DRIVING = ASSETS / "samples" / "driving.mp4"
SAMPLE_REFERENCES = tuple(ASSETS / "samples" / f"reference_{name}.png" for name in ("front", "left", "right"))
SAMPLE_DATA = ASSETS / "samples" / "data"
BENCHMARK = ASSETS / "samples" / "paper"  # pose-labelled sequences for `python -m eval.bins`

_INSTALLED_CONFIGS = Path(__file__).parent / "configs"  # where setup.py puts them; a checkout has them at its top
CONFIGS = _INSTALLED_CONFIGS if _INSTALLED_CONFIGS.is_dir() else Path(__file__).parent.parent / "configs"
