"""Networks in float16 or bfloat16, as ONNX: the graph itself says what each operation computes in.

Convolutions and matrix products work in the half type, and so does what only moves their results. Normalisations, softmax
and other sums stay float32, and so does all that does not depend on x: the embedding of time and label.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import OptionError, PlanError

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
# A sum of many terms, or a function whose range or slope is beyond a half type.
_FULL = (
    "InstanceNormalization GroupNormalization LayerNormalization BatchNormalization LpNormalization RMSNormalization "
    "MeanVarianceNormalization Softmax LogSoftmax Exp Log Pow Sqrt Reciprocal CumSum GlobalAveragePool AveragePool "
    "ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd Sin Cos Tan "
    "If Loop Scan"
)
FULL = frozenset(_FULL.split())
FIXED_INPUTS = {"Resize": (1, 2), "Upsample": (1,), "Dropout": (1,)}  # float32 by ONNX's rules, whatever the data
BF16_OPSET = 22  # the first whose Conv and InstanceNormalization take bfloat16


def to_half(model: onnx.ModelProto, precision: str, x: str, outputs: Iterable[str]) -> onnx.ModelProto:
    """A copy of `model` whose products, x and outputs are in `precision` ("fp16" or "bf16").

    x, outputs: tensor names, of graph inputs and outputs. Every other input and output keeps its type.

    Raises:
        OptionError: another precision. PlanError: a weight beyond float16's range, a graph onnx cannot infer types for.
    """
    if precision not in HALF:
        raise OptionError(f"precision: expected fp16 or bf16, got {precision!r}")
    return _Narrowed(model, precision, x, tuple(outputs)).model


class _Narrowed:
    def __init__(self, model: onnx.ModelProto, precision: str, x: str, outputs: tuple[str, ...]) -> None:
        self.model = _prepared(model, precision)
        self.precision, self.half = precision, HALF[precision]
        graph = self.model.graph
        _fold_casts(graph)
        self.weights = {t.name: t for t in graph.initializer}
        self.types = _element_types(self.model)
        self.now = dict(self.types)  # tensor -> its type in the narrowed graph
        self.on_path = {x}
        self.alias: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.cast: dict[tuple[str, int], str] = {}
        self.now[x] = self.half
        for node in graph.node:
            self._visit(node)
        self._finish(x, outputs)

    def _visit(self, node: onnx.NodeProto) -> None:
        for i, name in enumerate(node.input):
            node.input[i] = self.alias.get(name, name)
        data = [name for name in node.input if name in self.on_path]
        if not data:
            self.nodes.append(node)
            return
        self.on_path.update(node.output)
        if node.op_type in ("Cast", "CastLike") and self._is_float(node.input[0]) and self._is_float(node.output[0]):
            self.alias[node.output[0]] = node.input[0]  # which type a tensor has is decided here alone
            return
        if not any(self._is_float(name) for name in (*node.output, *data)):
            self.nodes.append(node)
            return
        want = self._type_for(node, data)
        fixed = FIXED_INPUTS.get(node.op_type, ())
        if any(self._is_float(name) for name in node.output):
            for i, name in enumerate(node.input):
                if self._is_float(name) and i not in fixed:
                    node.input[i] = self._as(name, want)
        self.nodes.append(node)
        for name in node.output:
            if self._is_float(name):
                self.now[name] = want

    def _type_for(self, node: onnx.NodeProto, data: list[str]) -> int:
        if node.op_type in FULL:
            return TensorProto.FLOAT
        if node.op_type in PRODUCTS:
            return self.half
        is_full = any(self.now[name] == TensorProto.FLOAT for name in data if self._is_float(name))
        return TensorProto.FLOAT if is_full else self.half

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) in FLOATS

    def _as(self, name: str, want: int) -> str:
        if self.now[name] == want:
            return name
        if (name, want) not in self.cast:
            made = self._fresh(f"{name}.as_{self.precision if want == self.half else 'fp32'}")
            self.cast[name, want] = made
            self.types[made] = self.now[made] = want
            if name in self.weights:
                self.model.graph.initializer.append(_converted(self.weights[name], want, made))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [made], name=made, to=want))
                if name in self.on_path:
                    self.on_path.add(made)
        return self.cast[name, want]

    def _fresh(self, name: str) -> str:
        while name in self.now:
            name += "_"
        return name

    def _finish(self, x: str, outputs: tuple[str, ...]) -> None:
        graph = self.model.graph
        for value in (*graph.input, *graph.output):
            if value.name == x or value.name in outputs:
                value.type.tensor_type.elem_type = self.half
        for name in outputs:
            source = self.alias.get(name, name)
            if source == name and self.now[name] == self.half:
                continue
            if source == name:
                source = self._fresh(f"{name}.full")
                for node in self.nodes:
                    for field in (node.input, node.output):
                        for i, used in enumerate(field):
                            if used == name:
                                field[i] = source
            self.nodes.append(helper.make_node("Cast", [source], [name], name=f"{name}.cast", to=self.half))
        used = {i for node in self.nodes for i in _all_inputs(node)} | set(outputs)
        kept = [t for t in graph.initializer if t.name in used]
        nodes = [_copy(node) for node in self.nodes]
        for field, items in ((graph.node, nodes), (graph.initializer, [_copy(t) for t in kept]), (graph.value_info, [])):
            del field[:]
            field.extend(items)


def _prepared(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if precision == "bf16" and version < BF16_OPSET:
        from onnx import version_converter

        try:
            return version_converter.convert_version(model, BF16_OPSET)
        except Exception as e:  # a RuntimeError or ConvertError of onnx's own
            raise PlanError(
                f"precision: expected a graph that onnx converts to opset {BF16_OPSET} for bf16, got "
                f"{str(e).strip().splitlines()[0][:300]}; fp16 needs no conversion"
            ) from e
    return _copy(model)


def _copy(message):
    made = type(message)()
    made.CopyFrom(message)
    return made


def _fold_casts(graph: onnx.GraphProto) -> None:
    """Casts of weights (float16 ones in the plan) become weights."""
    weights = {t.name: t for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in weights and node.attribute[0].i in FLOATS:
            graph.initializer.append(_converted(weights[node.input[0]], node.attribute[0].i, node.output[0]))
        else:
            nodes.append(_copy(node))
    del graph.node[:]
    graph.node.extend(nodes)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except Exception as e:
        raise PlanError(f"model: expected a graph whose types onnx can infer, got {str(e).strip()[:300]}") from e
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {t.name: t.data_type for t in graph.initializer}


def _converted(tensor: onnx.TensorProto, to: int, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    if to == TensorProto.FLOAT16 and values.size and not np.abs(values).max() <= np.finfo(np.float16).max:
        raise PlanError(f"{tensor.name}: expected weights within float16's range, got {np.abs(values).max():g}; take bf16")
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(to)), name)


def _all_inputs(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                yield from _all_inputs(inner)


def count_types(model: onnx.ModelProto) -> dict[str, collections.Counter[str]]:
    """Operation -> how often it gives which element type. For logs and tests."""
    types = _element_types(model)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for node in model.graph.node:
        counts[node.op_type][TensorProto.DataType.Name(types.get(node.output[0], 0)).lower()] += 1
    return dict(counts)
