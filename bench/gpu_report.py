"""Checks and measures the GPU engine: correctness first, then speed beside what the same device does in the same run.

    python -m bench.gpu_report --build build --out bench/gpu_results/h100.json --budget 540
    python -m bench.gpu_report --device emulated --out /tmp/dry.json          every section, tiny, without a GPU: no figure means anything
    python -m bench.gpu_report --docs                                         docs/gpu.md's figures from bench/gpu_results/

Needs torch, numpy, and an installed ddpm_rt or (--build) a CMake folder, which is made where it is new: pybind11, cmake, nvcc.
Sections that fail are written down with their error; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from . import gpu_text

ROOT = Path(__file__).resolve().parent.parent
# name -> the module that has it. In this order: what is wrong is known before anything is measured.
SECTIONS = {
    "programs": "gpu_checks", "kernels": "gpu_checks", "replays": "gpu_checks", "loop": "gpu_checks", "networks": "gpu_loops",
    "peaks": "gpu_kernels", "step": "gpu_kernels", "groupnorm": "gpu_kernels", "graph_forms": "gpu_kernels", "mfu": "gpu_loops",
    "tax": "gpu_loops", "whole": "gpu_loops",
}  # fmt: skip
TARGETS = ("_core", "ddpm_rt_cuda", "test_step_cuda", "test_device")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file; what it has of other sections, devices and drivers is kept")
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="no section starts after them")
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    parser.add_argument("--build", type=Path, help="a CMake folder in place of the installed package")
    parser.add_argument("--cmake", action="append", default=[], metavar="-DX=Y", help="more of how --build is configured")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--docs", action="store_true", help="only write docs/gpu.md's figures")
    args = parser.parse_args(arguments)
    if args.docs:
        gpu_text.write_docs(ROOT)
        return 0
    wanted = args.sections.split(",")
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"--sections: expected some of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    deadline = time.monotonic() + args.budget
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if args.device == "emulated":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    ctx = opened(args, deadline)
    sections = {name: run(name, ctx) for name in SECTIONS if name in wanted}
    report = {"facts": facts(ctx), "sections": sections}
    print(gpu_text.table(report))
    if args.out is not None:
        write(args.out, report)
    return 1 if any("error" in s for s in sections.values()) else 0


def opened(args: argparse.Namespace, deadline: float) -> Any:
    """The device under test. Refuses where there is none."""
    from . import gpu_setup

    library = ""
    if args.build is not None:
        build = args.build.resolve()
        if args.device == "cuda":
            made(build, args.cmake)
        gpu_setup.use_build(build)
    if args.device == "emulated":
        sys.path.insert(0, str(ROOT / "tests" / "cuda_emulation"))
        library = importlib.import_module("emulated").library()
    from ddpm_rt import DeviceError

    try:
        return gpu_setup.Context(args.device, library, args.build and args.build.resolve(), args.quick, deadline)
    except DeviceError as e:
        raise SystemExit(f"{e}\nwithout a GPU: --device emulated") from None


def made(build: Path, more: list[str]) -> None:
    """Configures and builds what the report needs."""
    given = ["-DDDPM_RT_CUDA=ON", "-DDDPM_RT_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}", *more]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *given],
        ["cmake", "--build", str(build), "-j", str(os.cpu_count() or 2), "--target", *TARGETS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def run(name: str, ctx: Any) -> dict[str, Any]:
    """{"seconds", "result"} or {"seconds", "error"}; {"not_run"} behind the deadline."""
    if ctx.is_late(0):
        return {"not_run": "budget"}
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    try:
        outcome = {"result": getattr(importlib.import_module(f".{SECTIONS[name]}", __package__), name)(ctx)}
    except Exception as e:  # noqa: BLE001  one section's failure is its own result
        traceback.print_exc()
        outcome = {"error": f"{type(e).__name__}: {e}"[:2000]}
    seconds = round(time.monotonic() - started, 1)
    print(f"{name}: {'failed' if 'error' in outcome else 'done'}, {seconds} s", flush=True)
    return {"seconds": seconds, **outcome}


def facts(ctx: Any) -> dict[str, Any]:
    import ddpm_rt

    def said(*command: str) -> str | None:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    known = {k: v for k, v in ctx.facts.items() if k != "library"}
    return known | {
        "driver_version": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks_mhz": said("nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.memory,power.limit", "--format=csv,noheader"),
        "ddpm_rt": ddpm_rt.__version__,
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "torch": ctx.torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write(path: Path, report: dict[str, Any]) -> None:
    """Into the file's entry of this device and driver; its sections of earlier runs stay where this run has none."""
    known = json.loads(path.read_text()) if path.exists() else {}
    facts = report["facts"]
    entry = known.setdefault(f"{facts['name']}, driver {facts['driver_version'] or facts['driver']}", {"sections": {}})
    entry["facts"] = facts
    for name, section in report["sections"].items():
        if "not_run" not in section or name not in entry["sections"]:
            entry["sections"][name] = section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
