"""`ddpm-rt export`."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from ..errors import OptionError, PlanError

DESCRIPTION = "Make a plan file, checked against its source, of a checkpoint, another project's model or an ONNX model."
EXAMPLES = """examples:
  ddpm-rt export runs/digits -o digits.plan                      a run of ddpm-rt train, its averaged weights
  ddpm-rt export runs/digits/model.safetensors -o d.plan --weights fp16 --steps 25 --scale 2
  ddpm-rt export runs/digits -o guided.plan --classifier c.pt2   with the gradient of a noisy classifier
  ddpm-rt export model.onnx --card card.json -o model.plan       any ONNX model of (x, t[, label])
  ddpm-rt export ddpm-cifar10-32 -o cifar10.plan                 a diffusers folder; it samples as its own pipeline
  ddpm-rt export DiT-XL-2-256 --scheduler dpm.json -o dit.plan   with another scheduler_config.json
  ddpm-rt export 256x256_diffusion.pt -o adm.plan                openai's guided-diffusion; the name is the preset
  ddpm-rt export model-100.pt --image-size 64 -o mine.plan       denoising-diffusion-pytorch
  ddpm-rt export edm-cifar10-32x32-cond-vp.pkl -o edm.plan       EDM; nothing in the file is executed

A card is JSON with the keys of a plan's manifest that the graph does not tell. Without one, NAME.json beside the model
is taken; if there is none, the error shows what to write. From Python: ddpm_rt.export.export_plan(module, path,
shape=...). docs/importing.md says what each source needs.
"""
IMPORT_OPTIONS = ("scheduler", "network", "variant", "null_label", "image_size", "objective", "sampling_steps", "data_range",
                  "weights_of", "preset", "flags")  # fmt: skip
DEFAULT_OPTIONS = ("sampler", "steps", "scale", "eta", "clip", "grid", "variance", "compat", "sampler_options",
                   "classifier_scale")  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC",
        help="folder or .safetensors of ddpm-rt train, a diffusers folder, a .pt of guided-diffusion or denoising-diffusion-pytorch, "
        "an EDM .pkl, or an .onnx file",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="PLAN", required=True, help="the plan to write, conventionally NAME.plan"
    )
    parser.add_argument("--card", metavar="FILE", help="for .onnx: the JSON card; default: NAME.json beside it")
    parser.add_argument("--weights", choices=("fp32", "fp16"), default="fp32", help="fp16 halves the file")
    parser.add_argument("--name", help="of the model; default: the plan's file name")
    parser.add_argument("--licence", metavar="TEXT", help="stored in the plan")
    parser.add_argument("--description", metavar="FILE", help="a text to store in the plan as its card")
    defaults = parser.add_argument_group("what the plan does unasked")
    defaults.add_argument("--sampler", help="docs/samplers.md; default: the source's own, else ddim")
    defaults.add_argument("--steps", type=int, help="default: the source's own, else 50, with ddpm all")
    defaults.add_argument("--scale", type=float, help="guidance scale; default: the source's own, else 3 with classes, 1 without")
    defaults.add_argument("--eta", type=float, help="share of an ancestral step's noise, 0 to 1")
    defaults.add_argument("--clip", help="none, keep_eps or rederive")
    defaults.add_argument("--variance", help="of ddpm: fixed_small, fixed_large, or the network's learned_range")
    defaults.add_argument("--grid", help="how the levels are spaced, docs/samplers.md")
    defaults.add_argument("--compat", help="diffusers, guided-diffusion, k-diffusion or edm: that project's conventions and defects")
    defaults.add_argument(
        "--sampler-options", metavar="JSON", type=_mapping, help='such as \'{"order": 3, "final_sigma": "sigma_min"}\''
    )
    source = parser.add_argument_group("what a source does not tell (docs/importing.md)")
    source.add_argument("--scheduler", metavar="FILE", help="diffusers: a scheduler_config.json instead of the folder's own")
    source.add_argument("--network", metavar="NAME", help="diffusers: subfolder of the network; default: unet_ema, unet, transformer")
    source.add_argument("--variant", help="diffusers: of the weights' file, such as fp16")
    source.add_argument("--null-label", help="diffusers: last, where the last class means none; default: zero")
    source.add_argument("--image-size", metavar="N", type=_size, help="denoising-diffusion-pytorch: N, or HxW")
    source.add_argument("--objective", help="denoising-diffusion-pytorch: pred_noise, pred_x0 or pred_v; default: read off the file")
    source.add_argument("--sampling-steps", type=int, help="denoising-diffusion-pytorch: its sampling_timesteps; default: all")
    source.add_argument("--data-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="denoising-diffusion-pytorch: default -1 1")
    source.add_argument("--weights-of", help="denoising-diffusion-pytorch: ema (default) or model; EDM: key of the file")
    source.add_argument("--preset", help="guided-diffusion: a published file's name; default: the file's own name")
    source.add_argument(
        "--flags", metavar="JSON", type=_mapping, help='guided-diffusion: such as \'{"image_size": 64, "num_heads": 4}\''
    )
    defaults.add_argument("--classifier-scale", type=float, help="weight of the classifier's gradient; default: 1 with --classifier")
    parser.add_argument(
        "--classifier",
        metavar="FILE",
        help="a noisy classifier (x, t) -> logits, of torch.export.save, or a .pt of guided-diffusion beside one of its networks: its "
        "gradient joins the graph",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text!r}: {e}") from e
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return found


def _size(text: str) -> int | list[int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() for p in parts):
        raise argparse.ArgumentTypeError(f"expected N or HxW, got {text!r}")
    return int(parts[0]) if len(parts) == 1 else [int(p) for p in parts]


def main(args: argparse.Namespace) -> int:
    from ..images import check_writable

    check_writable(args.output)
    defaults = {k: getattr(args, k) for k in DEFAULT_OPTIONS if getattr(args, k) is not None}
    source = pathlib.Path(args.source)
    if not source.exists():
        raise PlanError(f"source: expected a checkpoint or an ONNX file, found none at {args.source!r}")
    from ..importers.dispatch import kind_of

    given = {k: getattr(args, k) for k in IMPORT_OPTIONS if getattr(args, k) is not None}
    if source.suffix.lower() == ".onnx":
        _expect_none(given, "an ONNX model")
        result = _from_onnx(args, source, defaults)
    elif kind_of(source) is not None:
        result = _from_project(args, source, defaults, given)
    else:
        _expect_none(given, "a run of ddpm-rt train")
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
            f"{args.weights} weights, {d.get('sampler', 'ddim')} {d.get('steps', 'its own')} steps, scale {d['scale']:g}"
            f"{', compat ' + d['compat'] if d.get('compat') else ''}; "
            f"differs from its source by {result['parity']:.1g} of the largest value"
        )
    return 0


def _expect_none(given: dict[str, Any], what: str) -> None:
    for name, value in given.items():
        raise OptionError(f"{name}: expected it unset for {what}, got {value!r}")


def _from_project(
    args: argparse.Namespace, source: pathlib.Path, defaults: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    from ..importers.dispatch import export_model

    if args.card is not None:
        raise OptionError("card: expected with an .onnx file, got one for another source")
    return export_model(
        source, args.output, defaults=defaults, weights=args.weights, name=args.name, licence=args.licence, card=_text(args),
        classifier=args.classifier, **given,
    )  # fmt: skip


def _text(args: argparse.Namespace) -> str | None:
    if args.description is None:
        return None
    try:
        return pathlib.Path(args.description).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise OptionError(f"description: expected a text file, cannot read {args.description!r}: {e}") from e


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
    return export_checkpoint(
        source, args.output, weights=args.weights, defaults=defaults, name=args.name, licence=args.licence, card=_text(args),
        classifier=args.classifier,
    )
