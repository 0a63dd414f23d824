"""ONNX graphs: made of torch modules, read from files, and written as one piece."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from ..errors import PlanError

# From 21 on torch writes GroupNormalization nodes, and OpenVINO 2026.4 crashes on one that is followed by a scale and
# shift per sample (FiLM). The forms of 18 are those that both backends fuse: reshape, InstanceNormalization, reshape
# for GroupNorm; Sigmoid, Mul for SiLU; MatMul, Softmax, MatMul for attention.
OPSET = 18
MAX_BYTES = 2**31 - 1  # protobuf's limit for one message


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of operators not found, nodes folded, their own deprecations: nothing a caller can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def from_torch(module, inputs: Mapping[str, object], output: str) -> onnx.ModelProto:
    """The graph of module(*inputs), whose batch dimension is free.

    module: torch.nn.Module in eval mode. inputs: name -> example tensor, batch first, of 2 or more rows (1 would be
    taken for a constant). PlanError where torch cannot export it.
    """
    import torch

    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        return program.model_proto
    except Exception as e:  # whatever the module's own code or one of torch's many passes raises
        reason = str(e.__cause__ or e).strip().splitlines() or [type(e).__name__]
        raise PlanError(
            "module: expected one that torch.onnx can export with a free batch dimension, got "
            f"{type(e.__cause__ or e).__name__}: {reason[0][:300]}"
        ) from e


def load(path: Path) -> onnx.ModelProto:
    """An ONNX file, checked by onnx. PlanError where it is none, or keeps weights in other files."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlanError(f"{path.name}: expected at most {MAX_BYTES} bytes, got {path.stat().st_size}")
        data = path.read_bytes()
    except OSError as e:
        raise PlanError(f"{path}: expected an ONNX file that can be read: {e.strerror}") from e
    try:
        model = onnx.load_from_string(data)
        refuse_external_data(model)
        onnx.checker.check_model(model)
    except PlanError:
        raise
    except Exception as e:  # protobuf's DecodeError, onnx's ValidationError
        reason = str(e).strip().splitlines() or [""]
        raise PlanError(f"{path.name}: expected an ONNX model, got {type(e).__name__}: {reason[0][:300]}") from e
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a graph: initializers, constants, and those of graphs inside nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)


def refuse_external_data(model: onnx.ModelProto) -> None:
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise PlanError(
                f"initializer {tensor.name}: expected weights inside the file, got external data; "
                "write them in with onnx.save(onnx.load(PATH), PATH, save_as_external_data=False)"
            )


def serialize(model: onnx.ModelProto) -> bytes:
    """PlanError where weights lie outside the file or it is beyond protobuf's 2 GB."""
    refuse_external_data(model)
    size = sum(len(t.raw_data) for t in model.graph.initializer)
    if size <= MAX_BYTES:
        size = model.ByteSize()
    if size > MAX_BYTES:
        raise PlanError(
            f"model: expected at most {MAX_BYTES} bytes (protobuf's limit), got {size}; weights='fp16' halves it"
        )
    for node in model.graph.node:  # the exporter's notes of where each node came from in Python
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    return model.SerializeToString(deterministic=True)
