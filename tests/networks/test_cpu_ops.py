"""The CPU operators against nnabla's own: values, gradients, accumulation, threads."""

import threading
from types import SimpleNamespace

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from mrfomm.networks import cpu

if not cpu.available():
    pytest.skip(cpu.unavailable_reason(), allow_module_level=True)

import numba

from mrfomm.networks.cpu import backend, functions, onednn

TOLERANCE = 1e-5  # of the largest value


def native_convolution(pad, stride):
    return lambda x, w, b=None: F.convolution(x, w, b, pad=(pad, pad), stride=(stride, stride))


def native_batch_norm_relu(batch_stat, relu):
    def function(x, beta, gamma, mean, var):
        y = F.batch_normalization(x, beta, gamma, mean, var, axes=[1], decay_rate=0.9, eps=1e-5, batch_stat=batch_stat)
        return F.relu(y) if relu else y

    return function


def native_warp(x, grid):
    return F.warp_by_grid(x, grid, mode="linear", padding_mode="zero", align_corners=True)


def evaluate(function, arrays, needed, twice=False):
    """The output, the inputs' values afterwards and their gradients, in the middle of a graph that frees its buffers.

    With ``twice`` the function is applied to the same inputs two times, so that gradients are added up.
    """
    leaves = [nn.Variable.from_numpy_array(a.copy(), need_grad=need) for a, need in zip(arrays, needed)]
    for leaf in leaves:
        leaf.grad.zero()
    # Inputs that are not leaves are freed when nothing needs them any more.
    inputs = [F.mul_scalar(v, 1.5) if v.need_grad else v for v in leaves]
    y = function(*inputs)
    direction = nn.Variable.from_numpy_array(np.random.RandomState(9).randn(*y.shape).astype(np.float32))
    total = y * direction
    if twice:
        total = total + function(*inputs) ** 2
    y.persistent = True
    loss = F.sum(total)
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    return [y.d.copy(), *(v.d.copy() for v in leaves), *(v.g.copy() for v in leaves if v.need_grad)]


def assert_same(ours, native, arrays, needed=None, twice=False):
    needed = needed or [True] * len(arrays)
    results = [evaluate(function, arrays, needed, twice) for function in (ours, native)]
    for got, expected in zip(*results):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max()))


def normal(*shapes, seed=0):
    rng = np.random.RandomState(seed)
    return [rng.randn(*shape).astype(np.float32) for shape in shapes]


CONVOLUTIONS = [  # x, weights, pad, stride
    ((1, 1, 1, 1), (1, 1, 1, 1), 0, 1),
    ((1, 3, 1, 1), (5, 3, 3, 3), 1, 1),
    ((2, 3, 13, 9), (16, 3, 7, 7), 3, 1),
    ((3, 44, 8, 8), (20, 44, 3, 3), 1, 1),
    ((1, 108, 6, 7), (11, 108, 7, 7), 3, 1),
    ((2, 35, 9, 9), (40, 35, 7, 7), 0, 1),
    ((2, 13, 11, 12), (8, 13, 4, 4), 0, 1),
    ((6, 1, 17, 16), (1, 1, 5, 5), 2, 2),
    ((2, 3, 35, 35), (7, 3, 11, 11), 2, 4),
    ((1, 64, 5, 5), (1, 64, 1, 1), 0, 1),
]


@pytest.mark.parametrize(("x", "weights", "pad", "stride"), CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(x, weights, pad, stride, bias):
    arrays = normal(x, weights, weights[:1])[: 3 if bias else 2]
    native = native_convolution(pad, stride)
    assert_same(lambda *inputs: functions.convolution(*inputs, pad=pad, stride=stride), native, arrays)


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
@pytest.mark.parametrize("twice", [False, True])
def test_convolution_gradients_on_demand(needed, twice):
    arrays = normal((2, 5, 7, 6), (4, 5, 3, 3), (4,))
    ours = lambda x, w, b: functions.convolution(x, w, b, pad=1)  # noqa: E731
    assert_same(ours, native_convolution(1, 1), arrays, needed, twice)


def statistics(channels):
    shape = (1, channels, 1, 1)
    gamma, beta, mean, var = normal(*[shape] * 4, seed=1)
    return [beta, gamma, mean, var**2 + 0.1]


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 3, 5, 7), (3, 44, 4, 4), (8, 6, 33, 31)])
@pytest.mark.parametrize("batch_stat", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_relu(shape, batch_stat, relu):
    arrays = [normal(shape)[0] * 2 + 3, *statistics(shape[1])]
    ours = lambda *inputs: functions.batch_norm_relu(*inputs, batch_stat, relu=relu)  # noqa: E731
    assert_same(ours, native_batch_norm_relu(batch_stat, relu), arrays, [True] * 3 + [False] * 2)


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
@pytest.mark.parametrize("batch_stat", [True, False])
def test_batch_norm_relu_gradients_on_demand(needed, batch_stat):
    arrays = [*normal((4, 5, 6, 7)), *statistics(5)]
    ours = lambda *inputs: functions.batch_norm_relu(*inputs, batch_stat)  # noqa: E731
    assert_same(ours, native_batch_norm_relu(batch_stat, True), arrays, [*needed, False, False], twice=True)


def test_batch_norm_keeps_its_decay_and_eps():
    arrays = [*normal((4, 5, 6, 7)), *statistics(5)]
    inputs = [nn.Variable.from_numpy_array(a.copy()) for a in arrays]
    y = functions.batch_norm_relu(*inputs, batch_stat=True, relu=False)
    y.forward()
    x, beta, gamma, mean, var = arrays
    expected = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5) * gamma + beta
    np.testing.assert_allclose(y.d, expected, atol=1e-5)
    unbiased = x.var((0, 2, 3), ddof=1, keepdims=True)
    np.testing.assert_allclose(inputs[4].d, 0.9 * var + 0.1 * unbiased, rtol=1e-5)


