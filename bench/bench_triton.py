"""The Triton kernels on a GPU: bytes per second beside a copy in the same run, and the unfused PyTorch chain. Not yet run.

    python -m pytest bench/bench_triton.py --benchmark-only        with pytest-benchmark
    python -m bench.bench_triton                                   without: the same rows as lines of JSON

Every side is captured into a CUDA graph over so many sets of buffers that each call finds the caches cold.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import ddpm_rt
from ddpm_rt import kernels

HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="torch.cuda.is_available() is False: these rows need a GPU")

COLD_BYTES = 1 << 29  # a rotation of this size has left any cache
STEP_ELEMENTS = 24576 * 3 * 32 * 32  # 75 M
Calls = list[Callable[[], object]]


def captured(calls: Calls) -> Callable[[], None]:
    """One replay runs every call once, without Python between them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def microseconds(replay: Callable[[], None]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    replay()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def rotation(moved: int) -> int:
    return max(2, math.ceil(COLD_BYTES / moved))


def copies(moved: int) -> Calls:
    """torch's copy of as many bytes as a call moves, half read and half written."""
    pairs = [[torch.zeros(max(1, moved // 8), device="cuda") for _ in range(2)] for _ in range(rotation(moved))]
    return [lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs]


def measured(ours: Calls, peers: dict[str, Calls], moved: int, rounds: int = 15) -> dict[str, float]:
    """Medians per call in microseconds, GB/s, and peer / ours, all sides in turn in every round."""
    sides = {"ours": ours, "copy": copies(moved), **peers}
    replays = {name: captured(calls) for name, calls in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds + 2):
        order = list(sides) if k % 2 == 0 else list(reversed(sides))
        for name in order:
            time = microseconds(replays[name]) / len(sides[name])
            if k >= 2:
                times[name].append(time)
    result = {f"{name}_us": round(statistics.median(t), 2) for name, t in times.items()}
    result["ours_gb_s"] = round(moved / statistics.median(times["ours"]) / 1e3, 1)
    for name in ("copy", *peers):
        ratios = sorted(peer / mine for mine, peer in zip(times["ours"], times[name], strict=True))
        result[f"{name}_over_ours"] = round(statistics.median(ratios), 3)
        result[f"{name}_over_ours_range"] = (round(ratios[0], 3), round(ratios[-1], 3))
    return result | {"bytes": moved, "rounds": rounds}


def step_row(
    dtype: torch.dtype, guided: bool, eta: float, last: bool, elements: int = STEP_ELEMENTS
) -> dict[str, object]:
    """The DDIM step with the next input in `dtype`. Bytes: x 4 + an evaluation each + x' 4 + the input."""
    n, table = elements // 3072, ddpm_rt.rows("ddim", 10, eta=eta, clip="rederive")
    row, on_gpu = table[4], kernels.triton.Table(table, "cuda")
    size = dtype.itemsize
    moved = elements * (8 + size * (3 if guided else 2))
    form = torch.channels_last if last else torch.contiguous_format
    sets = []
    for i in range(rotation(moved)):
        x = kernels.triton.noise(i * n, 0, (n, 3, 32, 32), device="cuda").contiguous(memory_format=form)
        nets = [torch.randn_like(x).to(dtype) for _ in range(2 if guided else 1)]
        state = kernels.triton.State(x, input_dtype=dtype)
        state.history = state.anchor = state.x0 = None
        sets.append((x, nets, state, torch.empty_like(x)))
    p, q, wx = float(row["p"]), float(row["q"]), row["wx"].tolist()

    def fused(x, nets, state, out):
        uncond = nets[1] if guided else None
        kernels.triton.step(x, nets[0], on_gpu, eps_uncond=uncond, scale=3.0, seeds=7, index=4, state=state, out=out)

    def chain(x, nets, state, out, z=None):
        e = nets[0].float()
        if guided:
            u = nets[1].float()
            e = u + 3.0 * (e - u)
        x0 = (p * x + q * e).clamp(-1.0, 1.0)
        new = wx[0] * x + wx[1] * e + wx[2] * x0
        if wx[7] != 0:
            new = new + wx[7] * (torch.randn_like(x) if z is None else z)
        out.copy_(new)
        state.input.copy_(new)

    x, nets, state, out = sets[0]
    fused(*sets[0])
    got = out.clone()
    chain(
        *sets[0],
        z=kernels.triton.noise(7, int(row["noise_index"]), x.shape, 1, device="cuda").contiguous(memory_format=form),
    )
    torch.testing.assert_close(got, out, rtol=1e-4, atol=1e-4)
    ours = [lambda s=s: fused(*s) for s in sets]
    return measured(ours, {"chain": [lambda s=s: chain(*s) for s in sets]}, moved)


def norm_row(n: int, channels: int, side: int, dtype: torch.dtype) -> dict[str, object]:
    """Bytes: x twice and the result once, though a small x is read from the cache the second time."""
    moved = 3 * n * channels * side * side * dtype.itemsize
    weight, bias = torch.randn(2, channels, device="cuda", dtype=dtype)
    sets = []
    for _ in range(rotation(moved)):
        x = torch.randn(n, channels, side, side, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
        sets.append((x, torch.empty_like(x)))

    def chain(x):
        return torch.nn.functional.silu(torch.nn.functional.group_norm(x, 32, weight, bias))

    x, out = sets[0]
    kernels.triton.groupnorm_silu(x, 32, weight, bias, out=out)
    torch.testing.assert_close(out, chain(x), rtol=2e-2, atol=2e-2)
    ours = [lambda s=s: kernels.triton.groupnorm_silu(s[0], 32, weight, bias, out=s[1]) for s in sets]
    return measured(ours, {"chain": [lambda s=s: chain(s[0]) for s in sets]}, moved)


def noise_row() -> dict[str, object]:
    """Normals alone, 4 bytes each, beside torch.randn."""
    shape, moved = (STEP_ELEMENTS // 3072, 3, 32, 32), 4 * STEP_ELEMENTS
    ours: Calls = [lambda: kernels.triton.noise(7, 0, shape, device="cuda")] * 2
    return measured(ours, {"randn": [lambda: torch.randn(shape, device="cuda")] * 2}, moved)


HALF, BRAIN = torch.float16, torch.bfloat16
ROWS: dict[str, Callable[[], dict[str, object]]] = {
    "step fp16 guided": lambda: step_row(HALF, True, 0.0, False),
    "step fp16 guided noise": lambda: step_row(HALF, True, 1.0, False),
    "step fp16 unguided noise": lambda: step_row(HALF, False, 1.0, False),
    "step bf16 guided noise": lambda: step_row(BRAIN, True, 1.0, False),
    "step fp32 guided noise": lambda: step_row(torch.float32, True, 1.0, False),
    "step fp16 guided noise channels-last": lambda: step_row(HALF, True, 1.0, True),
    "step fp16 guided noise of 16 images": lambda: step_row(HALF, True, 1.0, False, 16 * 3072),
    "noise": noise_row,
    **{
        f"norm {name} {n}x{channels}x{side}x{side}": lambda n=n, c=channels, s=side, d=dtype: norm_row(n, c, s, d)
        for name, dtype in (("fp16", HALF), ("bf16", BRAIN))
        for n, channels, side in ((1, 128, 32), (1, 320, 64), (16, 256, 16), (256, 128, 32))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(ROWS))
def test_triton_row(benchmark, name: str) -> None:
    result = benchmark.pedantic(ROWS[name], rounds=1)
    assert result["ours_us"] > 0
    benchmark.extra_info.update(result)


if __name__ == "__main__":
    if not HAS_GPU:
        raise SystemExit("torch.cuda.is_available() is False: these rows need a GPU")
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}))
    for name, row in ROWS.items():
        print(json.dumps({"row": name, **row()}), flush=True)
