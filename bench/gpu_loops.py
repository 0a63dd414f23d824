"""The loop around real networks: its tax, the same loop in PyTorch beside it, and how much of the device the network uses."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import ddpm_rt

from .gpu_kernels import peaks
from .gpu_setup import Context, expect, ratios, spread

CLASSES = 10
CONFIGS: dict[str, dict[str, Any]] = {
    "cifar10": {"film": False, "num_classes": CLASSES},  # DDPM's 35.7 M parameters, with labels
    "digits": {
        "image_size": (28, 28), "in_channels": 1, "channels": 40, "channel_mult": (1, 2), "res_blocks": 1, "attention": (1,),
        "heads": 4, "groups": 8, "patch": 2, "num_classes": CLASSES,
    },
}  # fmt: skip
TINY = {
    "image_size": (8, 8), "in_channels": 1, "channels": 16, "channel_mult": (1, 2), "res_blocks": 1, "attention": (), "groups": 4,
    "num_classes": CLASSES,
}  # fmt: skip


def network(ctx: Context, name: str, dtype: Any) -> Any:
    """f(x, t, label) of a shape with random weights (speed does not see them), channels-last."""
    from ddpm_rt.reference.unet import UNet, UNetConfig, timestep_embedding

    torch = ctx.torch
    torch.manual_seed(0)
    unet = UNet(UNetConfig(**(TINY if ctx.is_emulated else CONFIGS[name]))).eval()
    for p in unet.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x: Any, t: Any, label: Any) -> Any:
            u = self.unet
            emb = u.time(timestep_embedding(t, u.cfg.channels).to(dtype)) + u.label(label)
            emb = torch.nn.functional.silu(emb)
            return u.trunk(x, torch.cat([block.emb(emb) for block in u.blocks()], dim=1))

    return Network().to(ctx.at, dtype=dtype, memory_format=torch.channels_last).requires_grad_(False).eval()


def shape_of(net: Any) -> tuple[int, ...]:
    return (net.unet.cfg.in_channels, *net.unet.cfg.image_size)


def opened(ctx: Context, net: Any, batch: int, **more: Any) -> ddpm_rt.Engine:
    defaults = {"sampler": "ddim", "steps": 50, "scale": 3.0, "clip": "rederive"}
    return ddpm_rt.Engine.from_torch(
        net, shape_of(net), num_classes=CLASSES, channels_last=True, max_batch=batch, defaults=defaults, **ctx.engine, **more
    )


def batches(ctx: Context) -> tuple[int, ...]:
    return (1,) if ctx.is_emulated else (1, 16, 256)


def alone(ctx: Context, net: Any, rows: int) -> Callable[[], object]:
    """The network's call by itself, as a graph's replay."""
    torch = ctx.torch
    dtype = next(net.parameters()).dtype
    x = torch.randn(rows, *shape_of(net), device=ctx.at).to(dtype).contiguous(memory_format=torch.channels_last)
    t, label = torch.full((rows,), 500.0, device=ctx.at), torch.ones(rows, dtype=torch.int64, device=ctx.at)
    out = torch.empty_like(x)

    def call() -> None:
        with torch.no_grad():
            out.copy_(net(x, t, label))

    return ctx.graph(call)


def tax(ctx: Context) -> dict[str, Any]:
    """(a tick - its network alone) / its network alone. A tick is the slope of a call's time over its steps, unguided."""
    result = {}
    few, many = (2, 4) if ctx.is_emulated else (50, 150)
    for name in CONFIGS:
        net = network(ctx, name, ctx.torch.float16)
        for batch in batches(ctx):
            if ctx.is_late(20):
                result[f"{name} {batch}"] = {"not_run": "budget"}
                continue
            replay, ticks, networks = alone(ctx, net, batch), [], []
            with opened(ctx, net, batch) as engine:
                given = {"labels": 1, "scale": 1.0, "seed": 0}
                for steps in (few, many):
                    engine.sample(batch, steps=steps, **given)
                for _ in range(ctx.size(7, 1)):
                    short, long = (
                        ctx.host_seconds(lambda s=steps, n=batch, e=engine, g=given: e.sample(n, steps=s, **g), 1) for steps in (few, many)
                    )
                    ticks.append((long - short) / (many - few))
                    networks.append(ctx.seconds(replay, ctx.size(many - few, 2)))
                bucket = [b["bucket"] for b in engine.info()["buckets"]]
            result[f"{name} {batch}"] = {
                "tick_us": spread(ticks, 1e6, 1),
                "network_us": spread(networks, 1e6, 1),
                "tax": spread([t / n - 1 for t, n in zip(ticks, networks, strict=True)]),
                "buckets": bucket,
            }
    return result


