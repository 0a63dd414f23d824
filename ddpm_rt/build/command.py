"""`ddpm-rt build`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..images import check_writable
from .status import Status

DESCRIPTION = """Build TensorRT engines of a plan's networks, ahead of time, into your cache folder.

An Engine on a GPU takes them from there by itself: they belong to the plan's networks by their SHA-256. With TensorRT-RTX
(pip install "ddpm_rt[tensorrt]") no GPU is needed to build; TensorRT 11 builds on and for the GPU at hand, and is taken
where it is installed. An engine runs with the very version of the library that built it."""
EXAMPLES = """examples:
  ddpm-rt build digits --backend tensorrt                            fp16, batches of 1 to 128 rows, tuned for 16
  ddpm-rt build my.plan --backend tensorrt --precision bf16          a network whose values leave float16's range
  ddpm-rt build my.plan --backend tensorrt --batch-profile 1,2,8 --batch-profile 16,64,256
  ddpm-rt build my.plan --backend tensorrt --cc 8.6,8.9              for these GPUs by name, and no others
  ddpm-rt build my.plan --backend tensorrt --cc current              for the GPU of this machine
  ddpm-rt build digits --backend tensorrt -o y.plan                  also a copy of the plan that holds the engines

With guidance a batch has two rows per image. Engines in a plan are machine code: such a plan is opened with
ddpm_rt.Engine("y.plan", trust_native=True), and only if it comes from a source you trust.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a plan file, or the name of one")
    parser.add_argument(
        "--backend", choices=("tensorrt",), required=True, help="TensorRT 11 or TensorRT-RTX 1, as found"
    )
    parser.add_argument(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="of convolutions and matrix products; norms, softmax and the time embedding stay fp32 (default: fp16)",
    )
    parser.add_argument(
        "--batch-profile",
        metavar="LEAST,BEST,MOST",
        action="append",
        help="rows of a batch that the engine takes, and which it is tuned for; may be given again (default: 1,16,128)",
    )
    parser.add_argument(
        "--cc",
        metavar="LIST",
        help="compute capabilities to build for, or current (default: all that the library's engines run on)",
    )
    parser.add_argument("-o", "--output", metavar="PLAN", help="write a copy of the plan with the engines in it")
    parser.add_argument(
        "--library", metavar="FILE", help="libnvinfer.so.11 or libtensorrt_rtx.so.1 (default: found by itself)"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="folder of compiled networks (default: your cache folder)")
    parser.add_argument("--force", action="store_true", help="build again what the cache holds")
    parser.add_argument(
        "--verbose", action="store_true", help="print what the library says, with every layer and its types"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    from .plan_engines import PROFILE, build

    if args.output is not None:
        check_writable(args.output)
    status = Status(False if args.verbose else None)
    try:
        result = build(
            args.plan,
            precision=args.precision,
            profiles=args.batch_profile or (PROFILE,),
            capabilities=[c.strip() for c in args.cc.split(",")] if args.cc is not None else (),
            output=args.output,
            cache_dir=args.cache_dir,
            library=args.library,
            force=args.force,
            on_step=status.update,
            on_log=_print_log if args.verbose else None,
        )
    finally:
        status.close()
    print(json.dumps(result) if args.json else describe(result))
    return 0


def _print_log(severity: str, text: str) -> None:
    print(f"[{severity}] {text}", file=sys.stderr)


def describe(result: dict[str, Any]) -> str:
    lines = [f"{result['library']} {result['version']}: {result['library_path']}"]
    for e in result["engines"]:
        rows = ", ".join(f"{p[0]} to {p[2]}" for p in e["profiles"])
        how = "in the cache" if e["cached"] else f"{e['seconds']:.1f} s"
        lines.append(f"  {e['network']:<5}{e['precision']}  {rows} rows  {e['bytes'] / 1e6:.1f} MB  {how}  {e['path']}")
    if result["output"] is not None:
        lines.append(f"  plan with the engines: {result['output']}")
    return "\n".join(lines)
