"""How far apart results may be that are equal but for the order of their sums, by where tests compute."""

import nnabla as nn

# cuDNN chooses each convolution's algorithm by timing, for every graph and every batch size anew, so that the same sum
# is added up in another order. One H200 (2026-11-27): pictures differ by up to 9e-6 from one batch size to another.
CUDNN = 2e-5


def order_of_sums(cpu=0.0):
    """The absolute tolerance for values of about 1 from two graphs, or from batches of two sizes: ``cpu`` on the CPU
    (0: bit for bit), and on a GPU no less than CUDNN."""
    on_gpu = nn.get_current_context().backend[0].startswith("cudnn")
    return max(cpu, CUDNN) if on_gpu else cpu
