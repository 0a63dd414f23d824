"""Engines compiled ahead of time for a backend: `ddpm-rt build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan_engines import build as build

__all__ = ["build"]


def __getattr__(name: str) -> object:
    if name == "build":
        from .plan_engines import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
