"""Speed of the parts: copies and products (what the device can do), the step, GroupNorm + SiLU. Correctness is gpu_checks.py's."""

from __future__ import annotations

import statistics
from typing import Any

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.errors import DdpmError

from .gpu_checks import near
from .gpu_lanes import COND, UNCOND, LaneCase
from .gpu_setup import Context, expect, ratios, spread

GIGA = 1e-9


def peaks(ctx: Context) -> dict[str, Any]:
    """Copy bandwidth (read and written bytes) and dense products, the yardsticks of all that follows."""
    torch = ctx.torch
    bytes_each = ctx.size(1 << 30, 1 << 12)
    source, to = (torch.zeros(bytes_each, dtype=torch.uint8, device=ctx.at) for _ in range(2))
    taken = ctx.medians({"copy": lambda: to.copy_(source)})["copy"]
    result: dict[str, Any] = {"copy_gb_s": spread([2 * bytes_each / t for t in taken], GIGA, 1)}
    n = ctx.size(8192, 16)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device=ctx.at).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        taken = ctx.medians({"gemm": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)})["gemm"]
        result[f"gemm_{name}_tflop_s"] = spread([2 * n**3 / t for t in taken], 1e-12, 1)
    return result


def step_bytes(case: LaneCase) -> int:
    """kernels/step_gpu.h: x read and written, each evaluation and each next input once."""
    size = case.out_list.element_size()
    return case.count * (8 * case.n) + len(case.places) * 2 * size * case.n


