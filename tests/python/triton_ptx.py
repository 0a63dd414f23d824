"""Compiles what calls of the public Triton functions launch, for GPUs that need not be there; prints what came out.

A program of its own, because Triton compiles or interprets in one process, not both. Run by test_triton_ptx.py.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt import row as flag
from ddpm_rt.kernels._triton import groupnorm_silu_triton, philox_triton, step_triton

T = kernels.triton
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
LAUNCHES: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []


class Recorder:
    """Stands in for a kernel; the front then takes it for an interpreted one and lets CPU tensors pass."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert len(grid) == 1 and grid[0] > 0
        return self.launch

    def launch(self, *args: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any) -> None:
        values = dict(zip(self.kernel.arg_names, args)) | constants
        LAUNCHES.append((self.kernel, values, {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}))


def compiled(kernel: Any, values: dict[str, Any], options: dict[str, Any], arch: int) -> Any:
    """As Triton specialises these arguments at a launch: 1 is a constant, multiples of 16 are known to be such."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        is_free = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not is_free):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(number, int) and number % 16 == 0 and not is_free:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def described(kernel: Any, made: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage, sass = (
            subprocess.run([tool, what, str(cubin)], capture_output=True, text=True, check=True).stdout
            for what in ("-res-usage", "-sass")
        )
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    return {
        "kernel": kernel.__name__,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": made.metadata.shared,
        "ptx": collections.Counter(re.findall(r"^\s+(?:@!?%\w+ )?([a-z][\w.:]+)", made.asm["ptx"], re.MULTILINE)),
        "sass": collections.Counter(instructions),
    }


def noisy_table(flags: int = 0, steps: int = 4) -> Any:
    table = ddpm_rt.rows("ddpm", steps)
    table["flags"][:-1] |= flags
    table["ge"] = table["gm"] = table["ky"] = table["kz"] = 0.5
    if flags & flag.PUSH:
        table["wx"][:, 3:6] = 0.1
    if flags & flag.KEEP:
        table["wy"] = 0.1
        table["wx"][:, 6] = 0.1
    return table


def step(
    shape: tuple[int, ...] = (3, 32, 32), dtype: torch.dtype = torch.float16, *, table: Any = None, last: bool = False,
    guided: bool = True, copies: int = 1, full: bool = False, per_sample: bool = False, memory: bool = False,
) -> None:  # fmt: skip
    def zeros(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        made = torch.zeros(2, channels, *shape[1:], dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last) if last else made

    halves = 2 if full else 1
    x = zeros(shape[0])
    state = T.State(x, input_dtype=dtype, copies=copies)
    if not full and not memory:
        state.history = state.anchor = state.x0 = None
    elementwise = flag.PUSH | flag.KEEP | flag.LEARNED_RANGE | flag.GRAD | flag.BLEND
    nets = [zeros(halves * shape[0], dtype) for _ in range(3)]
    more = dict(
        zip(("eps_guide", "grad", "mask", "known"), [nets[2], zeros(shape[0]), zeros(shape[0]), zeros(shape[0])])
    )
    per = {"scale": torch.ones(2), "seeds": torch.zeros(2, dtype=torch.int64)}
    per["index"] = torch.zeros(2, dtype=torch.int32) if per_sample else 0
    if table is None:
        table = noisy_table(elementwise if full else flag.PUSH | flag.KEEP if memory else 0)
    T.step(
        x, nets[0], table, eps_uncond=nets[1] if guided else None, state=state,
        **(per if per_sample else {"seeds": 7, "scale": 3.0}), **(more if full else {}),
    )  # fmt: skip


def combine(dtype: torch.dtype) -> None:
    T.cfg_combine(torch.zeros(2, 3072, dtype=dtype), torch.zeros(2, 3072, dtype=dtype), 3.0)


def norm(dtype: torch.dtype, channels: int = 128, groups: int = 32, film: bool = True) -> None:
    x = torch.zeros(2, channels, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
    one = torch.zeros(2, channels) if film else None
    T.groupnorm_silu(x, groups, torch.zeros(channels), torch.zeros(channels), scale=one, shift=one)


QUIET = {"table": ddpm_rt.rows("ddim", 4, eta=0.0)}
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
VARIANTS: dict[str, Callable[[], object]] = {
    "step flat fp32": lambda: step(dtype=F32),
    "step flat fp16": lambda: step(),
    "step flat bf16": lambda: step(dtype=BF16),
    "step flat fp16 two inputs": lambda: step(copies=2),
    "step flat fp16 unguided": lambda: step(guided=False),
    "step flat fp16 quiet": lambda: step(**QUIET),
    "step flat bf16 quiet": lambda: step(dtype=BF16, **QUIET),
    "step flat fp16 by sample": lambda: step(per_sample=True),
    "step flat fp16 memory": lambda: step(memory=True),
    "step flat fp32 full": lambda: step(dtype=F32, full=True, per_sample=True),
    "step flat fp16 full": lambda: step(full=True, per_sample=True),
    "step tail fp16": lambda: step((3, 5, 5)),
    "step last fp16 3 channels": lambda: step(last=True),
    "step last fp16 4 channels": lambda: step((4, 64, 64), last=True),
    "step last bf16 16 channels": lambda: step((16, 64, 64), BF16, last=True),
    "step last fp32 odd": lambda: step((3, 5, 5), F32, last=True),
    "step last fp16 full": lambda: step(last=True, full=True, per_sample=True),
    "noise": lambda: T.noise(7, 0, (2, 3, 32, 32), device="cpu"),
    "combine fp32 quiet": lambda: combine(F32),
    "combine fp16 quiet": lambda: combine(F16),
    "combine bf16 quiet": lambda: combine(BF16),
    "norm fp32": lambda: norm(F32),
    "norm fp16": lambda: norm(F16),
    "norm bf16": lambda: norm(BF16),
    "norm fp16 without film": lambda: norm(F16, film=False),
    "norm fp16 groups of 10": lambda: norm(F16, 320),
}
EVERYWHERE = ("step flat fp16", "step flat fp16 quiet", "norm bf16")  # for all architectures that the project names


def main() -> None:
    for module, names in (
        (step_triton, ("step_kernel", "cfg_combine_kernel")),
        (philox_triton, ("normals_kernel",)),
        (groupnorm_silu_triton, ("statistics_kernel", "groupnorm_silu_kernel")),
    ):
        for name in names:
            setattr(module, name, Recorder(getattr(module, name)))
    found: dict[str, list[dict[str, Any]]] = {}
    for name, call in VARIANTS.items():
        LAUNCHES.clear()
        call()
        for arch in (90, 80, 100, 120) if name in EVERYWHERE else (90,):
            key = name if arch == 90 else f"{name} sm_{arch}"
            found[key] = [described(launch[0], compiled(*launch, arch)) for launch in LAUNCHES]
    json.dump({"triton": triton.__version__, "launches": found}, sys.stdout)


if __name__ == "__main__":
    main()
