"""A plan's ONNX graph as torch calls, against ONNX Runtime on the same bytes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from ddpm_rt import _core, onnx_torch
from ddpm_rt.errors import BackendError, PlanError
from ddpm_rt.onnx_torch import functions, reader

DIGITS = ROOT / "ddpm_rt" / "models" / "digits.plan"
SHAPES = {
    "x": ((1, 28, 28), torch.float32),
    "t": ((), torch.float32),
    "label": ((), torch.int64),
    "rows": ((1040,), torch.float32),
}


@pytest.fixture(scope="module")
def digits():
    """name -> (section, inputs by role, output, bytes)"""
    plan = _core.Plan(str(DIGITS))
    networks = json.loads(plan.manifest)["networks"]
    return {
        name: (n["section"], n["inputs"], next(iter(n["outputs"].values())), plan.read(n["section"]))
        for name, n in networks.items()
    }


def by_onnxruntime(data: bytes, given: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, given)[0]


_modules: dict = {}


def module_of(digits, name: str, **options) -> torch.fx.GraphModule:
    key = (name, *options.values())
    if key not in _modules:
        section, inputs, output, data = digits[name]
        _modules[key] = onnx_torch.module(
            data, section, {r: (inputs[r], *SHAPES[r]) for r in inputs}, output, **options
        )
    return _modules[key]


def draws(digits, name: str, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    made = {
        "x": rng.standard_normal((batch, 1, 28, 28)).astype(np.float32),
        "t": rng.integers(0, 1000, batch).astype(np.float32),
        "label": rng.integers(0, 11, batch),
        "rows": rng.standard_normal((batch, 1040)).astype(np.float32),
    }
    return {role: made[role] for role in digits[name][1]}


@pytest.mark.parametrize("name", ["unet", "temb"])
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_the_digits_networks_give_what_onnx_runtime_gives(digits, name, batch, dtype, tolerance):
    given = draws(digits, name, batch)
    wanted = by_onnxruntime(digits[name][3], {digits[name][1][r]: v for r, v in given.items()})
    with torch.no_grad():
        got = module_of(digits, name, dtype=dtype, channels_last=True)(*map(torch.from_numpy, given.values())).numpy()
    assert got.dtype == np.float32 and got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    if name == "temb":  # without the state nothing leaves float32
        assert np.abs(got - wanted).max() <= 2e-4 * np.abs(wanted).max()


def test_what_the_exporter_took_apart_is_put_together(digits):
    targets = [
        node.target
        for node in module_of(digits, "unet", dtype=torch.bfloat16).graph.nodes
        if node.op == "call_function"
    ]
    assert targets.count(functions.group_norm_silu) == 17 and targets.count(functions.group_norm) == 4
    assert targets.count(functions.attention) == 4 and F.silu not in targets
    assert torch.sigmoid not in targets and functions.instance_norm not in targets and functions.softmax not in targets


def test_a_batch_is_any_and_a_row_alone_is_the_same_network(digits):
    unet = module_of(digits, "unet")
    x, rows = (torch.from_numpy(v) for v in draws(digits, "unet", 5).values())
    with torch.no_grad():
        assert torch.allclose(unet(x, rows)[3:4], unet(x[3:4], rows[3:4]), atol=1e-5)


def test_the_reader_reads_what_onnx_reads(digits):
    for section, _, _, data in digits.values():
        ours, theirs = reader.read(data, section), onnx.load_from_string(data).graph
        assert [(n.op, n.inputs, n.outputs) for n in ours.nodes] == [
            (n.op_type, list(n.input), list(n.output)) for n in theirs.node
        ]
        assert list(ours.inputs) == [i.name for i in theirs.input] and ours.outputs == [o.name for o in theirs.output]
        for tensor in theirs.initializer:
            wanted = numpy_helper.to_array(tensor)
            assert ours.initializers[tensor.name].dtype == wanted.dtype
            assert np.array_equal(ours.initializers[tensor.name], wanted)
        for a, b in zip(ours.nodes, theirs.node, strict=True):
            for attribute in b.attribute:
                value = helper.get_attribute_value(attribute)
                if attribute.type == onnx.AttributeProto.TENSOR:
                    assert np.array_equal(a.attributes[attribute.name], numpy_helper.to_array(value))
                else:
                    assert a.attributes[attribute.name] == (value.decode() if isinstance(value, bytes) else value)


# ------------------------------------------------------------------------------------------------ one operator at a time

I, R = np.int64, np.random.default_rng(0).standard_normal


def ints(*values: int) -> np.ndarray:
    return np.array(values, I)


def floats(*shape: int) -> np.ndarray:
    return R(shape).astype(np.float32)


# name -> (operator, shape of one row of x, operands behind it, attributes, outputs)
CASES = {
    **{
        op: (op, (3, 4), [], {}, 1)
        for op in (
            "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "Identity", "LeakyRelu", "Elu", "Mish", "Neg",
            "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softmax", "Tanh", "Flatten",
        )
    },
    **{op: (op, (3, 4), [floats(4)], {}, 1) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")},
    "MatMul": ("MatMul", (3, 4), [floats(4, 6)], {}, 1),
    "Mod": ("Mod", (3, 4), [np.full(4, 0.7, np.float32)], {"fmod": 1}, 1),
    "Pow": ("Pow", (3, 4), [np.array(2.0, np.float32)], {}, 1),
    "Clip": ("Clip", (3, 4), [np.float32(-0.5), np.float32(0.25)], {}, 1),
    "Gelu tanh": ("Gelu", (3, 4), [], {"approximate": "tanh"}, 1),
    "Softmax over channels": ("Softmax", (3, 4), [], {"axis": 1}, 1),
    "Gemm": ("Gemm", (4,), [floats(6, 4), floats(6)], {"transB": 1}, 1),
    "Gemm scaled": ("Gemm", (4,), [floats(4, 6), floats(6)], {"alpha": 0.5, "beta": 2.0}, 1),
    "Einsum": ("Einsum", (3, 4), [floats(4, 5)], {"equation": "bij,jk->bik"}, 1),
    "Conv": ("Conv", (4, 6, 5), [floats(8, 2, 3, 3), floats(8)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}, 1),
    "Conv, uneven pads": ("Conv", (4, 6, 5), [floats(8, 4, 3, 3)], {"pads": [0, 0, 1, 1], "strides": [2, 2]}, 1),
    "Conv1d": ("Conv", (4, 9), [floats(8, 4, 3)], {"dilations": [2]}, 1),
    "ConvTranspose": ("ConvTranspose", (4, 6, 5), [floats(4, 3, 4, 4), floats(3)], {"pads": [1] * 4, "strides": [2, 2]}, 1),
    "AveragePool": ("AveragePool", (4, 6, 6), [], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    "AveragePool, padded": ("AveragePool", (4, 6, 6), [], {"kernel_shape": [3, 3], "pads": [1] * 4}, 1),
    "MaxPool": ("MaxPool", (4, 6, 6), [], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, 1),
    "GlobalAveragePool": ("GlobalAveragePool", (4, 6, 6), [], {}, 1),
    "InstanceNormalization": ("InstanceNormalization", (4, 6, 6), [floats(4), floats(4)], {}, 1),
    "LayerNormalization": ("LayerNormalization", (4, 6), [floats(6), floats(6)], {"axis": -1, "epsilon": 1e-3}, 1),
    "BatchNormalization": ("BatchNormalization", (4, 3, 3), [floats(4), floats(4), floats(4), np.abs(floats(4))], {}, 1),
    "GroupNormalization": ("GroupNormalization", (4, 6, 6), [floats(2), floats(2)], {"num_groups": 2}, 1),
    "Reshape": ("Reshape", (4, 6), [ints(0, -1, 3)], {}, 1),
    "Reshape the batch away": ("Reshape", (4, 6), [ints(-1, 6)], {}, 1),
    "Squeeze": ("Squeeze", (1, 6), [ints(1)], {}, 1),
    "Squeeze all": ("Squeeze", (1, 6), [], {}, 1),
    "Unsqueeze": ("Unsqueeze", (4,), [ints(-1, 1)], {}, 1),
    "Transpose": ("Transpose", (4, 6), [], {"perm": [0, 2, 1]}, 1),
    "Split": ("Split", (5, 6), [], {"axis": 1, "num_outputs": 2}, 2),
    "Split by sizes": ("Split", (5, 6), [ints(1, 4)], {"axis": 1}, 2),
    "Slice": ("Slice", (5, 6), [ints(1, -4), ints(2**63 - 1, -1), ints(1, 2), ints(2, 1)], {}, 1),
    "Slice from below": ("Slice", (5, 6), [ints(-(2**63)), ints(-2), ints(2)], {}, 1),
    "Gather": ("Gather", (5, 6), [ints(3, -1)], {"axis": 1}, 1),
    "Expand": ("Expand", (1, 6), [ints(4, 1)], {}, 1),
    "Tile": ("Tile", (2, 3), [ints(1, 2, 1)], {}, 1),
    "Pad": ("Pad", (2, 3, 4), [ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(2.5)], {}, 1),
    "Pad by reflection": ("Pad", (2, 3, 4), [ints(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}, 1),
    "DepthToSpace": ("DepthToSpace", (8, 3, 2), [], {"blocksize": 2}, 1),
    "DepthToSpace CRD": ("DepthToSpace", (8, 3, 2), [], {"blocksize": 2, "mode": "CRD"}, 1),
    "SpaceToDepth": ("SpaceToDepth", (2, 4, 6), [], {"blocksize": 2}, 1),
    "Resize floor": ("Resize", (2, 3, 3), [None, np.array([1, 1, 2, 2], np.float32)],
                     {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, 1),
    "Resize to the nearest": ("Resize", (2, 3, 3), [None, np.array([1, 1, 3, 2], np.float32)], {"mode": "nearest"}, 1),
    "Resize linear": ("Resize", (2, 3, 4), [None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"}, 1),
    "Resize cubic": ("Resize", (2, 4, 4), [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "cubic"}, 1),
    "ReduceMean": ("ReduceMean", (4, 6), [ints(1, 2)], {"keepdims": 0}, 1),
    "ReduceSum": ("ReduceSum", (4, 6), [ints(-1)], {}, 1),
    "ReduceMax": ("ReduceMax", (4, 6), [ints(1)], {}, 1),
    "ReduceL2": ("ReduceL2", (4, 6), [ints(1)], {}, 1),
}  # fmt: skip


def one_operator(op: str, row: tuple[int, ...], operands, attributes, outputs: int) -> bytes:
    names = ["" if o is None else f"c{i}" for i, o in enumerate(operands)]
    initializers = [
        numpy_helper.from_array(np.asarray(o), name) for o, name in zip(operands, names, strict=True) if o is not None
    ]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, ["x", *names], results, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *row])
    out = helper.make_empty_tensor_value_info(results[-1])
    graph = helper.make_graph([node], "one", [x], [out], initializers)
    opset = 20 if op == "Gelu" else 18
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [2, 5])
def test_an_operator_gives_what_onnx_runtime_gives(name, batch):
    op, row, operands, attributes, outputs = CASES[name]
    data = one_operator(op, row, operands, attributes, outputs)
    x = floats(batch, *row)
    wanted = by_onnxruntime(data, {"x": x})
    module = onnx_torch.module(data, name, {"x": ("x", row, torch.float32)}, f"y{outputs - 1}")
    with torch.no_grad():
        got = module(torch.from_numpy(x)).numpy()
    assert got.shape == wanted.shape
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_an_unknown_operator_is_refused_by_name():
    data = one_operator("Hardmax", (3, 4), [], {}, 1)
    with pytest.raises(BackendError, match=r"section net.*got Hardmax"):
        onnx_torch.module(data, "net", {"x": ("x", (3, 4), torch.float32)}, "y0")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (
            "no such resize",
            ("Resize", (2, 3, 3), [None, np.array([1, 1, 1.5, 1.5], np.float32)], {"mode": "nearest"}, 1),
        ),
        ("a step back", ("Slice", (5, 6), [ints(-1), ints(-9), ints(1), ints(-1)], {}, 1)),
        ("shapes that do not fit", ("Add", (3, 4), [floats(7)], {}, 1)),
        ("an uneven average", ("AveragePool", (4, 6, 6), [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, 1)),
    ],
)
def test_a_use_that_torch_has_no_call_for_is_refused(name, case):
    op, row, operands, attributes, _ = case
    graph = onnx.load_from_string(one_operator("Identity", row, [], {}, 1)).graph
    names = ["" if o is None else f"c{i}" for i, o in enumerate(operands)]
    graph.node[0].CopyFrom(helper.make_node(op, ["x", *names], ["y0"], **attributes))
    for operand, initializer in zip(operands, names, strict=True):
        if operand is not None:
            graph.initializer.append(numpy_helper.from_array(np.asarray(operand), initializer))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(BackendError, match="section net: expected"):
        onnx_torch.module(model.SerializeToString(), "net", {"x": ("x", row, torch.float32)}, "y0")


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x02\x08\x01"])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(PlanError, match="section net: expected an ONNX model"):
        onnx_torch.module(data, "net", {}, "y")


def test_cut_models_end_in_a_typed_error(digits):
    section, inputs, output, data = digits["temb"]
    ports = {r: (inputs[r], *SHAPES[r]) for r in inputs}
    for size in range(0, len(data), len(data) // 37):
        with pytest.raises((PlanError, BackendError)):
            onnx_torch.module(data[:size], section, ports, output)
