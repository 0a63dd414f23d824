"""`ddpm-rt export`."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from ..errors import OptionError, PlanError

DESCRIPTION = "Make a plan file, checked against its source, of a checkpoint or an ONNX model."
EXAMPLES = """examples:
  ddpm-rt export runs/digits -o digits.plan                      a run of ddpm-rt train, its averaged weights
  ddpm-rt export runs/digits/model.safetensors -o d.plan --weights fp16 --steps 25 --scale 2
  ddpm-rt export runs/digits -o guided.plan --classifier c.pt2   with the gradient of a noisy classifier
  ddpm-rt export model.onnx --card card.json -o model.plan       any ONNX model of (x, t[, label])

A card is JSON with the keys of a plan's manifest that the graph does not tell. Without one, NAME.json beside the model
is taken; if there is none, the error shows what to write. From Python: ddpm_rt.export.export_plan(module, path,
shape=...).
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder or .safetensors of ddpm-rt train, or an .onnx file")
    parser.add_argument(
        "-o", "--output", metavar="PLAN", required=True, help="the plan to write, conventionally NAME.plan"
    )
    parser.add_argument("--card", metavar="FILE", help="for .onnx: the JSON card; default: NAME.json beside it")
    parser.add_argument("--weights", choices=("fp32", "fp16"), default="fp32", help="fp16 halves the file")
    parser.add_argument("--name", help="of the model; default: the plan's file name")
    parser.add_argument("--licence", metavar="TEXT", help="stored in the plan")
    parser.add_argument("--description", metavar="FILE", help="a text to store in the plan as its card")
    defaults = parser.add_argument_group("what the plan does unasked")
    defaults.add_argument("--sampler", help="ddim (default) or ddpm")
    defaults.add_argument("--steps", type=int, help="default: 50, with ddpm all")
    defaults.add_argument("--scale", type=float, help="guidance scale; default: 3 with classes, 1 without")
    defaults.add_argument("--classifier-scale", type=float, help="weight of the classifier's gradient; default: 1 with --classifier")
    parser.add_argument(
        "--classifier", metavar="FILE", help="a noisy classifier (x, t) -> logits, of torch.export.save: its gradient joins the graph"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    from ..images import check_writable

    check_writable(args.output)
    defaults = {k: getattr(args, k) for k in ("sampler", "steps", "scale", "classifier_scale") if getattr(args, k) is not None}
    source = pathlib.Path(args.source)
    if not source.exists():
        raise PlanError(f"source: expected a checkpoint or an ONNX file, found none at {args.source!r}")
    if source.suffix.lower() == ".onnx":
        result = _from_onnx(args, source, defaults)
    else:
        result = _from_checkpoint(args, source, defaults)
    manifest = result["manifest"]
    if args.json:
        keys = ("path", "bytes", "parity")
        print(
            json.dumps(
                {k: result[k] for k in keys} | {k: manifest[k] for k in ("name", "sample", "defaults", "sources")}
            )
        )
    else:
        d = manifest["defaults"]
        print(
            f"{result['path']}: {manifest['name']}, {manifest['sample']['shape']}, {result['bytes'] / 1e6:.1f} MB, "
            f"{args.weights} weights, {d['sampler']} {d['steps']} steps, scale {d['scale']:g}; "
            f"differs from its source by {result['parity']:.1g} of the largest value"
        )
    return 0


def _from_onnx(args: argparse.Namespace, source: pathlib.Path, defaults: dict[str, Any]) -> dict[str, Any]:
    from .onnx_file import export_onnx

    for option in ("licence", "description", "classifier"):
        if getattr(args, option) is not None:
            raise OptionError(f"{option}: expected in the card of an ONNX model, got it as an option")
    return export_onnx(source, args.card, args.output, weights=args.weights, defaults=defaults, name=args.name)


def _from_checkpoint(args: argparse.Namespace, source: pathlib.Path, defaults: dict[str, Any]) -> dict[str, Any]:
    from .module import export_checkpoint

    if args.card is not None:
        raise OptionError("card: expected with an .onnx file, a checkpoint carries its own")
    text = None
    if args.description is not None:
        try:
            text = pathlib.Path(args.description).read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            raise OptionError(f"description: expected a text file, cannot read {args.description!r}: {e}") from e
    return export_checkpoint(
        source, args.output, weights=args.weights, defaults=defaults, name=args.name, licence=args.licence, card=text,
        classifier=args.classifier,
    )
