"""Plans from torch modules, from checkpoints of `ddpm-rt train`, and from ONNX files with a JSON card."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .module import export_checkpoint as export_checkpoint
    from .module import export_plan as export_plan
    from .onnx_file import export_onnx as export_onnx

__all__ = ["export_checkpoint", "export_onnx", "export_plan"]


def __getattr__(name: str) -> object:  # torch is not needed where an ONNX file is exported
    import importlib

    home = {"export_checkpoint": ".module", "export_plan": ".module", "export_onnx": ".onnx_file"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)
