"""Multi-reference face reenactment in nnabla (arXiv 2202.10758): ``Reenactor`` animates, ``load_model`` loads weights.

Importing the package imports neither; nnabla is imported with what needs it.
"""

import importlib
import importlib.util
import logging
import platform
import sys
from types import TracebackType
from typing import Any

__version__ = "0.1.0"

_DOORS = {"Reenactor": "mrfomm.reenactment.reenactor", "load_model": "mrfomm.model"}  # public name -> its module

# nnabla announces itself on the root logger when it is imported; only its warnings are of interest.
logging.getLogger("nnabla").setLevel(logging.WARNING)

_CORE = ("numpy", "cv2", "av", "imageio", "PIL", "yaml", "tqdm")  # without one, this is no Python of ours
_OF_NNABLA = ("nnabla", "h5py", "matplotlib")  # setup.py leaves these out where nnabla has no release
_tell_others = sys.excepthook


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS[name]), name)


def _tell_missing(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """In place of the traceback of an import of what setup.py names: one line, and exit code 2."""
    from mrfomm.errors import as_called_here

    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name not in (*_CORE, *_OF_NNABLA):
        _tell_others(kind, error, traceback)
        return
    here = f"Python {platform.python_version()} on {sys.platform}"
    remedy = "use CPython 3.10 on Linux, or animate with an exported model: --weights of what mrfomm.export wrote there"
    line = f"this needs nnabla, which isn't installed ({here}); {remedy}"
    if absent := [each for each in _CORE if importlib.util.find_spec(each) is None]:
        line = f"{absent[0]} isn't installed for {sys.executable}; make venv, then . .venv/bin/activate"
    elif name == "matplotlib":
        line = "this needs matplotlib; pip install matplotlib, or pip install -e .[app] for the page"
    print(f"error: {as_called_here(line)}", file=sys.stderr)
    sys.exit(2)


if importlib.util.find_spec("nnabla") is None:  # whatever needs it fails where it imports it, wherever it began
    sys.excepthook = _tell_missing
