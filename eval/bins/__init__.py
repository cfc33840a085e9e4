"""The paper's LPIPS in bins of the head's angle: of images with angles (``score``), or of folders (``score_folders``).

axis, lpips = bins.Axis(2, 60), load_lpips(bundled.LPIPS_ALEXNET)
(score,) = bins.score(lpips, axis, bins.Images(angles, true.__getitem__), [bins.Images(angles, made.__getitem__)])
pairs = bins.score_folders(lpips, axis, read_patterns(pattern_folders("recordings")), {"mine": "frames/mine"})
"""

import importlib
from collections.abc import Sequence

from .folders import score_folders
from .metric import Axis, Images, score

__all__ = ["Axis", "Images", "main", "score", "score_folders"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m eval.bins`, which needs models, back ends and matplotlib."""
    return importlib.import_module(".__main__", __package__).main(arguments)
