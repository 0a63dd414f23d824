"""ONNX models as plain Python values, read without the `onnx` package (onnx.proto3 of ONNX 1.16 names the fields).

Only what a graph of operators needs is read; no length is trusted, and what is refused is refused by name.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import PlanError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64,
    9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip
_BFLOAT16 = 16


@dataclasses.dataclass
class Node:
    op: str
    name: str
    inputs: list[str]  # "" where an optional input is left out
    outputs: list[str]
    attributes: dict[str, Any]


@dataclasses.dataclass
class Model:
    nodes: list[Node]
    initializers: dict[str, np.ndarray]
    inputs: dict[str, list[int | None]]  # shape, None where it is free; without the initializers
    outputs: list[str]
    opset: int


def read(data: bytes, section: str) -> Model:
    """Raises PlanError for anything that is no ONNX model of standard operators with its weights inside."""
    try:
        return _model(memoryview(data))
    except _Malformed as e:
        raise PlanError(f"section {section}: expected an ONNX model, got {e}") from None


class _Malformed(Exception):
    pass


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Malformed("a number without an end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, an int for numbers, a memoryview for the rest)"""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise _Malformed(f"wire type {kind}")
        if length > len(data) - at:
            raise _Malformed(f"a field of {length} bytes where {len(data) - at} are left")
        yield key >> 3, data[at : at + length]
        at += length


def _text(value: Any) -> str:
    if isinstance(value, int):
        raise _Malformed("a number where a text belongs")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise _Malformed("a text that is not UTF-8") from None


def _message(value: Any) -> memoryview:
    if isinstance(value, int):
        raise _Malformed("a number where a message belongs")
    return value


def _numbers(value: Any) -> list[int]:
    """A repeated int64: one number, or many packed."""
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def _floats(value: memoryview, code: str) -> list[float]:
    size = struct.calcsize(code)
    if len(value) % size:
        raise _Malformed("a broken list of floats")
    return list(struct.unpack(f"<{len(value) // size}{code}", value))


def _model(data: memoryview) -> Model:
    graph, opset = None, 0
    for field, value in _fields(data):
        if field == 7:
            graph = _message(value)
        elif field == 8:
            domain, version = "", 0
            for inner, v in _fields(_message(value)):
                if inner == 1:
                    domain = _text(v)
                elif inner == 2:
                    version = int(v)
            if domain in ("", "ai.onnx"):
                opset = version
        elif field == 25:
            raise _Malformed("model-local functions, which are not supported: inline them")
    if graph is None or opset == 0:
        raise _Malformed("one without a graph and an operator set")
    return _graph(graph, opset)


def _graph(data: memoryview, opset: int) -> Model:
    model = Model([], {}, {}, [], opset)
    for field, value in _fields(data):
        if field == 1:
            model.nodes.append(_node(_message(value)))
        elif field == 5:
            name, array = _tensor(_message(value))
            model.initializers[name] = array
        elif field == 11:
            name, shape = _value_info(_message(value))
            model.inputs[name] = shape
        elif field == 12:
            model.outputs.append(_value_info(_message(value))[0])
        elif field == 15:
            raise _Malformed("sparse initializers, which are not supported")
    for name in model.initializers:
        model.inputs.pop(name, None)
    return model


def _node(data: memoryview) -> Node:
    node = Node("", "", [], [], {})
    domain = ""
    for field, value in _fields(data):
        if field == 1:
            node.inputs.append(_text(value))
        elif field == 2:
            node.outputs.append(_text(value))
        elif field == 3:
            node.name = _text(value)
        elif field == 4:
            node.op = _text(value)
        elif field == 5:
            name, attribute = _attribute(_message(value))
            node.attributes[name] = attribute
        elif field == 7:
            domain = _text(value)
    if domain not in ("", "ai.onnx"):
        node.op = f"{domain}.{node.op}"
    return node


def _attribute(data: memoryview) -> tuple[str, Any]:
    name, kind = "", 0
    values: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            name = _text(value)
        elif field == 20:
            kind = int(value)
        elif field in (7, 8, 9):
            values.setdefault(field, []).append(value)
        else:
            values[field] = value
    readers = {  # AttributeProto.AttributeType -> its field, and how it is read
        1: (2, lambda v: _floats(v, "f")[0]),
        2: (3, _signed),
        3: (4, lambda v: _text(v)),
        4: (5, lambda v: _tensor(_message(v))[1]),
        6: (7, lambda many: [f for v in many for f in _floats(v, "f")]),
        7: (8, lambda many: [i for v in many for i in _numbers(v)]),
        8: (9, lambda many: [_text(v) for v in many]),
    }
    if kind not in readers:
        return name, None  # subgraphs: their operators are refused by name
    field, reader = readers[kind]
    empty = {2: None, 3: 0, 4: b"", 7: [], 8: [], 9: []}
    value = values.get(field, empty.get(field))
    if value is None:
        return name, 0.0
    return name, reader(value)


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    name, kind, dims, raw = "", 0, [], None
    typed: list[Any] = []
    for field, value in _fields(data):
        if field == 1:
            dims += _numbers(value)
        elif field == 2:
            kind = int(value)
        elif field == 4:
            typed += _floats(_message(value), "f")
        elif field in (5, 7, 11):
            typed += _numbers(value)
        elif field == 10:
            typed += _floats(_message(value), "d")
        elif field == 8:
            name = _text(value)
        elif field == 9:
            raw = _message(value)
        elif field == 13 or (field == 14 and value == 1):
            raise _Malformed(f"initializer {name or '?'} with its data in another file")
    if kind not in _DTYPES and kind != _BFLOAT16:
        raise _Malformed(f"initializer {name or '?'} of element type {kind}, which is not supported")
    if any(d < 0 for d in dims):
        raise _Malformed(f"initializer {name} of shape {dims}")
    dtype = np.dtype(np.uint16 if kind == _BFLOAT16 else _DTYPES[kind])
    if raw is not None:
        if len(raw) % dtype.itemsize:
            raise _Malformed(f"initializer {name} of {len(raw)} bytes")
        array = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)
    elif kind in (10, _BFLOAT16):  # halves are kept as their bits
        array = np.array(typed, np.uint16).view(dtype)
    else:
        array = np.array(typed, dtype)
    count = 1
    for d in dims:
        count *= d
    if array.size != count:
        raise _Malformed(f"initializer {name} of shape {dims} with {array.size} elements")
    if kind == _BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return name, array.reshape(dims)


def _value_info(data: memoryview) -> tuple[str, list[int | None]]:
    name, shape = "", []
    for field, value in _fields(data):
        if field == 1:
            name = _text(value)
        elif field == 2:
            for inner, tensor in _fields(_message(value)):
                if inner == 1:
                    shape = _shape(_message(tensor))
    return name, shape


def _shape(data: memoryview) -> list[int | None]:
    for field, value in _fields(data):
        if field == 2:
            dims: list[int | None] = []
            for inner, dim in _fields(_message(value)):
                if inner == 1:
                    known = [v for f, v in _fields(_message(dim)) if f == 1]
                    dims.append(int(known[0]) if known else None)
            return dims
    return []
