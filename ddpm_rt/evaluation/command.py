"""`ddpm-rt evaluate`: samples of a digits model, judged."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays
from ..errors import OptionError

DESCRIPTION = "Judge the samples of a plan of digits. Without --label-accuracy, --fid or --bits-per-dim, the first two."
EXAMPLES = """examples:
  ddpm-rt evaluate digits --label-accuracy --n 1000 --scale 3     are 1,000 samples the digits they were asked to be?
  ddpm-rt evaluate digits --fid --n-fid 5000 --fid-scale 1        FID@digits, KID@digits, precision, recall
  ddpm-rt evaluate digits --bits-per-dim --n-bits 100             how likely are held-out digits? (docs/likelihood.md)
  ddpm-rt evaluate digits --json result.json --grid samples.png   both, kept; docs/model_digits.md is made of it:
  python -m ddpm_rt.evaluation.card result.json -o docs/model_digits.md

The judge is a small CNN trained on 4,500 real MNIST digits (a few minutes, once; kept in the user's cache folder).
FID@digits is a distance in its features: compare it with nothing but FID@digits of the same judge.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a plan of MNIST digits, or the name of a shipped one (digits)")
    parser.add_argument("--label-accuracy", action="store_true", help="share of samples that show the digit asked for")
    parser.add_argument("--n", type=int, default=1000, help="samples for it, digits in turn, seeds from --seed on")
    parser.add_argument("--scale", type=float, help="guidance scale; default: the plan's")
    parser.add_argument("--fid", action="store_true", help="FID@digits, KID@digits, precision, recall, memorisation")
    parser.add_argument("--n-fid", type=int, default=5000, help="samples for it (default 5000)")
    parser.add_argument("--fid-scale", type=float, help="guidance scale for it; default: --scale")
    parser.add_argument(
        "--bits-per-dim", action="store_true", help="variational bound and flow likelihood of held-out digits; no judge"
    )
    parser.add_argument("--n-bits", type=int, default=100, help="digits for it, 2 to 500 (default 100)")
    parser.add_argument("--steps", type=int, help="default: the plan's; with --bits-per-dim: of the bound, default T")
    parser.add_argument("--sampler", help="default: the plan's")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample (default 0)")
    parser.add_argument(
        "--judge-epochs", type=int, default=None, metavar="N", help="of the judge's training (default 25)"
    )
    parser.add_argument("--json", metavar="FILE", help="write every figure and setting there")
    parser.add_argument("--grid", metavar="FILE.png", help="write the first 100 samples there, as they come")


def main(args: argparse.Namespace) -> int:
    from .. import plan, plan_files
    from ..engine import Engine
    from ..images import atomic_file, check_writable

    both = not (args.label_accuracy or args.fid or args.bits_per_dim)
    needs_judge = both or args.label_accuracy or args.fid
    for name, least in (("n", 1), ("n_fid", 100), ("n_bits", 2)):
        if getattr(args, name) < least:
            raise OptionError(f"{name.replace('_', '-')}: expected at least {least}, got {getattr(args, name)}")
    if args.grid and not needs_judge:
        raise OptionError("grid: expected it unset with --bits-per-dim alone, which samples nothing")
    for path in filter(None, (args.json, args.grid)):
        check_writable(path)
    path = plan_files.find(args.plan)
    manifest = plan.inspect(path)["manifest"]
    classes = (manifest.get("conditions", {}).get("label") or {}).get("classes", 0)
    _check(manifest, classes, args.label_accuracy or both)
    result: dict[str, Any] = {"plan": _identity(path, manifest)}
    if needs_judge:
        from . import digits, judge

        arbiter = judge.load_or_train(args.judge_epochs or judge.EPOCHS, progress=_progress())
        result["judge"] = _describe(arbiter)
    if args.bits_per_dim:
        from .bits import held_out_bits

        with Engine(path, precision="fp32") as engine:
            result["engine"] = _of_engine(engine)
            result["bits_per_dim"] = held_out_bits(engine, args.n_bits, args.seed, args.steps, bool(classes))
    if needs_judge:
        with Engine(path) as engine:
            sampler = _Sampler(engine, args, bool(classes))
            result["engine"] = _of_engine(engine)
            if args.label_accuracy or both:
                samples, settings = sampler(args.n, args.scale)
                result["label_accuracy"] = digits.label_accuracy(arbiter, samples, sampler.labels(args.n)) | settings
            if args.fid or both:
                samples, settings = sampler(args.n_fid, args.scale if args.fid_scale is None else args.fid_scale)
                result["distribution"] = digits.distribution(arbiter, samples) | settings
                result["memorisation"] = digits.memorisation(samples[:1000]) | {"scale": settings["scale"]}
    if args.grid:
        sampler.first.save(args.grid)
    if args.json:
        with atomic_file(args.json) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    print(render(result))
    return 0


def _of_engine(engine: Any) -> dict[str, Any]:
    info = engine.info()
    return {k: info[k] for k in ("version", "backend", "backend_version", "precision", "fingerprint")}


def _check(manifest: dict[str, Any], classes: int, labelled: bool) -> None:
    shape = manifest["sample"]["shape"]
    if manifest["sample"].get("role") != "image" or len(shape) != 3 or shape[0] != 1 or min(shape[1:]) < 28:
        raise OptionError(f"plan: expected digits, images [1, 28, 28] or larger, got {shape}")
    if classes not in (0, 10) or (labelled and classes == 0):
        raise OptionError(f"plan: expected the 10 digits as its classes, got {classes}")


class _Sampler:
    """Samples whose digits go round 0 to 9; image i has seed + i, whatever it is sampled with: what an earlier call at the
    same scale has made is not made again. `first` holds the first 100 of the first call."""

    def __init__(self, engine: Any, args: argparse.Namespace, conditional: bool):
        self.engine, self.args, self.conditional, self.first = engine, args, conditional, None
        self.kept: dict[float | None, tuple[Any, float]] = {}  # scale -> images, seconds

    @staticmethod
    def labels(n: int) -> np.ndarray:
        return np.arange(n) % 10

    def __call__(self, n: int, scale: float | None) -> tuple[np.ndarray, dict[str, Any]]:
        """uint8 [n, H, W, 1], and the settings and cost of the run."""
        a = self.args
        made, seconds = self.kept.get(scale, (None, 0.0))
        have = 0 if made is None else len(made)
        if have < n:
            labels = self.labels(n)[have:].tolist() if self.conditional else None
            first = arrays.integer(a.seed, "seed", 0, 2**64 - 1)
            seeds = [(first + i) % 2**64 for i in range(have, n)]
            images = self.engine.sample(
                n - have, labels=labels, scale=scale, steps=a.steps, sampler=a.sampler, seeds=seeds
            )
            self.first = images[:100] if self.first is None else self.first
            made = np.asarray(images) if made is None else np.concatenate([made, images])
            seconds += images.seconds
            self.kept[scale] = made, seconds
        defaults = self.engine.info()["defaults"]
        settings = {
            "scale": defaults["scale"] if scale is None else scale,
            "steps": a.steps or defaults["steps"],
            "sampler": a.sampler or defaults["sampler"],
            "seeds": [a.seed, a.seed + n - 1],
            "seconds": round(seconds, 1),
        }
        return made[:n], settings


def _progress():
    """Epochs on standard error, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(epoch: int, epochs: int) -> None:
        print(f"\rtraining the judge: epoch {epoch} of {epochs}", end="\n" if epoch == epochs else "", file=sys.stderr)

    return show


def _identity(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    data = path.read_bytes()
    keys = ("name", "producer", "sources", "training", "licence", "parity")
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} | {
        k: manifest[k] for k in keys if k in manifest
    }


def _describe(arbiter: Any) -> dict[str, Any]:
    from .judge import code_version

    return {
        "held_out_accuracy": arbiter.held_out_accuracy,
        "held_out_n": 500,
        "train_n": 4500,
        "epochs": arbiter.epochs,
        "seed": arbiter.seed,
        "version": code_version(),
    }


def render(result: dict[str, Any]) -> str:
    """The figures as a few lines of text."""
    lines = []
    if judge := result.get("judge"):
        lines.append(f"judge: {judge['held_out_accuracy']:.1%} of {judge['held_out_n']} held-out digits right")
    if found := result.get("label_accuracy"):
        low, high = found["interval95"]
        lines.append(
            f"label accuracy: {found['accuracy']:.1%} of {found['n']} samples (95 %: {low:.1%} to {high:.1%}), "
            f"{found['sampler']} {found['steps']} steps, scale {found['scale']:g}, {found['seconds']} s"
        )
    if found := result.get("distribution"):
        floor = found["floor"]
        for name in ("fid", "kid"):
            low, high = found[f"{name}_interval95"]
            lines.append(
                f"{name.upper()}@digits: {found[name]:.4g} (95 %: {low:.4g} to {high:.4g}) of {found['n']} samples at "
                f"scale {found['scale']:g}; of {floor['n']}: {found['same_n'][name]:.4g}, held-out {floor[name]:.4g}"
            )
        lines.append(
            f"precision {found['precision']:.3f}, recall {found['recall']:.3f} against held-out digits "
            f"(training digits: {floor['precision']:.3f}, {floor['recall']:.3f})"
        )
    if found := result.get("memorisation"):
        lines.append(
            f"nearest training digit: median {found['samples']['median']:.2f}, held-out digits "
            f"{found['held_out']['median']:.2f}; {found['nearer']:.1%} nearer than 99 % of the held-out, "
            f"{found['copies']} copies"
        )
    if found := result.get("bits_per_dim"):
        from .bits import render as render_bits

        lines += render_bits(found)
    return "\n".join(lines)
