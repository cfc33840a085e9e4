"""Batch norm over several processes, against batch norm of the whole batch in float64. Threads play the processes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import nnabla as nn
import numpy as np
import pytest

from mrfomm.networks import cpu, ops
from mrfomm.networks.cpu import numpy_kernels
from mrfomm.runtime.sync_batch_norm import compiled_kernels, sync_batch_normalization

needs_cpu_operators = pytest.mark.skipif(not cpu.available(), reason=f"CPU operators: {cpu.unavailable_reason()}")
KERNELS = pytest.mark.parametrize("kernels", ["numpy", pytest.param("compiled", marks=needs_cpu_operators)])
RELU = pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
BATCH, CHANNELS = 12, 3
SHAPE = (BATCH, CHANNELS, 4, 5)


class Result(NamedTuple):
    """y and the gradient of x, [N,C,H,W]; gradients of beta and gamma, and the running statistics, [C]."""

    y: np.ndarray
    dx: np.ndarray
    dbeta: np.ndarray
    dgamma: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class Data(NamedTuple):
    """x and the gradient of y [N,C,H,W]; beta, gamma and the running statistics before [C]."""

    x: np.ndarray
    dy: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray
    mean: np.ndarray
    var: np.ndarray


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    x, dy = rng.normal(1.5, 2, SHAPE), rng.normal(0, 1, SHAPE)
    beta, mean = rng.normal(0, 1, (2, CHANNELS))
    gamma, var = rng.uniform(0.5, 2, (2, CHANNELS))
    return Data(*(array.astype(np.float32) for array in (x, dy, beta, gamma, mean, var)))


class Processes:
    """Gives threads the ``add_up`` of processes."""

    def __init__(self, count):
        self.count, self.calls = count, 0
        self._barrier = threading.Barrier(count, timeout=600)
        self._arrays = {}

    def add_up(self, array):
        self._arrays[threading.get_ident()] = array.copy()
        self._barrier.wait()
        array[...] = sum(self._arrays[key] for key in sorted(self._arrays))
        if self._barrier.wait() == 0:
            self.calls += 1


def compute(data, relu, processes, kernels):
    """Forward and backward of the operator on the data of one process -> Result."""
    kernels = numpy_kernels if kernels == "numpy" else compiled_kernels()

    def variable(array, shape, need_grad=True):
        result = nn.Variable(shape, need_grad=need_grad)
        result.d = array.reshape(shape)
        return result

    channels = (1, CHANNELS, 1, 1)
    x, (beta, gamma) = variable(data.x, data.x.shape), (variable(v, channels) for v in (data.beta, data.gamma))
    mean, var = (variable(v, channels, need_grad=False) for v in (data.mean, data.var))
    y = sync_batch_normalization((x, beta, gamma, mean, var), relu, processes.add_up, processes.count, kernels)
    y.forward()
    for v in (x, beta, gamma):
        v.g = 0
    y.backward(data.dy)
    return Result(y.d.copy(), x.g.copy(), *(v.ravel().copy() for v in (beta.g, gamma.g, mean.d, var.d)))


def compute_in(count, data, kernels, relu=False):
    """The same in ``count`` processes, each with its share of the samples -> Processes, list of Result."""
    processes = Processes(count)
    shares = (data._replace(x=x, dy=dy) for x, dy in zip(np.split(data.x, count), np.split(data.dy, count)))
    with ThreadPoolExecutor(count) as pool:
        return processes, list(pool.map(lambda share: compute(share, relu, processes, kernels), shares))


def normalize(x, beta, gamma, relu):
    """Batch normalisation in float64."""
    x, beta, gamma = (np.asarray(v, np.float64) for v in (x, beta, gamma))
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    y = gamma[:, None, None] * (x - mean) / np.sqrt(var + 1e-5) + beta[:, None, None]
    return np.maximum(y, 0) if relu else y


@RELU
@KERNELS
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_forward_is_that_of_the_whole_batch(data, count, kernels, relu):
    processes, results = compute_in(count, data, kernels, relu)
    y = np.concatenate([result.y for result in results])
    np.testing.assert_allclose(y, normalize(data.x, data.beta, data.gamma, relu), atol=2e-6)
    for result in results:
        np.testing.assert_allclose(result.mean, 0.9 * data.mean + 0.1 * data.x.mean((0, 2, 3)), rtol=1e-6)
        unbiased = data.x.astype(np.float64).var((0, 2, 3), ddof=1)
        np.testing.assert_allclose(result.var, 0.9 * data.var + 0.1 * unbiased, rtol=1e-6)
    assert processes.calls == 2  # one message forward, one backward


@RELU
@KERNELS
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_match_finite_differences(data, count, kernels, relu):
    """Of sum(dy * y) over all samples, whose gradient of y is dy."""
    _, results = compute_in(count, data, kernels, relu)

    def loss(**changes):
        values = data._replace(**changes)
        return np.sum(data.dy.astype(np.float64) * normalize(values.x, values.beta, values.gamma, relu))

    def difference(field, i, step=1e-5):
        values = getattr(data, field).astype(np.float64)
        shift = np.zeros(values.size)
        shift[i] = step
        shift = shift.reshape(values.shape)
        return (loss(**{field: values + shift}) - loss(**{field: values - shift})) / (2 * step)

    dx = np.concatenate([result.dx for result in results]).ravel()
    picked = np.random.default_rng(0).choice(dx.size, 40, replace=False)
    np.testing.assert_allclose(dx[picked], [difference("x", i) for i in picked], atol=3e-6)
    for field, gradients in (("beta", "dbeta"), ("gamma", "dgamma")):
        total = sum(getattr(result, gradients) for result in results)  # each process has its samples' part
        np.testing.assert_allclose(total, [difference(field, i) for i in range(CHANNELS)], rtol=1e-5, atol=1e-5)


@KERNELS
def test_the_division_of_the_batch_leaves_no_trace(data, kernels):
    """Outputs are equal to the bit: the sums round to the same float32."""
    whole = compute_in(1, data, kernels)[1][0]
    for count in (2, 3, 4):
        results = compute_in(count, data, kernels)[1]
        np.testing.assert_array_equal(np.concatenate([result.y for result in results]), whole.y)
        np.testing.assert_array_equal(np.concatenate([result.dx for result in results]), whole.dx)
        np.testing.assert_array_equal(results[-1].var, whole.var)


@KERNELS
def test_a_large_mean_does_not_swallow_the_variance(data, kernels):
    """Sums of squares in float32 would lose it; x itself has seven digits, of which the mean takes four."""
    data = data._replace(x=data.x + np.float32(2e4))
    result = compute_in(2, data, kernels)[1][0]
    expected = data.x.astype(np.float64).var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(result.var, 0.9 * data.var + 0.1 * expected, rtol=1e-6)


@RELU
@KERNELS
def test_one_process_is_nnablas_batch_norm(data, kernels, relu):
    result = compute_in(1, data, kernels, relu)[1][0]
    channels = (1, CHANNELS, 1, 1)
    x = nn.Variable.from_numpy_array(data.x, need_grad=True)
    beta, gamma, mean, var = (
        nn.Variable.from_numpy_array(v.reshape(channels).copy(), need_grad=i < 2) for i, v in enumerate(data[2:])
    )
    y = ops.NNABLA.batch_normalization(x, beta, gamma, mean, var, True, relu)
    y.forward()
    for v in (x, beta, gamma):
        v.g = 0
    y.backward(data.dy)
    theirs = Result(y.d, x.g, *(v.ravel() for v in (beta.g, gamma.g, mean.d, var.d)))
    for name, ours in result._asdict().items():
        np.testing.assert_allclose(ours, getattr(theirs, name), rtol=2e-5, atol=2e-5, err_msg=name)


@KERNELS
def test_gradients_add_up(data, kernels):
    """x goes into two batch norms with the same parameters: twice the gradients of one."""
    single = compute_in(1, data, kernels)[1][0]
    channels = (1, CHANNELS, 1, 1)
    x = nn.Variable.from_numpy_array(data.x, need_grad=True)
    values = (data.beta, data.gamma, data.mean, data.var)
    parameters = [nn.Variable.from_numpy_array(v.reshape(channels), need_grad=i < 2) for i, v in enumerate(values)]
    loops, processes = numpy_kernels if kernels == "numpy" else compiled_kernels(), Processes(1)
    first, second = (sync_batch_normalization((x, *parameters), False, processes.add_up, 1, loops) for _ in range(2))
    total = first + second
    total.forward()
    for v in (x, *parameters[:2]):
        v.g = 0
    total.backward(data.dy)
    np.testing.assert_allclose(x.g, 2 * single.dx, atol=1e-6)
    np.testing.assert_allclose(parameters[0].g.ravel(), 2 * single.dbeta, rtol=1e-6)
    np.testing.assert_allclose(parameters[1].g.ravel(), 2 * single.dgamma, rtol=1e-6)


def test_shapes_that_do_not_fit():
    x, one = nn.Variable((2, 3, 4, 4)), nn.Variable((1, 3, 1, 1))
    with pytest.raises(ValueError, match="shapes"):
        sync_batch_normalization((x, one, one, one, nn.Variable((3,))), False, None, 2, numpy_kernels)
    pixel = nn.Variable((1, 3, 1, 1))
    with pytest.raises(ValueError, match="no variance"):
        sync_batch_normalization((pixel, one, one, one, one), False, None, 1, numpy_kernels)
    assert sync_batch_normalization((pixel, one, one, one, one), False, None, 2, numpy_kernels).shape == pixel.shape