MAPS = [
    ((1, 1, 1, 1), (1, 1, 1, 1)),
    ((2, 5, 7, 9), (2, 1, 7, 9)),
    ((2, 3, 4, 5, 6), (2, 3, 1, 5, 6)),
    ((2, 3, 4, 5),) * 2,
]


@pytest.mark.parametrize(("x", "weight"), MAPS)
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("twice", [False, True])
def test_multiply(x, weight, needed, twice):
    assert_same(functions.multiply, F.mul2, normal(x, weight), needed, twice)


def native_halve(x):
    return F.average_pooling(x, (2, 2))


def native_double(x):
    return F.interpolate(x, scale=(2, 2), mode="nearest")


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 7, 9), (3, 5, 8, 6)])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    ("ours", "native"), [(functions.halve, native_halve), (functions.double, native_double)], ids=["halve", "double"]
)
def test_halve_and_double(ours, native, shape, twice):
    assert_same(ours, native, normal(shape), twice=twice)


def grids(batch, height, width, spread):
    return normal((batch, height, width, 2), seed=2)[0] * np.float32(spread)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 7, 9), (1, 44, 16, 16), (3, 108, 5, 4)])
@pytest.mark.parametrize("size", [(1, 1), (6, 5), (40, 33)])
@pytest.mark.parametrize("spread", [0.4, 2.0])
def test_warp(shape, size, spread):
    assert_same(functions.warp, native_warp, [*normal(shape), grids(shape[0], *size, spread)])


@pytest.mark.parametrize("needed", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("twice", [False, True])
def test_warp_gradients_on_demand(needed, twice):
    assert_same(functions.warp, native_warp, [*normal((2, 5, 9, 7)), grids(2, 6, 8, 0.6)], needed, twice)


def test_warp_on_and_beyond_the_border():
    """Corners, edges, pixel centres, and the half pixel outside where the image fades to nothing."""
    line = np.float32([-1e30, -3, -1.25, -1, -0.5, 0, 0.5, 1, 1.25, 3, 1e30])
    grid = np.stack(np.meshgrid(line, line), axis=-1)[None] / np.float32(1.5)  # evaluate() scales by 1.5
    assert_same(functions.warp, native_warp, [*normal((1, 4, 5, 9)), grid])


def test_warp_of_the_identity_grid_is_the_image():
    (x,) = normal((2, 3, 5, 9))
    line_x, line_y = np.linspace(-1, 1, 9, dtype=np.float32), np.linspace(-1, 1, 5, dtype=np.float32)
    grid = np.stack(np.meshgrid(line_x, line_y), axis=-1)[None].repeat(2, axis=0)
    y = functions.warp(*(nn.Variable.from_numpy_array(a) for a in (x, grid)))
    y.forward()
    np.testing.assert_allclose(y.d, x, atol=1e-6)


def test_warp_shows_that_a_coordinate_is_not_a_number():
    grid = np.zeros((1, 2, 2, 2), np.float32)
    grid[0, 1, 0, 0] = np.nan
    y = functions.warp(*(nn.Variable.from_numpy_array(a) for a in (np.ones((1, 1, 3, 3), np.float32), grid)))
    y.forward()
    np.testing.assert_array_equal(np.isnan(y.d[0, 0]), [[False, False], [True, False]])


def small_network(seed):
    """A function that runs a graph of all operators and returns its output and gradients."""
    image, grid, w1, b1, w2 = normal((2, 3, 24, 24), (2, 24, 24, 2), (16, 3, 7, 7), (16,), (8, 16, 3, 3), seed=seed)
    leaves = [nn.Variable.from_numpy_array(a, need_grad=True) for a in (image, grid * 0.5, w1, b1, w2)]
    x, grid, w1, b1, w2 = leaves
    running = [nn.Variable.from_numpy_array(a, need_grad=False) for a in statistics(16)]
    y = functions.convolution(x, w1, b1, pad=3)
    y = functions.batch_norm_relu(y, *running, batch_stat=True)
    y = functions.warp(y, grid)
    y = functions.multiply(y, F.mean(y, axis=1, keepdims=True))
    y = functions.convolution(y, w2, stride=2)
    y.persistent = True
    loss = F.sum(y**2)

    def run():
        for leaf in leaves:
            leaf.grad.zero()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        return [y.d.copy(), *(leaf.g.copy() for leaf in leaves)]

    return run


def test_every_run_gives_the_same_bits():
    run = small_network(seed=3)
    for first, second in zip(run(), run()):
        np.testing.assert_array_equal(first, second)


def test_two_graphs_may_run_in_two_threads():
    networks = [small_network(seed) for seed in (4, 5)]
    alone = [run() for run in networks]
    together = [[], []]

    def repeat(i):
        together[i] = [networks[i]() for _ in range(10)]

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, runs in zip(alone, together):
        assert len(runs) == 10
        for results in runs:
            for got, value in zip(results, expected):
                np.testing.assert_array_equal(got, value)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_compiled_loops_do_not_depend_on_the_number_of_threads():
    backend.backend().enter_thread()
    before = numba.get_num_threads()
    arrays = [*normal((3, 20, 16, 16)), *statistics(20)]

    def run():
        inputs = [nn.Variable.from_numpy_array(a.copy(), need_grad=i < 3) for i, a in enumerate(arrays)]
        grid = nn.Variable.from_numpy_array(grids(3, 16, 16, 0.6), need_grad=True)
        y = functions.warp(functions.batch_norm_relu(*inputs, batch_stat=True), grid)
        y = functions.multiply(y, F.mean(y, axis=1, keepdims=True))
        loss = F.sum(y**2)
        loss.forward()
        loss.backward()
        return [y.d.copy(), *(v.g.copy() for v in (*inputs[:3], grid))]

    try:
        results = []
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(run())
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("shapes", "pad"),
    [
        (((1, 3, 8, 8), (4, 2, 3, 3)), 0),
        (((1, 3, 8, 8), (4, 3, 3, 3), (3,)), 0),
        (((1, 3, 2, 2), (4, 3, 7, 7)), 0),
        (((3, 8, 8), (4, 3, 3, 3)), 1),
    ],
)
def test_convolution_refuses_shapes_that_do_not_fit(shapes, pad):
    with pytest.raises(ValueError, match="convolution of shapes"):
        functions.convolution(*(nn.Variable(shape) for shape in shapes), pad=pad)