def plain_ddim(ctx: Context, net: Callable[..., Any], n: int, shape: tuple[int, ...], steps: int, scale: float) -> np.ndarray:
    """As diffusers writes it: concatenated guidance, the scheduler's scalars on the host, a chain of operators; uint8 at the end."""
    torch = ctx.torch
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = list(reversed(range(0, 1000, 1000 // steps)))[:steps]
    dtype = torch.float16
    generator = torch.Generator(device=ctx.at).manual_seed(0)
    x = torch.randn((n, *shape), device=ctx.at, generator=generator)
    labels = torch.cat([torch.ones(n, dtype=torch.int64, device=ctx.at), torch.full((n,), CLASSES, device=ctx.at)])
    for i, now in enumerate(times):
        both = torch.cat([x, x]).to(dtype).contiguous(memory_format=torch.channels_last)
        t = torch.full((2 * n,), float(now), device=ctx.at)
        cond, uncond = net(both, t, labels).float().chunk(2)
        e = uncond + scale * (cond - uncond)
        a = float(alpha_bar[now])
        b = float(alpha_bar[times[i + 1]]) if i + 1 < len(times) else 1.0
        x0 = ((x - (1 - a) ** 0.5 * e) / a**0.5).clamp(-1, 1)
        e = (x - a**0.5 * x0) / (1 - a) ** 0.5
        x = b**0.5 * x0 + (1 - b) ** 0.5 * e
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def whole(ctx: Context) -> dict[str, Any]:
    """From the call to uint8 on the host, guided: ours beside eager PyTorch and torch.compile with CUDA graphs, same network."""
    torch, result = ctx.torch, {}
    steps = ctx.size(50, 2)
    for name in CONFIGS:
        net = network(ctx, name, torch.float16)
        shape = shape_of(net)
        for batch in batches(ctx):
            if ctx.is_late(30):
                result[f"{name} {batch}"] = {"not_run": "budget"}
                continue
            sides: dict[str, Callable[[], object]] = {}
            with torch.no_grad(), opened(ctx, net, batch) as engine:
                sides["ours"] = lambda batch=batch, engine=engine: engine.sample(batch, labels=1, steps=steps, seed=0)
                plain = functools.partial(plain_ddim, ctx, n=batch, shape=shape, steps=steps, scale=3.0)
                sides["eager"] = functools.partial(plain, net)
                started = time.perf_counter()
                if not ctx.is_emulated and not ctx.is_late(200):
                    compiled = torch.compile(net, mode="reduce-overhead", dynamic=False)
                    sides["compiled"] = functools.partial(plain, compiled)
                for side in list(sides):
                    try:
                        for _ in range(2):
                            sides[side]()
                    except Exception as e:
                        if side != "compiled":
                            raise
                        print(f"  torch.compile: {type(e).__name__}: {str(e)[:200]}", flush=True)
                        del sides[side]
                warm_up = time.perf_counter() - started
                taken: dict[str, list[float]] = {side: [] for side in sides}
                for k in range(ctx.size(7, 1)):
                    for side in list(sides) if k % 2 == 0 else list(reversed(sides)):
                        taken[side].append(ctx.host_seconds(sides[side], 1))
            entry: dict[str, Any] = {f"{side}_images_per_s": spread([batch / t for t in v], 1, 2) for side, v in taken.items()}
            ours = taken.pop("ours")
            entry |= {f"{side}_over_ours": ratios(peer, ours) for side, peer in taken.items()}
            result[f"{name} {batch}"] = entry | {"steps": steps, "warm_up_s": round(warm_up, 1)}
            torch.compiler.reset()
    return result


def mfu(ctx: Context) -> dict[str, Any]:
    """Useful products of the network's call by its time, over the dense products that this device reached in this run."""
    from torch.utils.flop_counter import FlopCounterMode

    torch, result = ctx.torch, {}
    peak = peaks(ctx)["gemm_fp16_tflop_s"]["median"]
    for name in CONFIGS:
        net = network(ctx, name, torch.float16)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            x = torch.zeros(1, *shape_of(net), device=ctx.at, dtype=torch.float16)
            net(x, torch.zeros(1, device=ctx.at), torch.zeros(1, dtype=torch.int64, device=ctx.at))
        flop = counter.get_total_flops()
        for rows in batches(ctx):
            taken = ctx.medians({"network": alone(ctx, net, rows)}, times=ctx.size(20, 1))["network"]
            reached = [flop * rows / t * 1e-12 for t in taken]
            result[f"{name} {rows}"] = {
                "us": spread(taken, 1e6, 1),
                "tflop_s": spread(reached, 1, 2),
                "share_of_gemm": spread(reached, 1 / max(peak, 1e-9), 4),
            }
        result[f"{name} gflop_per_row"] = round(flop * 1e-9, 3)
    return result


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """Networks made meanwhile offer no graph of their own: every tick is launched piece by piece."""
    from ddpm_rt import torch_denoiser

    made = torch_denoiser.TorchNetwork.__init__

    def plain(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.has_capture = False

    torch_denoiser.TorchNetwork.__init__ = plain
    try:
        yield
    finally:
        torch_denoiser.TorchNetwork.__init__ = made


def networks(ctx: Context) -> dict[str, Any]:
    """Networks of PyTorch in the loop: graph and pieces, batch and slot, again and again: the same bits; the shipped plan's self-test."""
    torch, result = ctx.torch, {}
    net = network(ctx, "digits", torch.float16)
    given = {"labels": [1, 2, 3, -1, 5], "seed": 3, "steps": ctx.size(20, 4), "output": "float"}
    with opened(ctx, net, 8, batch_invariant=True) as engine:
        first = np.asarray(engine.sample(5, **given))
        expect(bool(np.isfinite(first).all()), "finite images")
        for _ in range(3):
            expect(np.array_equal(engine.sample(5, **given), first), "the same bits again")
        one = engine.sample(1, **{**given, "labels": 3, "seed": 5})
        expect(np.array_equal(one[0], first[2]), "the same bits alone")
        result["invariance_probe"] = engine.info()["invariance_probe"]
    with without_graphs(), opened(ctx, net, 8, batch_invariant=True) as engine:
        result["graph_is_pieces"] = bool(np.array_equal(engine.sample(5, **given), first))
        expect(result["graph_is_pieces"], "the same bits by graph and by pieces")
    with ddpm_rt.Engine("digits", backend="torch", max_batch=8, cache_dir="", **ctx.engine) as engine:
        images = engine.sample(5, **given)
        info = engine.info()
        expect(info["self_test"]["status"] == "passed", "the plan's self-test", info=info["self_test"])
        result["digits"] = {"precision": info["precision"], "self_test": info["self_test"], "finite": bool(np.isfinite(images).all())}
    return result
