"""`ddpm-rt train`. torch is imported when the command runs, not when its options are listed."""

from __future__ import annotations

import argparse
import json
import typing
from pathlib import Path

from ..errors import OptionError

if typing.TYPE_CHECKING:
    from .config import TrainConfig
    from .data import Data

DESCRIPTION = "Train a DDPM on a folder of images or on the bundled digits."
EXAMPLES = """examples:
  ddpm-rt train --preset digits --out runs/digits
  ddpm-rt train --data photos/ --image-size 64 --out runs/photos --crop 8 --flip
  ddpm-rt train --out runs/photos --resume                       go on after a stop, exactly
  torchrun --nproc-per-node 2 -m ddpm_rt.training --preset digits --batch 32 --out runs/digits

The folder holds model.safetensors (EMA weights and config), state.safetensors (for --resume), config.json, log.csv,
loss.png and samples/. A folder of images whose sub-folders hold the images is class-conditional.
"""


def _integers(text: str) -> list[int]:
    return [int(v) for v in text.split(",") if v.strip()]


def _size(text: str) -> list[int]:
    sides = [int(v) for v in text.lower().split("x")]
    if len(sides) not in (1, 2):
        raise ValueError
    return sides * 2 if len(sides) == 1 else sides


# option -> (type, help); the name is the field's of UNetConfig, respectively TrainConfig
MODEL_OPTIONS = {
    "image_size": (_size, "pixels, as 32 or HEIGHTxWIDTH (default: the data's own, folders 32)"),
    "channels": (int, "width of the first level (default 64)"),
    "channel_mult": (_integers, "width of each level in units of it, as 1,2,2 (the default)"),
    "res_blocks": (int, "residual blocks per level (default 2)"),
    "attention": (_integers, "levels with self-attention, 0 the finest (default 1)"),
    "heads": (int, "attention heads (default 1)"),
    "groups": (int, "groups of the normalisation (default 32)"),
    "patch": (int, "fold PATCH x PATCH pixels into channels (default 1)"),
    "dropout": (float, "dropout in the residual blocks (default 0)"),
}
TRAIN_OPTIONS = {
    "data": (str, "mnist5k (bundled digits) or a folder of images"),
    "steps": (int, "optimizer steps (default 20000)"),
    "batch": (int, "images per forward pass and process (default 64)"),
    "accumulate": (int, "forward passes per optimizer step (default 1)"),
    "lr": (float, "peak learning rate (default 0.001)"),
    "warmup": (int, "steps of linear warm-up; then cosine decay to 0 (default 200)"),
    "weight_decay": (float, "of AdamW (default 0.01)"),
    "clip": (float, "norm to which gradients are clipped (default 1)"),
    "ema": (float, "decay of the averaged weights (default 0.999)"),
    "label_dropout": (float, "share of labels replaced by the null label, for guidance (default 0.1)"),
    "crop": (int, "random crop out of images CROP pixels larger (default 0)"),
    "seed": (int, "makes the run reproducible (default 0)"),
    "save_every": (int, "steps between checkpoints (default 250)"),
    "sample_every": (int, "steps between sample grids, 0 for none (default 1000)"),
}
DEFAULT_MODEL = {"channels": 64, "channel_mult": [1, 2, 2], "res_blocks": 2, "attention": [1]}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--preset", help="a named run to start from: digits, the model that ships")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="fields of a run, as config.json has them")
    for options in (TRAIN_OPTIONS, MODEL_OPTIONS):
        for name, (kind, text) in options.items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=name.upper(), help=text)
    parser.add_argument("--loss", metavar="LOSS", help="simple (default), min_snr, bound, or hybrid: learned variance")
    parser.add_argument("--schedule", metavar="NAME", help="linear (default), scaled_linear, cosine or sigmoid")
    parser.add_argument("--flip", action="store_true", default=None, help="mirror half of the images")
    parser.add_argument("--precision", metavar="KIND", help="auto (default: bf16 on CUDA and AMX), fp32 or bf16")
    parser.add_argument("--device", default="auto", help="auto (default: CUDA if there is one), cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--save-diffusers", type=Path, metavar="DIR", help="also write the result as a diffusers folder"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in DIR; an error where there is none")
    again.add_argument(
        "--fresh", action="store_true", help="start over, whatever DIR holds (default: resume if it can)"
    )


def asked_for(args: argparse.Namespace) -> dict:
    """The fields that preset, config file and options set, in rising order of weight. `model` holds set ones only."""
    from .config import PRESETS

    layers: list[dict] = []
    if args.preset is not None:
        if args.preset not in PRESETS:
            raise OptionError(f"preset: expected one of {', '.join(PRESETS)}, got {args.preset!r}")
        layers.append(PRESETS[args.preset])
    if args.config is not None:
        layers.append(_read_config(args.config))
    flags = {k: getattr(args, k) for k in (*TRAIN_OPTIONS, "loss", "flip", "precision")}
    if args.schedule is not None:
        flags["schedule"] = {"name": args.schedule, "T": 1000}
    flags = {k: v for k, v in flags.items() if v is not None}
    flags["model"] = {k: v for k in MODEL_OPTIONS if (v := getattr(args, k)) is not None}
    fields: dict = {}
    model: dict = {}
    for layer in (*layers, flags):
        model |= layer.get("model", {})
        fields |= layer
    return fields | {"model": model}


def _read_config(path: Path) -> dict:
    import dataclasses

    from ..reference.unet import UNetConfig
    from .config import TrainConfig

    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise OptionError(f"config: expected a JSON file, cannot read {path}: {e}") from e
    for what, kind, values in (
        ("config", TrainConfig, content),
        ("model", UNetConfig, content.get("model", {}) if isinstance(content, dict) else {}),
    ):
        if not isinstance(values, dict):
            raise OptionError(f"{what}: expected a JSON object in {path}, got {type(values).__name__}")
        known = {f.name for f in dataclasses.fields(kind)}
        if unknown := sorted(values.keys() - known):
            raise OptionError(f"{what}: unknown field {unknown[0]!r} in {path}, expected {', '.join(sorted(known))}")
    return content


def new_run(fields: dict) -> tuple[TrainConfig, Data]:
    """The data, and the config with what the data decides: image size, channels, classes."""
    from .config import TrainConfig
    from .data import load

    if "data" not in fields:
        raise OptionError("data: expected mnist5k or a folder of images (--data, --preset or --config), got none")
    model = DEFAULT_MODEL | fields["model"]
    if fields.get("loss") == "hybrid":
        model.setdefault("learned_variance", True)
    cfg = TrainConfig(**{**fields, "model": {}})
    cfg_crop = cfg.crop if isinstance(cfg.crop, int) and cfg.crop >= 0 else 0
    data = load(cfg.data, model.get("image_size"), model.get("in_channels"), cfg_crop)
    height, width, channels = data.shape
    classes = None if data.labels is None else len(data.class_names)
    for name, value in (
        ("image_size", [height - cfg_crop, width - cfg_crop]),
        ("in_channels", channels),
        ("num_classes", classes),
    ):
        if list(_pair(model.setdefault(name, value))) != list(_pair(value)):
            raise OptionError(f"{name}: the data has {value}, the config says {model[name]}")
    cfg.model, cfg.class_names, cfg.images = model, data.class_names, len(data)
    cfg.validate()
    return cfg, data


def _pair(value: object) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def old_run(path: Path, fields: dict) -> tuple[TrainConfig, Data]:
    """The run whose state that is. OptionError where `fields` or the data would make it another one."""
    import dataclasses

    from . import checkpoint
    from .config import MAY_CHANGE
    from .data import load

    _, cfg, _ = checkpoint.read(path)
    stored = dataclasses.asdict(cfg)
    pairs = [(k, stored.get(k), v) for k, v in fields.items() if k not in ("model", *MAY_CHANGE)]
    pairs += [(k, stored["model"].get(k), v) for k, v in fields["model"].items()]
    for name, was, now in pairs:
        if json.dumps(was) != json.dumps(now):  # lists and tuples are one
            raise OptionError(f"{name}: the run in {path.parent} has {was!r}, got {now!r}; --fresh starts over")
    for name in MAY_CHANGE:
        setattr(cfg, name, fields.get(name, stored[name]))
    unet = cfg.unet()
    data = load(cfg.data, unet.image_size, unet.in_channels, cfg.crop)
    if data.class_names != cfg.class_names or cfg.images not in (0, len(data)):
        raise OptionError(
            f"data: the run in {path.parent} began with {cfg.images or 'other'} images, classes {list(cfg.class_names)}; "
            f"now there are {len(data)}, {list(data.class_names)}; --fresh starts over"
        )
    cfg.images = len(data)
    cfg.validate()
    return cfg, data


def main(args: argparse.Namespace) -> int:
    import torch

    from . import checkpoint
    from .diffusers_folder import save_diffusers, unet_config
    from .distributed import Group
    from .run import run

    if args.threads is not None:
        if args.threads < 1:
            raise OptionError(f"threads: expected at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    state = args.out / checkpoint.STATE
    if args.resume and not state.exists():
        raise OptionError(f"resume: expected a run in {args.out}, found no {checkpoint.STATE}")
    fields = asked_for(args)
    going_on = state.exists() and not args.fresh
    cfg, data = old_run(state, fields) if going_on else new_run(fields)
    if args.save_diffusers is not None:
        unet_config(cfg.unet())  # refuses before hours are spent
    group = Group.join(device)
    try:
        if group.is_first:
            _write_config(args.out, cfg)
        trainer = run(cfg, data, args.out, device=device, group=group, resume=going_on)
        if args.save_diffusers is not None and group.is_first:
            save_diffusers(trainer.averaged(), cfg, args.save_diffusers)
    except OSError as e:
        raise OptionError(f"out: expected folders that can be written, got {args.out}: {e}") from e
    finally:
        group.leave()
    if group.is_first:
        print(args.out / checkpoint.MODEL)
    return 0


def _device(name: str):
    import os

    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device: expected auto, cpu or cuda, got {name!r}")
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise OptionError("device: expected a CUDA device, torch finds none")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _write_config(folder: Path, cfg: TrainConfig) -> None:
    import dataclasses
    import os

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".config.part"
    part.write_text(json.dumps(dataclasses.asdict(cfg), indent=2) + "\n")
    os.replace(part, folder / "config.json")
