"""ddpm_rt: a compiled runtime for diffusion models.

    import ddpm_rt
    images = ddpm_rt.Engine("digits").sample(n=64, scale=3)     # uint8 [64, 28, 28, 1], with .labels and .seeds
    images.save("grid.png")

`Engine` runs a plan file, or any callable through `Engine.from_callable`. `noise`, `rows` and `kernels` are its parts, for a
loop of your own. Every error is a `DdpmError`. Names are loaded on first use, so the import itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import kernels as kernels
    from ._core import __version__ as __version__
    from .editing import slerp as slerp
    from .engine import Engine as Engine
    from .errors import BackendError as BackendError
    from .errors import CancelledError as CancelledError
    from .errors import DdpmError as DdpmError
    from .errors import DeviceError as DeviceError
    from .errors import NumericError as NumericError
    from .errors import OptionError as OptionError
    from .errors import PlanError as PlanError
    from .errors import ShapeError as ShapeError
    from .images import Images as Images
    from .kernels import noise as noise
    from .kernels import rows as rows
    from .tables import Table as Table
    from .tables import grids as grids
    from .tables import samplers as samplers

_HOME = {
    "Engine": "engine",
    "Images": "images",
    "noise": "kernels",
    "rows": "kernels",
    "samplers": "tables",
    "slerp": "editing",
    "grids": "tables",
    "Table": "tables",
    "__version__": "_core",
    **dict.fromkeys(
        (
            "BackendError",
            "CancelledError",
            "DdpmError",
            "DeviceError",
            "NumericError",
            "OptionError",
            "PlanError",
            "ShapeError",
        ),
        "errors",
    ),
}

__all__ = [
    "BackendError",
    "CancelledError",
    "DdpmError",
    "DeviceError",
    "Engine",
    "Images",
    "NumericError",
    "OptionError",
    "PlanError",
    "ShapeError",
    "Table",
    "export",
    "grids",
    "kernels",
    "noise",
    "rows",
    "samplers",
    "slerp",
]


def __getattr__(name: str) -> object:
    import importlib

    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in ("kernels", "export", "_core"):
        try:
            value = importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as e:
            if e.name != f"{__name__}._core":
                raise
            raise ImportError(
                "the C++ extension is not built for this Python: run pip install -e .", name=e.name
            ) from e
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "kernels", "export"})