def step(ctx: Context) -> dict[str, Any]:
    """DDIM's row over at least 64 M elements, so that every pass finds the cache cold; peers do the same from the same tensors."""
    elements, result = ctx.size(64 << 20, 1 << 11), {}
    shapes = {"3x32x32": (3, 1024), "4x64x64": (4, 4096)}
    if ctx.is_emulated:
        shapes = {"3x4x4": (3, 16)}
    for shape, (channels, pixels) in shapes.items():
        for dtype in ("fp32", "fp16", "bf16"):
            for nhwc in (False, True):
                for guided in (False, True):
                    name = f"{shape} {dtype} {'NHWC' if nhwc else 'NCHW'} {'guided' if guided else 'plain'}"
                    count = min(65535, -(-elements // (channels * pixels)))
                    result[name] = one_step(ctx, channels, pixels, count, dtype, nhwc, guided)
    return result


def one_step(ctx: Context, channels: int, pixels: int, count: int, dtype: str, nhwc: bool, guided: bool) -> dict[str, Any]:
    torch = ctx.torch
    given = {"count": count, "channels": channels, "pixels": pixels, "dtype": dtype, "nhwc": nhwc, "registers": False}
    given["roles"] = (COND, UNCOND) if guided else (COND,)
    tables = {eta: ddpm_rt.rows("ddim", 10, eta=eta, clip="rederive")[4:6] for eta in (0.0, 1.0)}
    cases = {eta: LaneCase(ctx, rows, fill=False, **given) for eta, rows in tables.items()}
    quiet, noisy = cases[0.0], cases[1.0]
    moved = step_bytes(quiet)
    half = torch.zeros(moved // 8, device=ctx.at)
    other = torch.empty_like(half)
    row = tables[0.0][0]
    p, q, weights = float(row["p"]), float(row["q"]), [float(w) for w in row["wx"]]
    # The peer keeps its own state, in the order of the lists, and the next input is a tensor of its own too.
    state = torch.zeros_like(quiet.out_list, dtype=torch.float32)[:count]
    out, inputs = torch.empty_like(state), torch.empty_like(quiet.out_list)
    evaluations = quiet.out_list.reshape(count, -1, *quiet.out_list.shape[1:]) if guided else None

    def chain() -> None:
        if guided:
            cond, uncond = evaluations[:, 0].float(), evaluations[:, 1].float()
            e = uncond + 3.0 * (cond - uncond)
        else:
            e = quiet.out_list.float()
        x0 = (p * state + q * e).clamp(-1.0, 1.0)
        new = weights[0] * state + weights[1] * e + weights[2] * x0
        out.copy_(new)
        inputs[:count].copy_(new)
        if guided:
            inputs[count:].copy_(new)

    sides = {
        "step": lambda: quiet.step(quiet.needs()),
        "noise": lambda: noisy.step(noisy.needs()),
        "copy": lambda: other.copy_(half),
        "eager": chain,
    }
    # One compilation takes seconds; these rows say what it is worth.
    is_worth_it = channels == 3 and dtype != "bf16" and not nhwc and not ctx.is_late(60)
    compiled = compiled_or_none(ctx, chain) if is_worth_it else None
    if compiled is not None:
        sides["compiled"] = compiled
    taken = ctx.medians(sides)
    result = {
        "elements": count * channels * pixels,
        "bytes_per_element": moved / (count * channels * pixels),
        "gb_s": round(moved / statistics.median(taken["step"]) * GIGA, 1),
        "share_of_copy": ratios(taken["copy"], taken["step"]),
        "noise_over_quiet": ratios(taken["noise"], taken["step"]),
        "eager_over_ours": ratios(taken["eager"], taken["step"]),
    }
    if compiled is not None:
        result["compiled_over_ours"] = ratios(taken["compiled"], taken["step"])
    return result


def compiled_or_none(ctx: Context, work: Any) -> Any:
    """torch.compile of it, warmed up; None where compiling is not to be had, and on the emulated device."""
    if ctx.is_emulated:
        return None
    torch = ctx.torch
    made = torch.compile(work, dynamic=False)
    try:
        with ctx.torch_stream(), torch.no_grad():
            for _ in range(3):
                made()
        ctx.wait()
    except Exception as e:  # noqa: BLE001  whatever the compiler meets on a machine, the report goes on without this side
        print(f"  torch.compile: {type(e).__name__}: {str(e)[:200]}", flush=True)
        return None
    return made


def groupnorm(ctx: Context) -> dict[str, Any]:
    """GroupNorm + SiLU over channels-last memory at the widths of DDPM's network: Triton's kernel against PyTorch's two operators."""
    torch, result = ctx.torch, {}
    F = torch.nn.functional
    shapes = [(1, 128, 32), (16, 128, 32), (256, 128, 32), (256, 256, 16), (256, 512, 8)]
    for n, channels, side in [(2, 32, 4)] if ctx.is_emulated else shapes:
        for dtype in (torch.float16, torch.bfloat16):
            x = torch.randn(n, channels, side, side, device=ctx.at).to(dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = torch.randn(channels, device=ctx.at), torch.randn(channels, device=ctx.at)
            low = [t.to(dtype) for t in (weight, bias)]
            out = torch.empty_like(x)

            def eager(x: Any = x, low: Any = low) -> Any:
                return F.silu(F.group_norm(x, 32, *low, 1e-5))

            name = f"{n}x{channels}x{side}x{side} {str(dtype).removeprefix('torch.')}"
            exact = F.silu(F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5))
            try:
                kernels.triton.groupnorm_silu(x, 32, weight, bias, out=out)
            except DdpmError as e:  # no Triton, or no GPU for it
                result[name] = {"not_run": str(e)[:200]}
                continue
            expect(near(out.double().cpu().numpy(), exact.cpu().numpy(), 8e-3), "GroupNorm + SiLU as in float64", shape=name)
            moved = 2 * x.numel() * x.element_size()
            half = torch.zeros(moved // 8, device=ctx.at)
            other = torch.empty_like(half)
            sides = {
                "ours": lambda x=x, w=weight, b=bias, out=out: kernels.triton.groupnorm_silu(x, 32, w, b, out=out),
                "eager": eager,
                "copy": lambda half=half, other=other: other.copy_(half),
            }
            compiled = compiled_or_none(ctx, eager)
            if compiled is not None:
                sides["compiled"] = compiled
            graphs = {side: ctx.graph(work) for side, work in sides.items()}  # small shapes: launches would be all that shows
            taken = ctx.medians(graphs, times=ctx.size(20, 1))
            result[name] = {
                "us": spread(taken["ours"], 1e6, 2),
                "share_of_copy": ratios(taken["copy"], taken["ours"]),
                "eager_over_ours": ratios(taken["eager"], taken["ours"]),
            }
            if compiled is not None:
                result[name]["compiled_over_ours"] = ratios(taken["compiled"], taken["ours"])
    return result


def graph_forms(ctx: Context) -> dict[str, Any]:
    """What a tick costs around its network: pieces, one graph a tick, eight ticks in one graph; and what making a graph costs."""
    result = {}
    table = ddpm_rt.rows("ddim", 1000)
    for count in (1, 16, 256) if not ctx.is_emulated else (1,):
        given = {"count": count, "channels": 3, "pixels": ctx.size(1024, 16), "dtype": "fp16", "roles": (COND, UNCOND), "registers": False}
        case = LaneCase(ctx, table, **given)
        needs = case.needs()

        def tick(case: LaneCase = case, needs: int = needs) -> None:
            case.step(needs)
            case.advance()

        def eight(tick: Any = tick) -> None:
            for _ in range(8):
                tick()

        made = {}
        for name, work in (("graph", tick), ("graph_of_8", eight)):
            made[name] = ctx.api.captured(ctx.stream, work)

        def launch(name: str, times: int, made: dict[str, int] = made) -> None:
            for _ in range(times):
                ctx.api.check(ctx.api.launch_graph(made[name], ctx.stream))

        sides = {"pieces": eight, "graph": lambda f=launch: f("graph", 8), "graph_of_8": lambda f=launch: f("graph_of_8", 1)}
        taken = {name: [] for name in sides}
        for name in [*sides, *reversed(sides)] * (1 if ctx.is_emulated else 8):
            case.install()
            taken[name].append(ctx.seconds(sides[name], is_queued=False) / 8)
        result[f"batch {count}"] = {f"{name}_us_per_tick": spread(t, 1e6, 2) for name, t in taken.items()}
        start = ctx.host_seconds(lambda case=case, tick=tick: ctx.api.destroy_exec(ctx.api.captured(ctx.stream, tick)))
        result[f"batch {count}"]["capture_and_instantiate_us"] = round(start * 1e6, 1)
        for exec_ in made.values():
            ctx.api.destroy_exec(exec_)
    return result