def test_batch_norm_refuses_what_has_no_variance():
    shapes = [(1, 4, 1, 1)] * 5
    with pytest.raises(ValueError, match="one value per channel"):
        functions.batch_norm_relu(*(nn.Variable(shape) for shape in shapes), batch_stat=True)


def test_batch_norm_refuses_shapes_that_do_not_fit():
    shapes = [(2, 4, 3, 3), (1, 3, 1, 1), *[(1, 4, 1, 1)] * 3]
    with pytest.raises(ValueError, match="batch normalization of shapes"):
        functions.batch_norm_relu(*(nn.Variable(shape) for shape in shapes), batch_stat=True)


def test_warp_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="warp of shapes"):
        functions.warp(nn.Variable((2, 3, 4, 4)), nn.Variable((1, 4, 4, 2)))


@pytest.mark.parametrize("function", [functions.halve, functions.double])
@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 1, 4, 4)])
def test_halve_and_double_refuse_shapes_that_do_not_fit(function, shape):
    with pytest.raises(ValueError, match="of shape"):
        function(nn.Variable(shape))


def test_halve_refuses_a_single_row():
    with pytest.raises(ValueError, match="halving of shape"):
        functions.halve(nn.Variable((1, 2, 1, 4)))


@pytest.mark.parametrize("weight", [(2, 2, 4, 4), (1, 1, 4, 4), (2, 1, 4, 1)])
def test_multiply_refuses_shapes_that_do_not_fit(weight):
    with pytest.raises(ValueError, match="multiplication of shapes"):
        functions.multiply(nn.Variable((2, 3, 4, 4)), nn.Variable(weight))


def test_a_failing_function_of_onednn_is_named():
    too_small = onednn.ConvolutionShape((1, 1, 2, 2), (1, 1, 5, 5), bias=False, pad=0, stride=1)
    with pytest.raises(RuntimeError, match="oneDNN: dnnl_memory_desc_create_with_tag: invalid arguments"):
        onednn.Convolution(backend.backend().dnn, too_small)


def test_a_missing_library_is_a_reason(monkeypatch):
    monkeypatch.setattr(onednn, "DISTRIBUTION", "onednn-of-another-world")
    monkeypatch.setattr(backend, "backend", backend.Backend)
    assert cpu.unavailable_reason() == "onednn-of-another-world is not installed"
    assert not cpu.available()


def test_processes_of_open_mpi_share_the_cores(monkeypatch):
    """Eight cores and two processes, unless OMP_NUM_THREADS says how many."""
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 8)
    monkeypatch.setattr(backend.backend().dnn, "library", SimpleNamespace(omp_get_max_threads=lambda: 8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMPI_COMM_WORLD_LOCAL_SIZE", raising=False)
    assert backend.backend()._count_threads() == 8
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert backend.backend()._count_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert backend.backend()._count_threads() == 8
