"""Driving nnabla graphs in tests: parameters to known values and back, forward, backward, finite differences."""

import nnabla as nn
import numpy as np

from mrfomm.model.checkpoint import ParameterTree

from .networks import Parameters


def variable(array, need_grad=False):
    """A float32 Variable that holds ``array``."""
    return nn.Variable.from_numpy_array(np.float32(array), need_grad=need_grad)


def variables(*arrays):
    return [variable(array) for array in arrays]


def leaves(*arrays):
    """Variables that take gradients."""
    return [variable(array, need_grad=True) for array in arrays]


def double(array):
    """What a float32 Variable keeps of an array, as float64."""
    return np.asarray(np.float32(array), np.float64)


def run(*outputs):
    """Compute Variables in one pass -> arrays (one array for one Variable)."""
    for output in outputs:
        output.persistent = True
    nn.forward_all(list(outputs))
    arrays = [output.d.copy() for output in outputs]
    return arrays[0] if len(arrays) == 1 else arrays


def build(function, rng=None):
    """Build ``function()`` on parameters of its own -> (its result, the ParameterTree), randomised by ``rng``."""
    tree = ParameterTree()
    with tree.scope():
        result = function()
    if rng is not None:
        randomise(tree, rng)
    return result, tree


def randomise(tree, rng):
    """Fill every parameter so that each one matters and activations keep their size."""
    for name, parameter in sorted(tree.all().items()):
        shape = parameter.shape
        kind = name.split("/")[-1]
        if kind == "W":
            values = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        elif kind in ("gamma", "var"):
            values = rng.uniform(0.5, 2, shape)
        elif kind == "u":
            values = rng.normal(size=shape)
            values /= np.linalg.norm(values)
        else:
            values = rng.normal(0, 0.2, shape)
        parameter.d = np.float32(values)


def reference_parameters(tree, training=False):
    """The parameters of a tree, for the reference networks."""
    arrays = {name: np.asarray(parameter.d, np.float64) for name, parameter in tree.all().items()}
    return Parameters(arrays, training)


def gradients(output, inputs, weights):
    """Backward: the gradients of sum(weights * output) at Variables ``inputs``, as arrays. The sum isn't computed: a
    Hopper GPU would die of it (docs/scaling.md)."""
    for leaf in inputs:
        leaf.g = 0
    output.forward()
    output.backward(np.broadcast_to(np.float32(weights), output.shape))
    return [leaf.g.copy() for leaf in inputs]


def numeric_gradients(function, arrays, weights, step=1e-5):
    """Central differences: the gradients of sum(weights * function(*arrays)) at each of the float64 ``arrays``."""
    results = []
    for array in arrays:
        gradient = np.empty_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            ahead = np.sum(weights * function(*arrays))
            array[index] = kept - step
            behind = np.sum(weights * function(*arrays))
            array[index] = kept
            gradient[index] = (ahead - behind) / (2 * step)
        results.append(gradient)
    return results


def numeric_slope(function, array, direction, step=1e-6):
    """Central difference of a scalar function of one array along a direction."""
    return (function(array + step * direction) - function(array - step * direction)) / (2 * step)
