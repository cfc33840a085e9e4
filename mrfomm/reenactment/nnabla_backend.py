"""Animation by nnabla, on any of its devices."""

import contextvars
from typing import NamedTuple

import nnabla as nn
import numpy as np

from mrfomm.config import ModelConfig
from mrfomm.model import kept
from mrfomm.model.checkpoint import ParameterTree
from mrfomm.onnx.graphs import GRAPHS, Sizes


class _Built(NamedTuple):
    inputs: dict[str, nn.Variable]
    outputs: dict[str, nn.Variable]
    references: dict[str, np.ndarray]  # what the inputs of a name that begins so were filled with last


class NnablaGraphs:
    """The graphs of a model, as ``animator.Graphs``. Each is built when it is first run with arrays of some shapes.

    Wherever it is run, it computes in the nnabla context, and with the operators, in which this object was made.
    Parameters that are missing in ``tree`` are created.
    """

    def __init__(self, config: ModelConfig, tree: ParameterTree) -> None:
        self._config = config
        self._tree = tree
        self._context = nn.get_current_context()
        self._operators = contextvars.copy_context()
        self._built: dict[tuple[object, ...], _Built] = {}

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``animator.Graphs``."""
        key = (name, *(array.shape for array in inputs.values()))
        if key not in self._built:
            first = next(iter(inputs.values()))
            sizes = Sizes(len(first), len(inputs.get("reference_value", first)))
            self._built[key] = self._operators.run(self._build, name, sizes)
        graph = self._built[key]
        for each, array in inputs.items():
            if graph.references.get(each) is not array:
                graph.inputs[each].d = array
        graph.references.update({each: array for each, array in inputs.items() if each.startswith("reference")})
        nn.forward_all(list(graph.outputs.values()), clear_no_need_grad=True)
        return {each: variable.d.copy() for each, variable in graph.outputs.items()}

    def _build(self, name: str, sizes: Sizes) -> _Built:
        with nn.context_scope(self._context), self._tree.scope():
            inputs, outputs = GRAPHS[name](self._config, sizes)
            return _Built(dict(inputs), {each: kept(variable) for each, variable in outputs.items()}, {})
