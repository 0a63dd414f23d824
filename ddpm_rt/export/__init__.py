"""Plans from torch modules, checkpoints of `ddpm-rt train`, ONNX files with a JSON card, and other projects' models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..importers.dispatch import export_model as export_model
    from .module import export_checkpoint as export_checkpoint
    from .module import export_plan as export_plan
    from .onnx_file import export_onnx as export_onnx

__all__ = ["export_checkpoint", "export_model", "export_onnx", "export_plan"]


def __getattr__(name: str) -> object:  # torch is not needed where an ONNX file is exported
    import importlib

    homes = {"export_checkpoint": ".module", "export_plan": ".module", "export_onnx": ".onnx_file"}
    home = (homes | {"export_model": "..importers.dispatch"}).get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)
