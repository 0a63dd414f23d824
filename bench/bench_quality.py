"""What a solver's order buys: FID@digits at ten network evaluations. `python -m bench.steps_to_fid` measures them all."""

from __future__ import annotations

from .steps_to_fid import measured


def test_ten_evaluations(benchmark) -> None:
    """400 samples each, unguided; the floor of so few is about 1. Correctness: order 3 is nearer the data than order 1."""
    report = measured(400, ["ddim", "unipc"], [10], 20)
    fid = {solver: by_budget["10"] for solver, by_budget in report["figures"].items()}
    assert fid["ddim"]["nfe"] == fid["unipc"]["nfe"] == 10
    assert fid["unipc"]["fid"] < fid["ddim"]["fid"]
    benchmark.extra_info.update({f"{solver}_fid": f["fid"] for solver, f in fid.items()})
    benchmark.pedantic(lambda: measured(100, ["unipc"], [10], 2), rounds=1)
