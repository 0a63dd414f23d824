"""A GPU report as text: a table for the terminal, and the figures of docs/gpu.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

START, END = "<!-- figures -->", "<!-- end of figures -->"
NONE_YET = "None yet: this has not run on a GPU."
TITLES = {
    "programs": "The C++ programs", "kernels": "Every kernel variant against float64", "replays": "Graphs against pieces",
    "loop": "The loop against the reference", "networks": "PyTorch's networks in the loop", "peaks": "What the device reaches",
    "step": "The step (share_of_copy: 1 is the speed of a copy)", "groupnorm": "GroupNorm + SiLU", "graph_forms": "A tick without its network",
    "mfu": "The network alone, fp16", "tax": "Loop tax", "whole": "The whole loop, guided, 50 DDIM steps",
}  # fmt: skip


def cell(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"median", "least", "most"}:
        return f"{value['median']:g} ({value['least']:g} to {value['most']:g})"
    if isinstance(value, dict):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(map(cell, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, what it came to)"""
    return [(name, cell(value)) for name, value in result.items()]


def table(report: dict[str, Any]) -> str:
    facts = report["facts"]
    out = ["", f"{facts['name']}, driver {facts['driver_version'] or facts['driver']}, torch {facts['torch']}, {facts['date']}"]
    if facts["kind"] != "cuda":
        out.append("an emulated device: what was checked was checked, and no time means anything")
    for name, section in report["sections"].items():
        out.append(f"\n{TITLES[name]}")
        if "result" not in section:
            out.append(f"  {'FAILED: ' + section['error'] if 'error' in section else 'not run: ' + section['not_run']}")
            continue
        found = lines(section["result"])
        width = max((len(n) for n, _ in found), default=0)
        out += [f"  {n:<{width}}  {v}" for n, v in found]
    return "\n".join(out)


def markdown(reports: dict[str, Any]) -> str:
    """Of all runs on a GPU. Failed sections are shown as such."""
    out = []
    for name, report in sorted(reports.items()):
        facts = report["facts"]
        if facts["kind"] != "cuda":
            continue
        out.append(f"### {name}\n")
        out.append(f"torch {facts['torch']}, CUDA {facts['runtime']}, commit {facts['commit']}, {facts['date']}. Medians (least to most).")
        for section in (s for s in TITLES if s in report["sections"]):
            outcome = report["sections"][section]
            out.append(f"\n**{TITLES[section]}**\n")
            if "result" not in outcome:
                out.append(f"Failed: `{outcome['error']}`" if "error" in outcome else "Not run: the time was up.")
                continue
            out += ["| | |", "|---|---|"]
            out += [f"| {n} | {v.replace('|', '/')} |" for n, v in lines(outcome["result"])]
        out.append("")
    return "\n".join(out).strip() or NONE_YET


def figures(root: Path) -> str:
    """The figures' section from every file of bench/gpu_results."""
    reports: dict[str, Any] = {}
    for path in sorted((root / "bench" / "gpu_results").glob("*.json")):
        reports.update(json.loads(path.read_text()))
    return markdown(reports)


def with_figures(page: str, text: str) -> str:
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def write_docs(root: Path) -> None:
    page = root / "docs" / "gpu.md"
    page.write_text(with_figures(page.read_text(), figures(root)))
