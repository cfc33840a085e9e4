"""L1D, AKD, AED, PSNR, SSIM, LPIPS, sharpness of rebuilt frames: of arrays (``score``), or of folders (``score_runs``).

measures = Measures(load_lpips(bundled.LPIPS_ALEXNET), {"mediapipe": landmark_backend("mediapipe")})
rows = reconstruction.score(measures, truth, pictures)
methods = reconstruction.score_runs(measures, open_runs({"mine": "results/mine"}), "reconstruction-scores")
"""

import importlib
from collections.abc import Sequence

from .metrics import Measures, score
from .runs import Method, open_runs, score_runs

__all__ = ["Measures", "Method", "main", "open_runs", "score", "score_runs"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m eval.reconstruction`, which can also rebuild the bundled clips first."""
    return importlib.import_module(".__main__", __package__).main(arguments)
