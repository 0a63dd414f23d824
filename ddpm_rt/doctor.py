"""`ddpm-rt doctor`: what is installed here, which backends work, and why not."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from typing import Any

from . import _core, options, plan_files
from .backends import find_library, tensorrt_libraries
from .engine import Engine
from .errors import DdpmError

_PACKAGES = {
    "numpy": "required",
    "openvino": "required",
    "onnxruntime": "onnxruntime",
    "pillow": "cli",
    "tqdm": "cli",
    "torch": "train",
    "safetensors": "train",
    "mlxtend": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxscript": "export",
    "scipy": "eval",
    "tensorrt-rtx-cu13-bindings": "tensorrt",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13": "tensorrt",
}
# What decides the speed of a network on the CPU, as Linux spells it.
_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_FEATURES += ("asimd", "asimdhp", "bf16", "sve", "i8mm")


DESCRIPTION = "Reports versions, the processor, and whether each backend runs a network here; if not, why not."
EXAMPLES = "examples:\n  ddpm-rt doctor\n  ddpm-rt doctor --json"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if args.json else describe(report))
    return 0 if any(b["works"] for b in report["backends"].values()) else 1


def examine() -> dict[str, Any]:
    """Everything that `doctor` says, as JSON-able values. Loads the backends."""
    return {
        "ddpm_rt": _core.__version__,
        "extension": _core.__file__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": _default_threads(),
        "packages": {name: {"version": _version(name), "extra": extra} for name, extra in _PACKAGES.items()},
        "models": plan_files.shipped(),
        "gpu": _gpu(),
        "backends": {name: _try_backend(name) for name in options.choices("backend") if name not in ("auto", "torch")},
    }


def _gpu() -> dict[str, Any]:
    """The first GPU and what device="cuda" would do with it. Loads the GPU part and the driver, and no framework."""
    report: dict[str, Any] = {"works": False, "why_not": None, "checked": None, "torch": _version("torch")}
    try:
        report.update(json.loads(_core.device_info("cuda", "")))
        report["works"] = True
        report["checked"] = "the GPU part of ddpm_rt and the driver load"
    except DdpmError as e:
        report["why_not"] = f"{type(e).__name__}: {e}"
    return report


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": platform.processor() or platform.machine(),
        "features": [],
        "logical": os.cpu_count(),
    }
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return found
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            found["name"] = value.strip()
        elif key.strip().lower() in ("flags", "features"):
            found["features"] = [f for f in _FEATURES if f in value.split()]
    return found


def _zero(x: Any, t: Any, labels: Any) -> Any:
    return 0 * x


def _default_threads() -> int | None:
    with Engine.from_callable(_zero, (1,)) as engine:
        return engine.info().get("threads")


def _try_backend(name: str) -> dict[str, Any]:
    """Whether the backend samples: with a shipped plan where it runs graphs, with the solver alone for "analytic"."""
    if name == "analytic":
        try:
            with Engine.from_callable(_zero, (4,)) as engine:
                engine.sample(1, steps=2)
            return {"works": True, "why_not": None, "checked": "the loop over a callable"}
        except DdpmError as e:
            return {"works": False, "why_not": f"{type(e).__name__}: {e}", "checked": "the loop over a callable"}
    if name == "tensorrt":
        return _try_tensorrt()
    library = find_library(name)
    report: dict[str, Any] = {"library": library, "works": False, "why_not": None, "checked": None}
    if library is None:
        report["why_not"] = f"the package {name} is not installed: pip install {name}"
    elif not plan_files.shipped():
        report["why_not"] = "no plan is shipped in this build to try it with"
    else:
        plan = plan_files.shipped()[0]
        report["checked"] = f"one sample of {plan}, two steps"
        try:
            with Engine(plan, backend=name) as engine:
                engine.sample(1, steps=2, seed=0)
                info = engine.info()
            report.update(works=True, precision=info["precision"])
        except DdpmError as e:
            report["why_not"] = f"{type(e).__name__}: {e}"
    return report


def _try_tensorrt() -> dict[str, Any]:
    """Each library found, with the version it reports to the engine; it works where the driver of a GPU is here too."""
    report: dict[str, Any] = {"libraries": [], "works": False, "why_not": None, "checked": "the library and the driver load"}
    for found in tensorrt_libraries():
        entry: dict[str, Any] = {"path": str(found.path), "kind": found.kind, "version": None, "why_not": None}
        try:
            entry["version"] = json.loads(_core.examine_tensorrt(str(found.path)))["version"]
        except DdpmError as e:
            entry["why_not"] = f"{type(e).__name__}: {e}"
        report["libraries"].append(entry)
    if not report["libraries"]:
        report["why_not"] = 'no libnvinfer.so.11 or libtensorrt_rtx.so.1 is installed: pip install "ddpm_rt[tensorrt]"'
    elif not any(entry["version"] for entry in report["libraries"]):
        report["why_not"] = report["libraries"][0]["why_not"]
    else:
        try:
            ctypes.CDLL("libcuda.so.1")
            report["works"] = True
        except OSError as e:
            report["why_not"] = f"it builds engines here, but to run them it needs an NVIDIA GPU and its driver ({e})"
    return report


def _describe_gpu(gpu: dict[str, Any]) -> list[str]:
    if not gpu["works"]:
        return [f"  GPU         none: {gpu['why_not']}"]
    memory = gpu["memory_bytes"] / 2**30
    torch = f"torch {gpu['torch']}" if gpu["torch"] else "no torch to run a plan's network there: pip install torch"
    name = f"{gpu['name']}, compute capability {gpu['compute_capability']}"
    return [
        f"  GPU         {name}, {memory:.0f} GiB, driver for CUDA {gpu['driver']}; {torch}",
        f"              {gpu['library']}, CUDA {gpu['runtime']}",
    ]


def describe(report: dict[str, Any]) -> str:
    cpu = report["processor"]
    lines = [
        f"ddpm_rt {report['ddpm_rt']}   Python {report['python']}   {report['platform']}",
        f"  extension   {report['extension']}",
        f"  processor   {cpu['name']}: {' '.join(cpu['features']) or 'features unknown'}",
        f"  threads     {report['threads']} of {cpu['logical']} logical processors",
        f"  models      {', '.join(report['models']) or 'none shipped in this build'}",
        *_describe_gpu(report["gpu"]),
        "backends",
    ]
    for name, backend in report["backends"].items():
        verdict = f"works ({backend['checked']})" if backend["works"] else f"does not work: {backend['why_not']}"
        lines.append(f"  {name:<12}{verdict}")
        for library in backend.get("libraries", ()):
            found = f"{library['kind']} {library['version']}" if library["version"] else library["why_not"]
            lines.append(f"  {'':<12}{found}   {library['path']}")
    lines.append("packages")
    width = max(map(len, report["packages"])) + 2
    for name, package in report["packages"].items():
        missing = (
            "missing" if package["extra"] == "required" else f'not installed: pip install "ddpm_rt[{package["extra"]}]"'
        )
        lines.append(f"  {name:<{width}}{package['version'] or missing}")
    lines.append(f"searched {sys.prefix}")
    return "\n".join(lines)
