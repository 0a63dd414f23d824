"""Which file an Engine opens: a path, a plan that ships with the package, or a raw ONNX model with its card."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import _core
from .errors import OptionError, PlanError

MODELS = pathlib.Path(__file__).resolve().parent / "models"


def shipped() -> list[str]:
    """Names that `Engine(name)` knows."""
    return sorted(path.stem for path in MODELS.glob("*.plan"))


def find(plan: str | os.PathLike[str]) -> pathlib.Path:
    """A bare name of a shipped plan is that plan; everything else is a path."""
    if not isinstance(plan, (str, os.PathLike)):
        raise OptionError(f"plan: expected a path or a name, got {type(plan).__name__}")
    text = os.fspath(plan)
    if isinstance(plan, str) and text in shipped():
        return MODELS / f"{text}.plan"
    path = pathlib.Path(text)
    if not path.exists():
        names = ", ".join(shipped()) or "none in this build"
        raise PlanError(
            f"plan: expected a file or the name of a shipped plan ({names}), got {text!r}, which does not exist"
        )
    return path


@contextmanager
def located(
    plan: str | os.PathLike[str], card: str | os.PathLike[str] | None, trust_native: bool
) -> Iterator[pathlib.Path]:
    """The path of a plan to open; for an .onnx file a temporary plan made of it and its card.

    Raises:
        PlanError, OptionError: no such file, no card, or a card beside a plan, which has none.
    """
    path = find(plan)
    if path.suffix.lower() != ".onnx":
        if card is not None:
            raise OptionError(
                f"card: expected None with a plan, whose manifest it carries itself, got {os.fspath(card)!r}"
            )
        yield path
        return
    manifest = _read_card(path, path.with_suffix(".json") if card is None else pathlib.Path(card))
    with tempfile.TemporaryDirectory(prefix="ddpm_rt-") as folder:
        target = pathlib.Path(folder) / "model.plan"
        sections = {"model.onnx": path.read_bytes(), "alpha_bar": manifest.pop("_alpha_bar")}
        _core.write_plan(str(target), json.dumps(manifest), sections)
        yield target


def _read_card(model: pathlib.Path, card: pathlib.Path) -> dict[str, Any]:
    raise NotImplementedError
