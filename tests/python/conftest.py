"""Denoisers and plans with closed-form answers, shared by the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[2]
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
MEANS, STD = np.array([0.6, -0.4, 0.1]), 0.3  # two classes and the null label of `gaussian`


def gaussian(x: np.ndarray, t: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """eps of data N(mean_label, STD^2 I): sqrt(1 - ab) (x - sqrt(ab) mean) / (ab STD^2 + 1 - ab), from DDPM eq. 4."""
    column = (-1, *[1] * (x.ndim - 1))
    ab = ALPHA_BAR[t.astype(int)].reshape(column)
    mean = MEANS[2 if labels is None else labels].reshape(column) if labels is not None else MEANS[2]
    return (np.sqrt(1 - ab) * (x - np.sqrt(ab) * mean) / (ab * STD**2 + 1 - ab)).astype(np.float32)


def write_mixture_plan(path: Path, *, classes: int = 2, shape: tuple[int, ...] = (1, 4, 4), **changes: Any) -> Path:
    """A plan of the closed-form mixture of `classes` Gaussians, conditional on the class; `changes` replace manifest keys."""
    from ddpm_rt import _core

    elements = int(np.prod(shape))
    manifest: dict[str, Any] = {
        "format": 1,
        "producer": "tests",
        "name": path.stem,
        "requires": [],
        "row_version": 1,
        "rng_version": 1,
        "networks": {
            "mixture": {
                "kind": "gaussian_mixture",
                "means": "means",
                "stds": "stds",
                "weights": "weights",
                "K": classes,
            }
        },
        "stages": [
            {"kind": "diffusion", "network": "mixture", "inputs": {"x": "state", "t": "time", "label": "request"}}
        ],
        "conditions": {
            "label": {
                "dtype": "int64",
                "shape": [],
                "max_length": None,
                "mask": False,
                "role": "class",
                "classes": classes,
                "null": classes,
            }
        },
        "class_names": ["cat", "dog", "cow", "hen"][:classes],
        "sample": {"shape": list(shape), "role": "image", "range": [-1, 1], "uint8": "round"},
        "schedule": {"section": "alpha_bar", "T": 1000, "name": "linear"},
        "prediction": "eps",
        "variance": "fixed",
        "time": {"type": "index", "scale": 1.0},
        "defaults": {"sampler": "ddim", "steps": 10, "scale": 2.0, "eta": 0.0, "clip": "rederive", "grid": "leading"},
    }
    manifest.update(changes)
    sections = {
        "alpha_bar": ALPHA_BAR.astype("<f8").tobytes(),
        "means": np.linspace(-0.5, 0.5, classes).repeat(elements).astype("<f8").tobytes(),
        "stds": np.full(classes, 0.2, "<f8").tobytes(),
        "weights": np.full(classes, 1 / classes, "<f8").tobytes(),
    }
    _core.write_plan(str(path), json.dumps(manifest), sections)
    return path


@pytest.fixture
def mixture_plan(tmp_path: Path) -> Path:
    return write_mixture_plan(tmp_path / "mixture.plan")


@pytest.fixture
def engine() -> Iterator[Any]:
    """Class-conditional over `gaussian`: images [1, 4, 4], two classes."""
    import ddpm_rt

    with ddpm_rt.Engine.from_callable(
        gaussian, (1, 4, 4), num_classes=2, defaults={"steps": 10, "scale": 2.0}
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line of this environment from the clone's root."""

    def call(*arguments: str | Path, python: str | None = None, **keywords: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", python] if python is not None else [sys.executable, "-m", "ddpm_rt"]
        return subprocess.run(  # noqa: PLW1510
            [*command, *map(str, arguments)],
            **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120, "check": False, **keywords},
        )

    return call
