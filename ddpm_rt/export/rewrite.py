"""Changes to ONNX graphs before they enter a plan: float16 weights, forms that the backends run, types of the ports."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import PlanError

log = logging.getLogger("ddpm_rt.export")

MIN_HALVED = 256  # elements; biases and normalisations gain nothing from float16
DTYPES = {"x": TensorProto.FLOAT, "t": TensorProto.FLOAT, "label": TensorProto.INT64, "rows": TensorProto.FLOAT}


def halve_weights(model: onnx.ModelProto) -> int:
    """Large float32 initializers become float16 with a Cast behind, which both backends fold away.  -> how many

    A tensor with values beyond float16's range stays as it is. Computation stays in float32.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < MIN_HALVED:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.abs(values).max() <= np.finfo(np.float16).max:
            log.warning("%s: stays float32, its values are beyond float16", tensor.name)
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(casts)


def lower_group_norm(model: onnx.ModelProto) -> int:
    """GroupNormalization nodes become reshape, InstanceNormalization, reshape, scale, shift.  -> how many

    OpenVINO 2026.4 crashes on GroupNormalization followed by a scale and shift per sample (FiLM). Nodes whose scale is
    no initializer are left alone. (Opsets 18 to 20 have another GroupNormalization, which onnx's checker refuses.)
    """
    sizes = {t.name: t.dims[0] for t in model.graph.initializer if len(t.dims) == 1}
    nodes: list[onnx.NodeProto] = []
    done = 0

    def emit(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(name: str, values: list[float], kind: type = np.int64) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    for node in model.graph.node:
        if node.op_type != "GroupNormalization" or node.input[1] not in sizes:
            nodes.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        groups, epsilon = attributes["num_groups"], attributes.get("epsilon", 1e-5)
        x, scale, shift = node.input
        tag = f"{node.output[0]}.group_norm"
        folded = emit("Reshape", [x, constant(f"{tag}.in_groups", [0, groups, -1])], f"{tag}.folded")  # 0: the batch
        unit = [constant(f"{tag}.one", [1] * groups, np.float32), constant(f"{tag}.zero", [0] * groups, np.float32)]
        normal = emit("InstanceNormalization", [folded, *unit], f"{tag}.normal", epsilon=epsilon)
        in_channels = constant(f"{tag}.in_channels", [0, sizes[scale], -1])
        column = constant(f"{tag}.column", [-1, 1])
        unfolded = emit("Reshape", [normal, in_channels], f"{tag}.unfolded")
        scaled = emit("Mul", [unfolded, emit("Reshape", [scale, column], f"{tag}.scale")], f"{tag}.scaled")
        shifted = emit("Add", [scaled, emit("Reshape", [shift, column], f"{tag}.shift")], f"{tag}.shifted")
        emit("Reshape", [shifted, emit("Shape", [x], f"{tag}.shape")], node.output[0])
        done += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return done


def fit_ports(model: onnx.ModelProto, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Checks the tensors that play the roles, and casts those of another type. PlanError naming the role.

    inputs, outputs: role -> tensor name. A graph with integer timesteps, or in float16, gets casts at its edges.
    """
    free = {v.name: v for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer}}
    for what, ports, found in (("inputs", inputs, free), ("outputs", outputs, {v.name: v for v in model.graph.output})):
        for role, name in ports.items():
            if name not in found:
                raise PlanError(f"{what}.{role}: expected one of the graph's {', '.join(found)}, got {name!r}")
            dims = found[name].type.tensor_type.shape.dim
            if len(dims) < 1 or dims[0].HasField("dim_value"):
                shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
                raise PlanError(
                    f"{what}.{role}: expected a free batch dimension first, got {name} {shape}; "
                    "export the model with dynamic_shapes (or dynamic_axes) for dimension 0"
                )
    if unused := sorted(free.keys() - set(inputs.values())):
        raise PlanError(f"inputs: expected a role (x, t, label, a condition) for every input of the graph, got none for {unused}")
    _cast_ports(model, free, inputs)
    for role, name in outputs.items():
        value = next(v for v in model.graph.output if v.name == name)
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            _rename(model, name, f"{name}.native", outputs_too=True)
            model.graph.node.append(helper.make_node("Cast", [f"{name}.native"], [name], to=TensorProto.FLOAT))
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def fix_sizes(model: onnx.ModelProto, shapes: Mapping[str, list[int]]) -> None:
    """Gives inputs whose sizes behind the batch are free these ones. PlanError where the graph has others."""
    for value in model.graph.input:
        if value.name not in shapes:
            continue
        dims = value.type.tensor_type.shape.dim[1:]
        found = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        wanted = shapes[value.name]
        if len(found) != len(wanted) or any(f not in (None, w) for f, w in zip(found, wanted, strict=True)):
            raise PlanError(f"conditions: expected the shape of the graph's {value.name} behind the batch, {found}, got {wanted}")
        for dim, size in zip(dims, wanted, strict=True):
            dim.dim_value = size


def _cast_ports(model: onnx.ModelProto, free: Mapping[str, onnx.ValueInfoProto], inputs: Mapping[str, str]) -> None:
    casts = []
    for role, name in inputs.items():
        tensor = free[name].type.tensor_type
        if tensor.elem_type != DTYPES.get(role, TensorProto.FLOAT):
            native, tensor.elem_type = tensor.elem_type, DTYPES.get(role, TensorProto.FLOAT)
            _rename(model, name, f"{name}.native")
            casts.append(helper.make_node("Cast", [name], [f"{name}.native"], to=native))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rename(model: onnx.ModelProto, old: str, new: str, outputs_too: bool = False) -> None:
    """Every use of a tensor by the graph's nodes, and with outputs_too the node that makes it."""

    def walk(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for field in (node.input, node.output) if outputs_too else (node.input,):
                for i, name in enumerate(field):
                    if name == old:
                        field[i] = new
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    walk(attribute.g)

    walk(model.graph)
