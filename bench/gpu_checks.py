"""Correctness before speed: every kernel variant against float64, poisoned outputs, replays, batches; the loop against the reference."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import ddpm_rt
from ddpm_rt import row as r

from .gpu_lanes import COND, GUIDE, UNCOND, LaneCase
from .gpu_setup import Context, expect

ROLES = [(COND,), (UNCOND,), (COND, UNCOND), (COND, UNCOND, GUIDE)]
FLAGS = [
    0, r.CLIP, r.PUSH, r.KEEP, r.PUSH | r.KEEP | r.CLIP, r.THRESHOLD, r.RESCALE, r.LEARNED_VAR, r.LEARNED_RANGE, r.GRAD, r.BLEND,
    r.NORM, r.VLB, r.NO_EVAL, r.LAST, r.LEARNED_RANGE | r.GRAD | r.VLB, r.RESCALE | r.THRESHOLD | r.PUSH, r.BLEND | r.KEEP | r.CLIP,
]  # fmt: skip
ROUNDING = {"fp32": 2e-6, "fp16": 1e-3, "bf16": 8e-3}


def random_rows(rng: np.random.Generator, flags: int) -> np.ndarray:
    """A row and, but with LAST, the next one's c_in."""
    rows = np.zeros(1 if flags & r.LAST else 2, r.ROW)
    first = rows[0]
    first["flags"], first["gs"], first["noise_index"] = flags, rng.uniform(0.5, 1), rng.integers(1, 100)
    first["p"], first["q"] = rng.uniform(0.5, 1.5), 0 if flags & r.NO_EVAL else rng.uniform(-1, 1)
    first["clip_lo"], first["clip_hi"], first["threshold_p"], first["threshold_cap"] = -1, 1, rng.uniform(0.5, 1), 3
    first["phi"], first["ge"], first["gm"], first["snr"] = 0.7, 0.3, 0.2, 0.16
    first["log_var_lo"], first["log_var_hi"], first["ky"], first["kz"] = -2, -1, 0.8, 0.6
    first["wx"], first["wy"], first["wh"] = rng.uniform(-1, 1, 8), rng.uniform(-1, 1, 7), rng.uniform(-1, 1, 3)
    if flags & r.NO_EVAL:
        for weights in ("wx", "wy", "wh"):
            first[weights][1] = 0
    first["vx"], first["v0"], first["lq"], first["lp"] = 0.3, 0.7, -2, -1.9
    rows[-1]["c_in"] = rng.uniform(0.5, 1) if len(rows) > 1 else 0
    return rows


def near(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(got - wanted).max() <= tolerance * (1 + np.abs(wanted).max()))


def kernels(ctx: Context) -> dict[str, Any]:
    """Fresh random inputs each run; the seed is in the result."""
    seed, checked, worst = secrets.randbits(32), 0, 0.0
    rng = np.random.default_rng(seed)
    shapes = [(3, 16), (4, 9)] if ctx.is_emulated else [(3, 1024), (4, 4096), (1, 784), (5, 33), (3, 16384)]
    for channels, pixels in shapes:
        for dtype, rounding in ROUNDING.items():
            for nhwc in (False, True):
                for flags in FLAGS:
                    rows = random_rows(rng, flags)
                    count = 2 if ctx.is_emulated else 5
                    roles = [() if flags & r.NO_EVAL else ROLES[rng.integers(4)] for _ in range(count)]
                    given = {"count": count, "channels": channels, "pixels": pixels, "dtype": dtype, "nhwc": nhwc, "roles": roles}
                    given["seed"] = int(rng.integers(2**31))
                    case = LaneCase(ctx, rows, **given)
                    case.step(case.needs())
                    worst = max(worst, compare(case, f"seed {seed}, flags {flags:#x}, {given}", rounding))
                    bits = case.result()
                    for change in ({}, {"order": rng.permutation(count)}):  # again, with more needs; and in other slots
                        other = LaneCase(ctx, rows, **given, **change)
                        other.step()
                        for name, value in other.result().items():
                            same = np.array_equal(value, bits[name], equal_nan=True)
                            expect(same, "the same bits again, and in other slots", of=name, seed=seed, flags=hex(flags), given=given)
                    checked += count
    return {"seed": seed, "samples_checked": checked, "variants": len(FLAGS) * 6 * len(shapes), "worst_relative_error": float(f"{worst:.3g}")}


def compare(case: LaneCase, where: str, rounding: float) -> float:
    got, worst = case.result(), 0.0
    flags, n = int(case.rows["flags"][0]), case.n
    expect(np.isnan(got["x"][:, n:]).all(), "the padding of a register untouched", where=where)
    expect((got["status"] == 0).all(), "no status bit", where=where, status=got["status"])
    written = set()
    for sample in range(case.count):
        wanted = case.expected(sample)
        pairs = {"x": (got["x"][sample, :n], wanted.state.x), "preview": (got["preview"][sample, :n], wanted.x0)}
        if flags & r.KEEP:
            pairs["anchor"] = (got["anchor"][sample, :n], wanted.state.anchor)
        if flags & r.PUSH:
            pairs["h2"] = (got["h2"][sample, :n], wanted.state.history[0])  # the ring's oldest takes the newest
        if flags & r.VLB and not flags & r.NO_EVAL:
            pairs["kl"] = (got["kl"][sample, :1], np.array([wanted.kl]))
        for role in case.roles[sample]:
            if wanted.net_input is not None:
                place = case.places[sample, role]
                written.add(place)
                value = got["in"][place]
                expect(near(value, wanted.net_input, rounding + 1e-4), "the next input", where=where, sample=sample)
        for name, (value, reference) in pairs.items():
            reference = reference.reshape(value.shape)
            expect(near(value, reference, 1e-4), f"{name} as in float64", where=where, sample=sample)
            worst = max(worst, float((np.abs(value - reference) / (1 + np.abs(reference).max())).max()))
    free = [p for p in range(len(got["in"])) if p not in written]
    expect(np.isnan(got["in"][free]).all(), "inputs of no place untouched", where=where)
    return worst


