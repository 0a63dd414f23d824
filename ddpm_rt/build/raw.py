"""A plan of a TensorRT engine that somebody else built, and a JSON card: its network without its ONNX."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _core
from ..errors import PlanError
from ..export.card import description_of, ports_of, read_card

LIBRARIES, PRECISIONS = ("tensorrt", "tensorrt_rtx"), ("fp32", "fp16", "bf16")
EXAMPLE = {"library": "tensorrt_rtx", "precision": "fp16"}


def plan_of_engine(
    engine: str | os.PathLike[str],
    card: str | os.PathLike[str] | Mapping[str, Any] | None,
    path: str | os.PathLike[str],
) -> None:
    """Writes a plan whose network is `engine`: x [B, *shape], t [B] float32 and perhaps label [B] int64 -> eps [B, *shape].

    card: as of an ONNX file (`export.card.EXAMPLE`), with the key `engine`: {"library": "tensorrt" or "tensorrt_rtx",
    "precision": "fp16", and where known "version", "capabilities": ["8.6"]}. None: NAME.json beside the engine.

    Raises:
        PlanError: the card lacks something or is wrong; the file cannot be read.
    """
    engine = Path(engine)
    content = read_card(card, engine, extra={"engine": EXAMPLE})
    inputs, outputs = ports_of(content)
    about = description_of(content, name=content.get("name") or engine.stem, sources={})
    stated = _checked(content["engine"])
    try:
        data = engine.read_bytes()
    except OSError as e:
        raise PlanError(f"engine: expected a file that can be read, got {str(engine)!r}: {e.strerror}") from e
    network = {"kind": "tensorrt", "section": "engine", "inputs": inputs, "outputs": outputs}
    manifest = about.manifest({"unet": network}, {"network": "unet"})
    del manifest["self_test"]  # there is nothing to hold the engine against
    manifest["engines"] = [{**stated, "network": "unet", "section": "engine"}]
    _core.write_plan(
        os.fspath(path), json.dumps(manifest), {"engine": data, "alpha_bar": about.alpha_bar.astype("<f8").tobytes()}
    )


def _checked(stated: Any) -> dict[str, Any]:
    if not isinstance(stated, dict):
        raise PlanError(f"card: engine: expected an object such as {json.dumps(EXAMPLE)}, got {stated!r}")
    for key, known in (("library", LIBRARIES), ("precision", PRECISIONS)):
        if stated.get(key) not in known:
            raise PlanError(f"card: engine.{key}: expected one of {', '.join(known)}, got {stated.get(key)!r}")
    if not isinstance(stated.get("version", ""), str):
        raise PlanError(f'card: engine.version: expected a text such as "1.7.1.116", got {stated["version"]!r}')
    capabilities = stated.get("capabilities", [])
    if not isinstance(capabilities, list) or not all(isinstance(c, str) for c in capabilities):
        raise PlanError(f'card: engine.capabilities: expected texts such as ["8.6"], got {capabilities!r}')
    return {k: stated[k] for k in ("library", "precision", "version", "capabilities") if k in stated}
