"""The last steps of every export: check the graphs against the original, store the evidence, write the plan."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .. import _core
from . import checks, graph, rewrite
from .description import Description

log = logging.getLogger("ddpm_rt.export")

# role in the manifest -> section
SECTIONS = {"temb": "temb.onnx", "unet": "unet.onnx"}


def write(
    path: str | os.PathLike[str],
    about: Description,
    models: Mapping[str, onnx.ModelProto],
    ports: Mapping[str, tuple[dict[str, str], dict[str, str]]],
    original: Callable[[checks.Arrays], np.ndarray],
    weights: str,
) -> dict[str, Any]:
    """Checks and writes the plan; returns what a summary needs: path, bytes, parity, manifest.

    models: "unet", and "temb" where the embedding is a network of its own; changed in place. ports: the same keys ->
    (input role -> tensor, output role -> tensor). original: role -> array of a batch to eps, what the graphs must
    equal.
    """
    halved = 0
    for model in models.values():
        halved += rewrite.halve_weights(model) if weights == "fp16" else 0
    sections = {SECTIONS[name]: graph.serialize(model) for name, model in models.items()}
    networks = {name: _network(name, models[name], ports[name], about) for name in models}
    log.info("graphs: %s", ", ".join(f"{k} {len(v)} bytes" for k, v in sections.items()))
    run = checks.Network(sections, networks).runner()
    inputs = checks.cases(about)
    expected = original(inputs)
    checks.check_output(expected, about)
    got = run(inputs)
    parity = checks.check_parity(got, expected, weights)
    checks.check_batch(run, inputs)
    # With halved weights the plan's own graph is the truth that backends are held to, at float32's tolerance.
    sections["self_test"] = checks.self_test(inputs, got if halved else expected)
    if about.continuous is None:
        sections["alpha_bar"] = about.alpha_bar.astype("<f8").tobytes()
    stage = {"network": "unet"} | ({"temb": "temb"} if "temb" in models else {})
    manifest = about.manifest(networks, stage)
    manifest["parity"] = {"error": parity, "weights": weights}
    _core.write_plan(os.fspath(path), json.dumps(manifest), sections)
    return {"path": os.fspath(path), "bytes": Path(path).stat().st_size, "parity": parity, "manifest": manifest}


def _network(
    name: str, model: onnx.ModelProto, ports: tuple[dict[str, str], dict[str, str]], about: Description
) -> dict[str, Any]:
    inputs, outputs = ports
    entry: dict[str, Any] = {"kind": "onnx", "section": SECTIONS[name], "inputs": inputs, "outputs": outputs}
    if name == "temb":
        value = next(v for v in model.graph.output if v.name == outputs["rows"])
        entry["rows_width"] = value.type.tensor_type.shape.dim[1].dim_value
    else:
        channels, end = about.shape[0], about.output_shape[0]
        entry["output_slices"] = {
            "mean": [0, channels],
            "variance": None if about.variance == "fixed" else [channels, 2 * channels],
            "gradient": [end - channels, end] if about.classifier else None,
        }
        entry["guided_channels"] = [0, about.shape[0]]
    return entry