def replays(ctx: Context) -> dict[str, Any]:
    """A graph of eight ticks against the same launches piece by piece: the same bits; and again."""
    table = ddpm_rt.rows("dpmpp_2m", 9)
    given = {"count": ctx.size(64, 2), "channels": 3, "pixels": ctx.size(1024, 16), "dtype": "fp16", "roles": (COND, UNCOND)}

    def run(is_graph: bool) -> dict[str, np.ndarray]:
        case = LaneCase(ctx, table, **given)

        def ticks() -> None:
            for _ in range(8):
                case.step(case.needs() | 5)
                case.advance()

        if is_graph:
            exec_ = ctx.api.captured(ctx.stream, ticks)
            ctx.api.check(ctx.api.launch_graph(exec_, ctx.stream))
            ctx.wait()
            ctx.api.destroy_exec(exec_)
        else:
            ticks()
        return case.result()

    first = run(False)
    for is_graph in (True, True, False):
        for name, value in run(is_graph).items():
            expect(np.array_equal(value, first[name], equal_nan=True), "the same bits by graph and by pieces", of=name)
    expect(np.isfinite(first["x"][:, : 3 * given["pixels"]]).all(), "finite states")
    return {"ticks": 8, "runs": 4}


def mixture(path: Path, shape: tuple[int, ...], classes: int = 2) -> Path:
    from ddpm_rt import _core

    elements = int(np.prod(shape))
    manifest = {
        "format": 1, "name": "mixture", "requires": [], "row_version": 1, "rng_version": 1,
        "networks": {"m": {"kind": "gaussian_mixture", "means": "means", "stds": "stds", "weights": "weights", "K": classes}},
        "stages": [{"kind": "diffusion", "network": "m", "inputs": {"x": "state", "t": "time", "label": "request"}}],
        "conditions": {"label": {"role": "class", "classes": classes, "null": classes}}, "sample": {"shape": list(shape)},
        "schedule": {"section": "alpha_bar", "T": 1000}, "prediction": "eps",
        "defaults": {"sampler": "ddim", "steps": 20, "scale": 2.0, "clip": "none"},
    }  # fmt: skip
    arrays = {
        "alpha_bar": np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), "stds": np.full(classes, 0.2), "weights": np.full(classes, 1 / classes),
        "means": np.linspace(-0.5, 0.5, classes).repeat(elements),
    }  # fmt: skip
    _core.write_plan(str(path), json.dumps(manifest), {k: v.astype("<f8").tobytes() for k, v in arrays.items()})
    return path


def loop(ctx: Context) -> dict[str, Any]:
    """The analytic denoiser on the device: against the loops of ddpm_rt.reference, in other batches, and again."""
    from ddpm_rt.reference import denoise, levels, run

    torch, shape, steps = ctx.torch, (3, 4, 4), 12
    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, ddpm_rt.Engine(mixture(Path(folder) / "m.plan", shape), **ctx.engine) as engine:
        model = levels.Discrete(torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))))
        for sampler in ("ddim", "ddpm", "dpmpp_2m", "heun", "unipc", "euler_ancestral"):
            options = {"sampler": sampler, "steps": steps, "scale": 1.0, "labels": 1, "output": "float", "clip": "none"}
            got = engine.sample(5, seed=70, **options)
            table = ddpm_rt.rows(sampler, steps, clip="none")

            def eps(x: Any, t: float) -> Any:
                level = model.at(t)
                return level.sigma * (x - level.alpha * 0.5) / (level.alpha**2 * 0.04 + level.sigma**2)

            for i in range(2):
                unit = torch.from_numpy(ddpm_rt.noise(70 + i, 0, shape)).double()
                def draw(k: int, i: int = i, table: Any = table) -> Any:
                    return torch.from_numpy(ddpm_rt.noise(70 + i, int(table[k]["noise_index"]), shape, stream=1)).double()

                wanted = run.sample(sampler, denoise.Denoiser(eps, model), steps, unit, draw).numpy()
                error = float(np.abs(np.asarray(got[i]) - wanted).max())
                worst[sampler] = max(worst.get(sampler, 0.0), float(f"{error:.3g}"))
                expect(error < 2e-4, "the loop as in float64", sampler=sampler, error=error)
            again = engine.sample(5, seed=70, **options)
            expect(np.array_equal(again, got), "the same bits again", sampler=sampler)
            alone = engine.sample(1, seed=73, **options)
            expect(np.array_equal(alone[0], got[3]), "the same bits alone", sampler=sampler)
    return {"worst_error": worst}


def programs(ctx: Context) -> dict[str, Any]:
    """The C++ programs of the build: the CPU's bytes from every kernel, and the device layer."""
    if ctx.build is None:
        return {"not_run": "no --build folder"}
    found = {}
    for name in ("test_step_cuda", "test_device"):
        path = ctx.build / name
        if not path.exists():
            found[name] = "not built"
            continue
        done = subprocess.run([str(path)], capture_output=True, text=True, timeout=300, check=False)
        found[name] = "skipped: no GPU" if done.returncode == 77 else done.stdout.strip().splitlines()[-1][:400]
        expect(done.returncode in (0, 77), f"{name} passes", output=(done.stdout + done.stderr)[-1500:])
    return found
