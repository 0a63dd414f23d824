"""How many network evaluations each solver needs for a given FID@digits: the digits model, one figure per solver and budget.

    python -m bench.steps_to_fid --out bench/results/steps_to_fid.json     measures; about an hour on two cores
    python -m bench.steps_to_fid --docs                                    docs/samplers.md's table and plot from that file

Unguided samples with labels going round 0 to 9 and the same seeds for every solver, against the 4,500 training digits, in the
features of the judge (docs/model_digits.md). A budget is the network evaluations of one sample; a solver of two evaluations a
step takes as many steps as fit. Runs with other --solvers add to the file. Needs the `eval` extra.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ddpm_rt

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, PLOT = ROOT / "bench/results/steps_to_fid.json", ROOT / "docs/samplers.md", ROOT / "docs/steps_to_fid.png"
BUDGETS = (4, 6, 8, 12, 20, 50)
SOLVERS = (
    "ddpm", "ddim", "pndm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "euler", "euler_ancestral", "heun", "deis",
)  # fmt: skip
MARK = "<!-- steps_to_fid -->"


def steps_for(solver: str, budget: int) -> int:
    """The most steps whose evaluations fit the budget."""
    return {"pndm": budget - 1, "dpmpp_2s": (budget + 1) // 2, "heun": (budget + 1) // 2}.get(solver, budget)


def measured(
    n: int, solvers: list[str], budgets: list[int], resamples: int, keep: Callable[[dict[str, Any]], object] | None = None
) -> dict[str, Any]:  # fmt: skip
    """keep: told the report so far, after each solver."""
    from ddpm_rt.evaluation import judge, metrics
    from ddpm_rt.training.data import mnist5k

    arbiter = judge.load_or_train(judge.EPOCHS)
    real = arbiter.features(mnist5k("train").images)
    figures: dict[str, dict[str, Any]] = {}
    with ddpm_rt.Engine("digits", precision="fp32") as engine:
        report = {
            "n": n, "seed": 0, "scale": 1, "date": time.strftime("%Y-%m-%d"), "fingerprint": engine.info()["fingerprint"],
            "judge_held_out": arbiter.held_out_accuracy, "figures": figures,
        }  # fmt: skip
        for solver in solvers:
            for budget in budgets:
                images = engine.sample(
                    n, labels=np.arange(n) % 10, scale=1, seed=0, sampler=solver, steps=steps_for(solver, budget)
                )  # fmt: skip
                features = arbiter.features(np.asarray(images))
                value = metrics.fid(features, real)
                low, high = metrics.bootstrap(metrics.fid, features, real, resamples=resamples)
                figures.setdefault(solver, {})[str(budget)] = {
                    "fid": round(value, 3), "low": round(low, 3), "high": round(high, 3), "nfe": images.nfe,
                    "seconds": round(images.seconds, 2),
                }  # fmt: skip
                print(f"{solver:16} {budget:4} evaluations: FID@digits {value:8.3f} ({low:.3f} to {high:.3f})", flush=True)
            if keep is not None:
                keep(report)
    return report


def best(report: dict[str, Any]) -> float:
    return min(f["fid"] for by_budget in report["figures"].values() for f in by_budget.values())


def goal(report: dict[str, Any]) -> float:
    """The FID that the last column is about: twice the least that any solver has reached."""
    return 2 * best(report)


def table(report: dict[str, Any]) -> str:
    budgets = [str(b) for b in BUDGETS]
    target = goal(report)
    lines = [
        f"FID@digits of {report['n']:,} unguided samples, 95 % bootstrap interval in brackets; {report['date']}, `python -m bench.steps_to_fid`.",
        f"Least of all: {best(report):.2f}. The last column is the first budget at or below {target:.2f}, twice that.",
        "",
        f"| sampler | {' | '.join(f'{b} evaluations' for b in budgets)} | reaches {target:.2f} |",
        f"|---|{'---|' * len(budgets)}---|",
    ]
    for solver, by_budget in report["figures"].items():
        cells = [f"{f['fid']:.2f} ({f['low']:.2f} to {f['high']:.2f})" if (f := by_budget.get(b)) else "" for b in budgets]
        reached = next((b for b in budgets if b in by_budget and by_budget[b]["fid"] <= target), "not by " + budgets[-1])
        lines.append(f"| `{solver}` | {' | '.join(cells)} | {reached} |")
    return "\n".join([*lines, "", "![FID@digits against network evaluations](steps_to_fid.png)"])


def with_table(page: str, text: str) -> str:
    return re.sub(f"{MARK}.*?{MARK}", lambda _: f"{MARK}\n{text}\n{MARK}", page, flags=re.DOTALL)


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    markers = "osD^v<>ph*XP"
    for marker, (solver, by_budget) in zip(markers, report["figures"].items(), strict=False):
        points = [(int(b), f["fid"]) for b, f in by_budget.items()]
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, linewidth=1, label=solver)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations of one sample", ylabel="FID@digits")
    axes.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
    axes.minorticks_off()
    axes.axhline(goal(report), color="0.6", linewidth=0.8, linestyle="--")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Needs the eval extra.")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--n", type=int, default=1000, help="samples per figure")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="network evaluations of one sample")
    parser.add_argument("--resamples", type=int, default=100, help="of the bootstrap")
    parser.add_argument("--docs", action="store_true", help="only write docs/samplers.md's table and plot")
    args = parser.parse_args(arguments)
    if args.docs:
        report = json.loads(RESULTS.read_text())
        PAGE.write_text(with_table(PAGE.read_text(), table(report)))
        plot(report, PLOT)
        return 0
    solvers = args.solvers.split(",")
    unknown = [s for s in solvers if s not in SOLVERS]
    if unknown:
        parser.error(f"--solvers: expected some of {', '.join(SOLVERS)}, got {', '.join(unknown)}")
    measured(args.n, solvers, [int(b) for b in args.budgets.split(",")], args.resamples, functools.partial(write, args.out))
    return 0


def write(out: Path | None, report: dict[str, Any]) -> None:
    """Adds the solvers of `report` to those that the file has of the same samples."""
    if out is None:
        return
    old = json.loads(out.read_text()) if out.exists() else {}
    if all(old.get(k) == report[k] for k in ("n", "seed", "scale", "fingerprint", "judge_held_out")):
        report = report | {"figures": old["figures"] | report["figures"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
