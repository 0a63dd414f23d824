"""Files of torch.save, read as tensors and plain values only (weights_only)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PlanError


def load(path: Path) -> Mapping[str, Any]:
    """The mapping in the file. PlanError where it holds anything but tensors and plain values, or is damaged."""
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = next(
            (line for line in str(e).splitlines() if "Unsupported" in line or "GLOBAL" in line), str(e).splitlines()[0]
        )
        raise PlanError(
            f"{path}: expected tensors and plain values only, as nothing in a file is executed: {reason[:300]}"
        ) from e
    except Exception as e:  # zip, storage and end-of-file errors of many classes
        raise PlanError(
            f"{path}: expected a file of torch.save: {(str(e).splitlines() or [type(e).__name__])[0][:300]}"
        ) from e
    if not isinstance(found, Mapping):
        raise PlanError(f"{path}: expected a mapping of names and tensors, got {type(found).__name__}")
    return found


def kind_of(path: Path) -> str:
    """PlanError, naming what is in it, where no reader knows it."""
    state = load(path)
    if "input_blocks.0.0.weight" in state:
        return "guided-diffusion"
    if any(k in state for k in ("model", "ema")) or "model.init_conv.weight" in state:
        return "denoising-diffusion-pytorch"
    raise PlanError(
        f"{path}: expected the keys of guided-diffusion (input_blocks.0.0.weight) or denoising-diffusion-pytorch (model), got "
        f"{', '.join(list(map(str, state))[:5]) or 'none'}"
    )
