"""Operators for the CPU that run several times faster than nnabla's own, where their libraries are installed.

nnabla's CPU kernels run in one thread and use 128-bit vectors. :mod:`mrfomm.networks.cpu.functions` replaces the ones
that dominate, by oneDNN (convolution) and by loops compiled with numba (the others): the extra ``cpu``,
`pip install -e .[cpu]`.
"""


def unavailable_reason() -> str | None:
    """Why the operators can't be used here, one line, or None if they can."""
    try:
        from mrfomm.networks.cpu.backend import backend

        backend()
    except ImportError as error:
        return " ".join(str(error).split())
    return None


def available() -> bool:
    """Whether the operators can be used: their libraries are installed and load."""
    return unavailable_reason() is None
