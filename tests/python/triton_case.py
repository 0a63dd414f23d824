"""Shared by the Triton tests: on a GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import os

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Triton reads the variable when it is imported: test modules take it from here.
import triton
import triton.language as tl

from ddpm_rt import row as flag
from ddpm_rt.row import ROW

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda", None if INTERPRETED else 0)
ON_BOTH = flag.PUSH | flag.KEEP | flag.CLIP | flag.NO_EVAL | flag.LAST  # what the CPU's kernel executes too
LAYOUTS = ("contiguous", "channels-last")
__all__ = [
    "DEVICE",
    "INTERPRETED",
    "LAYOUTS",
    "ON_BOTH",
    "arrays",
    "bits",
    "lowered",
    "on_device",
    "random_table",
    "tl",
    "triton",
]


def on_device(array: np.ndarray, layout: str = "contiguous", dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy, [n, C, H, W] in the layout asked for."""
    made = torch.tensor(array, device=DEVICE, dtype=dtype)
    return made.contiguous(memory_format=torch.channels_last) if layout == "channels-last" else made


def bits(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.contiguous().cpu().numpy()
    return np.ascontiguousarray(array).view(np.uint32)


def lowered(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """float32 to a network's dtype as the kernel does it. Triton's interpreter cuts bfloat16 off where GPUs round it."""
    if dtype == torch.bfloat16 and INTERPRETED:
        array = (np.ascontiguousarray(array).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return torch.tensor(array).to(dtype)


def random_table(rng: np.random.Generator, flags: int, rows: int = 2, draws: bool = True) -> np.ndarray:
    """Rows with random subsets of `flags` and random weights, a third of them 0; the last has LAST."""
    table = np.zeros(rows, ROW)

    def weights(*shape: int) -> np.ndarray:
        return np.where(rng.random(shape) < 1 / 3, 0, rng.uniform(-2, 2, shape)).astype(np.float32)

    for record in table:
        kept = [1 << i for i in range(13) if flags >> i & 1 and rng.random() < 0.5]
        record["flags"] = sum(bit for bit in kept if bit != flag.LAST)
        record["gs"] = rng.choice([0, 1, rng.uniform(0, 2)])
        record["noise_index"] = rng.integers(2**32)
        record["c_in"] = rng.choice([1, rng.uniform(0.2, 2)])
        record["clip_lo"], record["clip_hi"] = -1, 0.75
        record["log_var_lo"], record["log_var_hi"] = -3, -1
        for name in ("p", "q", "ge", "gm", "ky", "kz"):
            record[name] = weights()
        for name, size in (("wx", 8), ("wy", 7), ("wh", 3)):
            record[name] = weights(size)
        if not draws:
            record["wx"][7] = record["kz"] = 0
        if record["flags"] & flag.NO_EVAL:
            record["q"] = record["wx"][1] = record["wy"][1] = record["wh"][1] = 0
    table["flags"][-1] |= flag.LAST
    return table


def arrays(rng: np.random.Generator, count: int, *shape: int) -> list[np.ndarray]:
    return [rng.uniform(-2, 2, shape).astype(np.float32) for _ in range(count)]
