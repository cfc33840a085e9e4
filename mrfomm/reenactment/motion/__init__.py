"""Motion: from the poses of driving frames to the poses that are drawn, and the file that keeps driving poses."""

from mrfomm.reenactment.motion.file import MOTION_SUFFIX, Motion, load_motion, probe_picture, save_motion
from mrfomm.reenactment.motion.transfer import (
    MOST_STRENGTH,
    RELATIVE,
    KeypointArrays,
    Move,
    Start,
    Transfer,
    find_start,
    hull_area,
    movement_scale,
    normalised_points,
    relative_motion,
)

__all__ = [
    "MOST_STRENGTH",
    "MOTION_SUFFIX",
    "RELATIVE",
    "KeypointArrays",
    "Motion",
    "Move",
    "Start",
    "Transfer",
    "find_start",
    "hull_area",
    "load_motion",
    "movement_scale",
    "normalised_points",
    "probe_picture",
    "relative_motion",
    "save_motion",
]
