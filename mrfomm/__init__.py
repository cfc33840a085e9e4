"""Multi-reference face reenactment in nnabla (arXiv 2202.10758): ``Reenactor`` animates, ``load_model`` loads weights.

Importing the package imports neither; nnabla is imported with what needs it.
"""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

_DOORS = {"Reenactor": "mrfomm.reenactment.reenactor", "load_model": "mrfomm.model"}  # public name -> its module

# nnabla announces itself on the root logger when it is imported; only its warnings are of interest.
logging.getLogger("nnabla").setLevel(logging.WARNING)


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS[name]), name)
