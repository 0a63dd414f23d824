"""What is in a plan file: `ddpm-rt inspect`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from . import _core, plan_files
from .errors import PlanError

DESCRIPTION = "Show what is in a plan file. Exit code 1 if it is damaged."
EXAMPLES = """examples:
  ddpm-rt inspect digits                what the shipped plan is, and what it does unasked
  ddpm-rt inspect my.plan --verify      reads every byte and compares it with its SHA-256
  ddpm-rt inspect my.plan --json        the same for a script; "manifest" is the manifest as it is stored
"""


def inspect(plan: str | os.PathLike[str], verify: bool = False) -> dict[str, Any]:
    """What a plan says of itself: path, bytes, manifest, sections (name, offset, bytes, sha256), verified.

    The header, the manifest and the section table are always checked against their hash; verify: every byte is.
    PlanError where a check fails.
    """
    path = plan_files.find(plan)
    file = _core.Plan(str(path))
    try:
        manifest = json.loads(file.manifest)
    except ValueError as e:
        raise PlanError(f"manifest: expected JSON, got {e}") from e
    if verify:
        file.verify()
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "manifest": manifest,
        "sections": file.sections,
        "verified": verify,
    }


def render(found: dict[str, Any]) -> str:
    """The result of `inspect` as text. Tolerates manifests that no engine would run."""
    m = found["manifest"] if isinstance(found["manifest"], dict) else {}

    def part(key: str) -> dict[str, Any]:
        return m[key] if isinstance(m.get(key), dict) else {}

    sample, schedule, defaults, test = part("sample"), part("schedule"), part("defaults"), part("self_test")
    names = m.get("class_names") or []
    classes = (part("conditions").get("label") or {}).get("classes", 0)
    rows = [
        ("name", m.get("name", "")),
        ("file", f"{found['path']}, {_size(found['bytes'])}, made by {m.get('producer', 'unknown')}"),
        ("sample", f"{sample.get('shape')} {sample.get('role', '')}, range {sample.get('range')}"),
        ("classes", f"{classes}: {_some(names)}" if classes else "none (unconditional)"),
        *(("condition", f"{name} {_condition(c)}") for name, c in part("conditions").items() if name != "label" and c),
        ("predicts", f"{m.get('prediction')}, variance {m.get('variance', 'fixed')}"),
        ("schedule", _schedule(schedule)),
        ("defaults", ", ".join(f"{k} {v}" for k, v in defaults.items())),
    ]
    for name, network in part("networks").items():
        network = network if isinstance(network, dict) else {}
        wires = [f"{r}={t}" for r, t in {**network.get("inputs", {}), **network.get("outputs", {})}.items()]
        rows.append(
            (f"network {name}", f"{network.get('kind')} {network.get('section', '')} {' '.join(wires)}".strip())
        )
    for e in m.get("engines") or []:
        made_for = ", ".join(e.get("capabilities") or []) or "every GPU of its library"
        rows.append((f"engine {e.get('network')}", f"{e.get('library')} {e.get('version', '')} {e.get('precision')}, for {made_for}"))
    if test:
        limits = ", ".join(f"{k} {v:g}" for k, v in test.get("tolerance", {}).items())
        rows.append(("self test", f"{test.get('count')} evaluations, tolerance {limits}"))
    if training := part("training"):
        rows.append(("training", f"{training.get('step')} steps; --json has the run's configuration"))
    rows += [(f"source {k}", v) for k, v in part("sources").items()]
    rows += [(key, m[key]) for key in ("licence", "card") if m.get(key)]
    width = max(len(key) for key, _ in rows) + 2
    lines = [f"{key:<{width}}" + str(value).replace("\n", "\n" + " " * width) for key, value in rows]
    lines += ["", f"{'section':<20}{'offset':>12}{'bytes':>14}  sha256"]
    lines += [f"{s['name']:<20}{s['offset']:>12}{s['bytes']:>14}  {s['sha256']}" for s in found["sections"]]
    lines += [
        "",
        "verified: every section has its SHA-256, the padding is zero"
        if found["verified"]
        else "header, manifest and table have their SHA-256; --verify reads the sections too",
    ]
    return "\n".join(lines)


def _condition(c: dict[str, Any]) -> str:
    length = f"up to {c['max_length']} of " if c.get("mask") else f"{c['max_length']} of " if c.get("max_length") else ""
    return f"{c.get('role', 'vector')}, {length}{c.get('shape')}, null {c.get('null')}"


def _schedule(schedule: dict[str, Any]) -> str:
    if schedule.get("kind", "discrete") == "discrete":
        return f"{schedule.get('name', 'given')}, T = {schedule.get('T')}"
    return ", ".join([str(schedule["kind"]), *(f"{k} {v:g}" for k, v in schedule.items() if isinstance(v, (int, float)))])


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count} bytes"


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)} names)" if len(names) > most else "")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a plan file, or the name of a shipped plan")
    parser.add_argument("--verify", action="store_true", help="check every section against its SHA-256")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    found = inspect(args.plan, args.verify)
    print(json.dumps(found) if args.json else render(found))
    return 0
