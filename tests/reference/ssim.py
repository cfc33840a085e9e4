"""Structural similarity, window by window (Wang, Bovik, Sheikh and Simoncelli, 2004)."""

import numpy as np


def ssim(a, b, side=11, sigma=1.5, c1=0.01**2, c2=0.03**2):
    """Mean over all windows inside the images and over channels: float64 [H,W,C] in [0,1] twice -> float."""
    offsets = np.arange(side) - (side - 1) / 2
    gauss = np.exp(-(offsets**2) / (2 * sigma**2))
    weights = np.outer(gauss, gauss) / gauss.sum() ** 2
    height, width, channels = a.shape
    values = []
    for c in range(channels):
        for y in range(height - side + 1):
            for x in range(width - side + 1):
                p, q = a[y : y + side, x : x + side, c], b[y : y + side, x : x + side, c]
                mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
                var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
                cov = (weights * (p - mean_p) * (q - mean_q)).sum()
                luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
                values.append(luminance * (2 * cov + c2) / (var_p + var_q + c2))
    return float(np.mean(values))
