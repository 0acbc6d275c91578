"""ONNX files of sentence encoders: int8 weights, and one interface for files of other exporters;
imports onnx.

A matrix has an int8 scale for each of its columns, a table of tokens one for each of its rows.
Inputs of a product are quantized at run time with a scale for each token: with one scale for a
whole batch, which ONNX Runtime's own `quantize_dynamic` has, the vector of a text would depend on
the texts beside it. Operators of the ONNX standard alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slmctl.errors import DataError
from slmctl.inference import INPUTS, OUTPUTS

LEAST = 1 << 12  # weights of the smallest matrix and table that are quantized
MOST = 127  # the largest int8 that is used
ZERO = 128  # of inputs, as uint8
AXES_AS_INPUT = 18  # the version of the operators from which a reduction takes its axes as an input
# versions of the operators: one scale a row, and what older files are raised to
OLDEST, WANTED = 13, 17
POOLINGS = ("mean", "cls")  # that are added to a file without a vector of a text
# names that exporters give the vectors of tokens
STATES = ("token_embeddings", "last_hidden_state")
Array = npt.NDArray[Any]


def quantize(source: Path, target: Path) -> None:
    """Write the encoder in `source` with int8 weights; matrices and
    tables in other types than float32 stay.
    """
    graph = _Graph(onnx.load(source), "int8")
    # by input of a product: its name as uint8, and that of its scales
    quantized = dict[str, tuple[str, str]]()
    for node in graph.taken():
        weights = graph.weights_of(node)
        if weights is None:
            graph.nodes.append(node)
        elif node.op_type == "Gather":
            _look_up(graph, node, weights)
        else:
            _multiply(graph, node, weights, quantized)
    onnx.save(graph.finished(), target)


def adopt(source: Path, target: Path, pooling: str) -> None:
    """Write the encoder of another exporter with our inputs and outputs.

    Args:
        pooling: How it pools vectors of tokens, for a file without a vector of a text; empty for
            unknown.

    Raises:
        DataError: The file is no ONNX, takes more than tokens, or gives no vectors.
    """
    graph = _Graph(_read(source), "adopted")
    inputs = {value.name: value for value in graph.proto.input}
    if unknown := set(inputs) - {*INPUTS, "token_type_ids"}:
        raise DataError(
            f"{source.name} takes an input '{min(unknown)}', which no sentence encoder takes"
        )
    if INPUTS[0] not in inputs or INPUTS[1] not in inputs:
        raise DataError(f"{source.name} lacks an input: {' and '.join(INPUTS)} are expected")
    graph.nodes.extend(graph.taken())
    if "token_type_ids" in inputs:
        zeros = helper.make_node("Sub", [INPUTS[0], INPUTS[0]], ["token_type_ids"])
        graph.nodes.insert(0, zeros)
    outputs = {value.name for value in graph.proto.output}
    states = next((name for name in STATES if name in outputs), "")
    if not states or (OUTPUTS[1] not in outputs and pooling not in POOLINGS):
        raise DataError(
            f"{source.name} gives no vector of a text: an output '{OUTPUTS[1]}', or '{STATES[1]}' "
            "and "
            "1_Pooling/config.json with mean or cls, are expected"
        )
    if OUTPUTS[1] not in outputs:
        _pool(graph, states, pooling)
    if states != OUTPUTS[0]:
        graph.add("Identity", states, name=OUTPUTS[0])
    kinds = {INPUTS: TensorProto.INT64, OUTPUTS: TensorProto.FLOAT}
    listed = [
        [helper.make_tensor_value_info(name, kind, None) for name in names]
        for names, kind in kinds.items()
    ]
    del graph.proto.input[:], graph.proto.output[:]
    graph.proto.input.extend(listed[0])
    graph.proto.output.extend(listed[1])
    onnx.save(graph.finished(), target)


class _Graph:
    """A model whose nodes are written anew.

    Args:
        prefix: Of the names of its new nodes and arrays.

    Attributes:
        nodes: Those that are written.
    """

    def __init__(self, model: ModelProto, prefix: str) -> None:
        self.model, self.proto = model, model.graph
        self.prefix = prefix
        self.nodes = list[NodeProto]()
        self._stored = {tensor.name: tensor for tensor in self.proto.initializer}
        self.opset = next(
            entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
        )

    def taken(self) -> Iterator[NodeProto]:
        """The nodes of before."""
        before = list(self.proto.node)
        del self.proto.node[:]
        yield from before

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        output = name or f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        """Store an array, unless it is there; returns its whole name."""
        name = f"{self.prefix}_{name}"
        self._stored.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def reduced(self, operator: str, value: str, axis: int) -> str:
        """A reduction over one axis, which stays with length 1."""
        if self.opset < AXES_AS_INPUT:
            return self.add(operator, value, axes=[axis], keepdims=1)
        return self.add(operator, value, self.constant(f"axis{axis}", np.array([axis])), keepdims=1)

    def summed(self, value: str) -> str:
        """The sum (n, size) over the tokens of a value (n, tokens, size);
        its axes were an input before others'.
        """
        return self.add("ReduceSum", value, self.constant("axis1", np.array([1])), keepdims=0)

    def weights_of(self, node: NodeProto) -> Array | None:
        """The float32 matrix of a product, or the table of a look-up; None
        for any other node, and for small ones.
        """
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        stored = self._stored.get(node.input[place]) if place is not None else None
        if stored is None or stored.data_type != TensorProto.FLOAT or len(stored.dims) != 2:
            return None
        return numpy_helper.to_array(stored) if np.prod(stored.dims) >= LEAST else None

    def finished(self) -> ModelProto:
        """The model with the new nodes, only with the arrays that these
        read, and without notes of its exporter.
        """
        noted: list[Any] = [self.model, self.proto, *self.nodes]
        for described in noted:
            described.ClearField("doc_string")
            described.ClearField("metadata_props")
        read = {name for node in self.nodes for name in node.input}
        self.proto.node.extend(self.nodes)
        del self.proto.initializer[:]
        self.proto.initializer.extend(
            tensor for name, tensor in self._stored.items() if name in read
        )
        del self.proto.value_info[:]
        return self.model


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path)
        version = next(
            (each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0
        )
        return onnx.version_converter.convert_version(model, WANTED) if version < OLDEST else model
    except (DecodeError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            f"{path.name} is no readable ONNX file: {' '.join(str(error).split())[:200]}"
        ) from None


def _scaled(weights: Array, axis: int) -> tuple[Array, Array]:
    """int8 weights, and their scales along an axis that stays."""
    scales = np.abs(weights).max(axis=1 - axis, keepdims=True).astype(np.float32) / MOST
    scales[scales == 0] = 1
    return np.round(weights / scales).astype(np.int8), scales


def _look_up(graph: _Graph, node: NodeProto, weights: Array) -> None:
    """Rows of a table: an int8 row times its scale."""
    whole, scales = _scaled(weights, axis=0)
    table, tokens = node.input
    rows = graph.add("Gather", graph.constant(f"{table}_int8", whole), tokens)
    factors = graph.add("Gather", graph.constant(f"{table}_scale", scales), tokens)
    graph.add("Mul", graph.add("Cast", rows, to=TensorProto.FLOAT), factors, name=node.output[0])


def _multiply(
    graph: _Graph, node: NodeProto, weights: Array, quantized: dict[str, tuple[str, str]]
) -> None:
    """A product: that of integers, times the scales of input rows and of columns."""
    whole, scales = _scaled(weights, axis=1)
    value, matrix = node.input
    if value not in quantized:
        quantized[value] = _rows(graph, value, len(weights))
    rows, factors = quantized[value]
    zero = graph.constant("zero", np.array(ZERO, np.uint8))
    product = graph.add("MatMulInteger", rows, graph.constant(f"{matrix}_int8", whole), zero)
    columns = graph.constant(f"{matrix}_scale", scales[0])
    scaled = graph.add("Mul", graph.add("Cast", product, to=TensorProto.FLOAT), columns)
    flat = graph.add("Mul", scaled, factors)
    leading = graph.add("Slice", graph.add("Shape", value), *_but_last(graph))
    width = graph.constant(f"width{weights.shape[1]}", np.array([weights.shape[1]]))
    graph.add("Reshape", flat, graph.add("Concat", leading, width, axis=0), name=node.output[0])


def _but_last(graph: _Graph) -> tuple[str, str]:
    """Names of the bounds of all entries but the last one."""
    start = graph.constant("start", np.array([0]))
    return start, graph.constant("end", np.array([-1]))


def _rows(graph: _Graph, value: str, width: int) -> tuple[str, str]:
    """A value as rows (n, width) of uint8, and the scale (n, 1) of each."""
    shape = graph.constant(f"rows{width}", np.array([-1, width]))
    rows = graph.add("Reshape", value, shape)
    largest = graph.reduced("ReduceMax", graph.add("Abs", rows), 1)
    above = graph.add("Max", largest, graph.constant("least", np.array(1e-12, np.float32)))
    scales = graph.add("Div", above, graph.constant("most", np.array(MOST, np.float32)))
    listed = graph.add("Reshape", scales, graph.constant("list", np.array([-1])))
    zero = graph.constant("zeros", np.array([ZERO], np.uint8))
    zeros = graph.add("Expand", zero, graph.add("Shape", listed))
    return graph.add("QuantizeLinear", rows, listed, zeros, axis=0), scales


def _pool(graph: _Graph, states: str, pooling: str) -> None:
    """Append the vector of a text, of length 1, from the vectors of its tokens."""
    if pooling == "cls":
        first = graph.constant("first", np.array(0))
        vector = graph.add("Gather", states, first, axis=1)
    else:
        axis = graph.constant("last", np.array([-1]))
        weights = graph.add("Cast", graph.add("Unsqueeze", INPUTS[1], axis), to=TensorProto.FLOAT)
        total = graph.summed(graph.add("Mul", states, weights))
        vector = graph.add("Div", total, graph.summed(weights))
    length = graph.reduced("ReduceL2", vector, -1)
    above = graph.add("Max", length, graph.constant("least", np.array(1e-12, np.float32)))
    graph.add("Div", vector, above, name=OUTPUTS[1])
