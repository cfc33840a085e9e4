"""The paper's bin metric once more, image by image, on numbers as they are written: decimals, not floats.

Written from the definition: bins of a fixed width from -limit to +limit, lower edge included, the upper edge of the
last one too; the features of one bin averaged layer by layer, true and generated apart; LPIPS of the two averages; the
mean over the bins that have both.
"""

from fractions import Fraction

import numpy as np


def bin_number(angle, width, limit):
    """Number of the bin of an angle, None outside. All three are decimals as text."""
    angle, width, limit = Fraction(angle), Fraction(width), Fraction(limit)
    lower, number = -limit, 0
    while lower < limit:
        upper = lower + width
        if lower <= angle < upper or (upper == limit and angle == limit):
            return number
        lower, number = upper, number + 1
    return None


def average(features):
    """List of images' features (each a list of layers) -> one list of layers."""
    layers = []
    for number in range(len(features[0])):
        total = np.zeros(features[0][number].shape)
        for one in features:
            total = total + one[number]
        layers.append(total / len(features))
    return layers


def lpips(a, b, heads):
    """LPIPS v0.1 between two lists of layers [C,h,w], pixel by pixel."""
    result = 0.0
    for x, y, head in zip(a, b, heads):
        channels, height, width = x.shape
        total = 0.0
        for i in range(height):
            for j in range(width):
                u = x[:, i, j] / (np.sqrt(np.sum(x[:, i, j] ** 2)) + 1e-10)
                v = y[:, i, j] / (np.sqrt(np.sum(y[:, i, j] ** 2)) + 1e-10)
                for c in range(channels):
                    total += head[c] * (u[c] - v[c]) ** 2
        result += total / (height * width)
    return result


def pair_score(true, generated, width, limit, heads):
    """Score of a pair.

    Args:
        true, generated: lists of (angle as text, features of the image as a list of layers).

    Returns:
        (bin number -> (distance, true images, generated images), their mean or None).
    """
    bins = {}
    for side, images in enumerate((true, generated)):
        for angle, features in images:
            number = bin_number(angle, width, limit)
            if number is not None:
                bins.setdefault(number, ([], []))[side].append(features)
    scores = {}
    for number, (ours, theirs) in bins.items():
        if ours and theirs:
            scores[number] = (lpips(average(ours), average(theirs), heads), len(ours), len(theirs))
    distances = [distance for distance, _, _ in scores.values()]
    return scores, sum(distances) / len(distances) if distances else None
