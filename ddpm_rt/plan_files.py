"""Which file an Engine opens: a path, a plan by name, or a raw ONNX model or TensorRT engine with its card."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import OptionError, PlanError

MODELS = pathlib.Path(__file__).resolve().parent / "models"


def shipped() -> list[str]:
    """Names of the plans that come with the package."""
    return sorted(path.stem for path in MODELS.glob("*.plan"))


def find(plan: str | os.PathLike[str]) -> pathlib.Path:
    """The file of a plan: a path; or a bare name, looked for in the package, in $DDPM_RT_MODELS and in ./models.

    PlanError, listing the names that these folders hold, where there is none.
    """
    if not isinstance(plan, (str, os.PathLike)):
        raise OptionError(f"plan: expected a path or a name, got {type(plan).__name__}")
    text = os.fspath(plan)
    path = pathlib.Path(text)
    is_name = isinstance(plan, str) and path.name == text and not path.suffix
    if is_name:
        for folder in _folders():
            if (found := folder / f"{text}.plan").is_file():
                return found
    if path.is_file():
        return path
    what = "a folder" if path.is_dir() else "which does not exist"
    raise PlanError(f"plan: expected a file or the name of a plan here ({_names()}), got {text!r}, {what}")


def _folders() -> list[pathlib.Path]:
    own = os.environ.get("DDPM_RT_MODELS")
    return [MODELS, *([pathlib.Path(own)] if own else []), pathlib.Path("models")]


def _names() -> str:
    return ", ".join(sorted({file.stem for folder in _folders() for file in folder.glob("*.plan")})) or "none"


@contextmanager
def located(plan: str | os.PathLike[str], card: str | os.PathLike[str] | None) -> Iterator[pathlib.Path]:
    """The plan to open. For an .onnx file: a temporary one, made of it and its card (which needs the `export` extra).
    For an .engine or .trt file: one that holds the TensorRT engine, so that it is loaded only with trust_native.

    Raises:
        PlanError, OptionError: no such file, a card that is missing or wrong, or a card beside a plan, which has its own.
    """
    path = find(plan)
    if path.suffix.lower() in (".engine", ".trt"):
        from .build.raw import plan_of_engine

        with tempfile.TemporaryDirectory(prefix="ddpm_rt-") as folder:
            target = pathlib.Path(folder) / "engine.plan"
            plan_of_engine(path, card, target)
            yield target
        return
    if path.suffix.lower() != ".onnx":
        if card is not None:
            raise OptionError(f"card: expected None with a plan, which describes itself, got {os.fspath(card)!r}")
        yield path
        return
    try:
        from .export.onnx_file import export_onnx
    except ImportError as e:
        raise OptionError(
            f'plan: expected a plan, got {str(path)!r}; to read ONNX models: pip install "ddpm_rt[export]" ({e})'
        ) from e
    with tempfile.TemporaryDirectory(prefix="ddpm_rt-") as folder:
        target = pathlib.Path(folder) / "model.plan"
        export_onnx(path, card, target, name=path.stem)
        yield target
