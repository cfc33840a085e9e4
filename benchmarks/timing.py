"""Timing, and the machine's limit to hold it against."""

import os
import platform
import statistics
import time
from typing import NamedTuple

import numpy as np

PEAK_SIZE = 4096  # of the square float32 product


class Row(NamedTuple):
    """One measurement.

    section, part: what was timed. backend: what ran it. size: of the images, pixels. references: K.
    seconds: median. gflop: multiplications and additions of the convolutions, 10^9, or None.
    """

    section: str
    part: str
    backend: str
    size: int
    references: int
    seconds: float
    gflop: float | None = None


def median_seconds(function, seconds=2.0, at_least=3):
    """Median seconds of a call.

    It is called for ``seconds``, and ``at_least`` so many times unless that takes five times as long. The first call
    prepares memory and doesn't count, unless it takes longer than ``seconds``.
    """
    first = _timed(function)
    times = [first] if first > seconds > 0 else []
    while sum(times) < seconds or (len(times) < at_least and not sum(times) >= 5 * seconds > 0):
        times.append(_timed(function))
    return statistics.median(times)


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_peak(size=PEAK_SIZE, seconds=5.0):
    """GFLOP/s of NumPy's float32 product of two square matrices, with the threads it takes by itself."""
    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    return 2 * size**3 / median_seconds(lambda: a @ b, seconds) / 1e9


def machine():
    """What the numbers were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def convolution_gflop(outputs):
    """Multiplications and additions of the convolutions behind nnabla Variables, 10^9; the rest is small."""
    counted = {}

    def count(function):
        if function.info.type_name == "Convolution":
            output, weight = function.outputs[0], function.inputs[1]
            counted[output] = 2 * output.size * int(np.prod(weight.shape[1:]))

    for output in outputs:
        output.visit(count)
    return sum(counted.values()) / 1e9
