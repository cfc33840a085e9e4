"""Multi-reference face reenactment in nnabla (arXiv 2202.10758). Importing the package imports no nnabla."""

import logging

__version__ = "0.1.0"

# nnabla announces itself on the root logger when it is imported; only its warnings are of interest.
logging.getLogger("nnabla").setLevel(logging.WARNING)
