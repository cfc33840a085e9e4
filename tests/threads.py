"""What a worker process is asked in tests: how many threads its libraries have once they have worked."""

import os

import cv2
import numba
import numpy as np


@numba.njit(parallel=True)
def _total(values):
    total = 0.0
    for i in numba.prange(values.size):
        total += values[i]
    return total


def load_and_count():
    """Threads of this process after matrix products, a picture's blur and a compiled loop."""
    matrix = np.ones((500, 500))
    _total((matrix @ matrix).ravel())
    cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (31, 31), 5)
    return len(os.listdir("/proc/self/task"))
