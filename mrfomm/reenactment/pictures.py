"""Pictures of what the networks compute. Arrays in, uint8 RGB pictures out."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np


def picture(array: np.ndarray) -> np.ndarray:
    """float [3,H,W] or [1,H,W] in [0,1] -> uint8 [H,W,3]."""
    array = np.repeat(array, 3, axis=0) if len(array) == 1 else array
    return (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def keypoint_colours(count: int) -> list[tuple[int, ...]]:
    """One distinct colour per keypoint: list of (r, g, b), 0..255."""
    return [tuple(int(255 * part) for part in colorsys.hsv_to_rgb(i / count, 1, 1)) for i in range(count)]


def draw_keypoints(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Draw keypoints [n,2] ((x, y) in [-1,1]) on a copy of a picture uint8 [H,W,3]."""
    image = image.copy()
    height, width = image.shape[:2]
    for (x, y), colour in zip(points, keypoint_colours(len(points))):
        centre = (round((x + 1) / 2 * (width - 1)), round((y + 1) / 2 * (height - 1)))
        cv2.circle(image, centre, max(1, height // 64), colour, -1)
    return image


def tile(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Rows of equally large pictures [H,W,3] -> one picture, with white gaps; short rows are filled with white."""
    height, width = rows[0][0].shape[:2]
    down, across = height + gap, width + gap
    sheet = np.full((down * len(rows) - gap, across * max(map(len, rows)) - gap, 3), 255, np.uint8)
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            sheet[down * top :, across * left :][:height, :width] = image
    return sheet


def training_row(
    references: np.ndarray,
    driving: np.ndarray,
    prediction: np.ndarray,
    occlusion: np.ndarray,
    mask: np.ndarray,
    reference_points: np.ndarray,
    driving_points: np.ndarray,
) -> list[np.ndarray]:
    """One sample of a training batch as a row of pictures.

    Args:
        references [K,3,H,W], driving, prediction [3,H,W] in [0,1].
        occlusion [K,1,h,w], mask [K,1 or C,h,w] in [0,1].
        reference_points [K,n,2], driving_points [n,2].

    Returns:
        list of uint8 [H,W,3]: the references and the driving frame with keypoints, the prediction, then each
        reference's fusion mask and occlusion map.
    """
    size = driving.shape[1:]
    shown = [draw_keypoints(picture(image), points) for image, points in zip(references, reference_points)]
    shown += [draw_keypoints(picture(driving), driving_points), picture(prediction)]
    maps = [*mask.mean(axis=1, keepdims=True), *occlusion]
    return shown + [cv2.resize(picture(each), size[::-1], interpolation=cv2.INTER_NEAREST) for each in maps]


def breakdown_picture(
    references: np.ndarray, warped: np.ndarray, mask: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
    """The paper's Table 1 for one frame.

    Args:
        references [K,3,H,W], warped [K,3,H,W], mask [K,1,H,W], prediction [3,H,W], all in [0,1].

    Returns:
        uint8 picture: a row per reference (input, decoded warp, mask, masked result); the prediction ends the last.
    """
    rows = [[picture(part) for part in (r, w, m, w * m)] for r, w, m in zip(references, warped, mask)]
    rows[-1].append(picture(prediction))
    return tile(rows)
