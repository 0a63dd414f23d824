"""The JSON card of a raw ONNX model: the keys of a plan's manifest that the graph itself does not tell."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OptionError, PlanError
from . import conditions
from .description import Description, describe

EXAMPLE = {
    "inputs": {"x": "x", "t": "t", "label": "label"},
    "outputs": {"eps": "eps"},
    "sample": {"shape": [3, 32, 32], "role": "image", "range": [-1, 1]},
    "schedule": {"name": "linear", "T": 1000},
    "prediction": "eps",
    "time": {"scale": 1.0},
    "class_names": ["cat", "dog"],
    "defaults": {"sampler": "ddim", "steps": 50, "scale": 3.0},
    "licence": "",
}
REQUIRED = ("inputs", "outputs", "sample", "schedule", "prediction")
KNOWN = (*EXAMPLE, "num_classes", "conditions", "name", "card", "format", "sources")


def read_card(
    card: str | os.PathLike[str] | Mapping[str, Any] | None,
    model: Path,
    inputs: Mapping[str, list] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card as a dict with every required key.

    card: its content, a file, or None for NAME.json beside the model. inputs: tensor name -> dimensions of the graph,
    to show in a message. extra: further keys that are required, with an example each.
    PlanError, with what to write, where there is none or it lacks something.
    """
    extra = extra or {}

    def advice(problem: str) -> str:
        return _advice(problem, inputs, extra)

    if isinstance(card, Mapping):
        content, where = dict(card), "card"
    else:
        file = model.with_suffix(".json") if card is None else Path(card)
        where = f"card {file}"
        if not file.is_file():
            raise PlanError(advice(f"{where}: expected a JSON file that describes {model.name}, found none"))
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise PlanError(f"{where}: expected JSON, got {e}") from e
    if not isinstance(content, dict):
        raise PlanError(advice(f"{where}: expected a JSON object, got {type(content).__name__}"))
    if missing := [k for k in (*REQUIRED, *extra) if k not in content]:
        raise PlanError(advice(f"{where}: expected {', '.join(missing)}, got {', '.join(content) or 'nothing'}"))
    if unknown := [k for k in content if k not in (*KNOWN, *extra)]:
        raise PlanError(f"{where}: expected keys among {', '.join((*KNOWN, *extra))}, got {unknown[0]!r}")
    for key in ("inputs", "outputs", "sample", "defaults", "time", "conditions"):
        if not isinstance(content.get(key, {}), dict):
            raise PlanError(f"{where}: {key}: expected an object, got {content[key]!r}")
    return content


def _advice(problem: str, inputs: Mapping[str, list] | None, extra: Mapping[str, Any]) -> str:
    example = {**extra, **EXAMPLE}
    graph = ""
    if inputs:
        graph = "; the graph's inputs are " + ", ".join(f"{k} {v}" for k, v in inputs.items())
        example["inputs"] = dict(zip(("x", "t", "label"), inputs, strict=False))
        if len(inputs) < 3:
            del example["class_names"]
            example["defaults"] = {"sampler": "ddim", "steps": 50}
        sizes = next(iter(inputs.values()))[1:]
        if sizes and all(isinstance(s, int) for s in sizes):
            example["sample"] = {"shape": sizes, "role": "image" if len(sizes) == 3 else "vector", "range": [-1, 1]}
    return f"{problem}{graph}. Write, with your model's values:\n{json.dumps(example, indent=2)}"


def conditions_of(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All but the label, as `conditions.checked` has them."""
    try:
        return conditions.checked({name: own for name, own in (card.get("conditions") or {}).items() if name != "label"})
    except OptionError as e:
        raise PlanError(f"card: {e}") from e


def ports_of(card: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Input role -> tensor and output role -> tensor."""
    inputs, outputs = card["inputs"], card["outputs"]
    named = tuple(conditions.inputs_of(conditions_of(card)))
    for field, ports, needed, known in (
        ("inputs", inputs, ("x", "t", *named), ("x", "t", "label", *named)),
        ("outputs", outputs, ("eps",), ("eps",)),
    ):
        for role, name in ports.items():
            if role not in known or not isinstance(name, str) or not name:
                raise PlanError(
                    f"card: {field}: expected {', '.join(known)} -> name of a tensor, got {role!r}: {name!r}"
                )
        if missing := [r for r in needed if r not in ports]:
            raise PlanError(f"card: {field}.{missing[0]}: expected the name of a tensor, got none")
    return dict(inputs), dict(outputs)


def description_of(card: Mapping[str, Any], *, name: str, sources: Mapping[str, str]) -> Description:
    """PlanError naming the card's field that is wrong."""
    sample = card["sample"]
    if "shape" not in sample:
        raise PlanError(f"card: sample.shape: expected sizes without the batch, got {json.dumps(sample)}")
    classes = card.get("num_classes", (card.get("conditions") or {}).get("label", {}).get("classes"))
    takes_label = "label" in card["inputs"]
    if takes_label != bool(classes or card.get("class_names")):
        raise PlanError(
            "card: inputs.label: expected together with class_names or num_classes, got "
            + ("inputs.label alone" if takes_label else "classes without inputs.label")
        )
    try:
        return describe(
            name=name,
            shape=sample["shape"],
            role=sample.get("role"),
            data_range=sample.get("range", (-1.0, 1.0)),
            schedule=card["schedule"],
            prediction=card["prediction"],
            time_scale=card.get("time", {}).get("scale", 1.0),
            num_classes=classes,
            class_names=card.get("class_names"),
            defaults=card.get("defaults"),
            licence=card.get("licence"),
            card=card.get("card"),
            sources=sources,
            conditions=conditions_of(card),
        )
    except OptionError as e:
        raise PlanError(f"card: {e}") from e
