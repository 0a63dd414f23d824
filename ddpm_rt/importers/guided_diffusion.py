"""A .pt of openai's guided-diffusion or improved-diffusion: a state dict, and nothing else.

What shapes tell is read off them. What they do not (heads, the order of qkv, the noise schedule, the number of steps) comes
from the flags of the scripts: a preset of a published file, or `flags`. Two orders of qkv have the same shapes, and the wrong
one gives pictures that are only worse, so neither is ever guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import kernels
from ..errors import OptionError, PlanError
from . import torch_file
from .guided_unet import GuidedClassifier, GuidedUNet, UNetShape
from .imported import Imported, digest, load_state, own_settings

_ADM = {"diffusion_steps": 1000, "noise_schedule": "linear", "num_head_channels": 64}
_IDDPM = {"diffusion_steps": 4000, "noise_schedule": "cosine", "num_heads": 4, "rescale_timesteps": True}
_LSUN = _IDDPM | {
    "image_size": 256,
    "num_heads": 1,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
}
_WIDE = _ADM | {"image_size": 256}
#: Published files by name, with the flags of their projects' READMEs that shapes do not tell.
PRESETS: dict[str, dict[str, Any]] = {
    "64x64_diffusion": _ADM | {"image_size": 64, "noise_schedule": "cosine", "use_new_attention_order": True},
    "128x128_diffusion": {"image_size": 128, "diffusion_steps": 1000, "noise_schedule": "linear", "num_heads": 4},
    "256x256_diffusion": _WIDE,
    "256x256_diffusion_uncond": _WIDE,
    "512x512_diffusion": _ADM | {"image_size": 512},
    "64_256_upsampler": {"image_size": 256, "small_size": 64, "diffusion_steps": 1000, "noise_schedule": "linear", "num_heads": 4},
    "128_512_upsampler": _ADM | {"image_size": 512, "small_size": 128},
    "lsun_bedroom": _WIDE,
    "lsun_cat": _WIDE,
    "lsun_horse": _WIDE,
    "lsun_horse_nodropout": _WIDE,
    "64x64_classifier": _ADM | {"image_size": 64},
    "128x128_classifier": _ADM | {"image_size": 128},
    "256x256_classifier": _WIDE,
    "512x512_classifier": _ADM | {"image_size": 512},
    "imagenet64_uncond_100M_1500K": _IDDPM | {"image_size": 64},
    "imagenet64_uncond_vlb_100M_1500K": _IDDPM | {"image_size": 64},
    "imagenet64_cond_270M_250K": _IDDPM | {"image_size": 64, "rescale_timesteps": False},
    "cifar10_uncond_50M_500K": _IDDPM | {"image_size": 32},
    "cifar10_uncond_vlb_50M_500K": _IDDPM | {"image_size": 32},
    "upsample_cond_500K": _IDDPM | {"image_size": 256, "small_size": 64, "noise_schedule": "linear", "rescale_timesteps": False},
    "lsun_uncond_100M_1200K_bs128": _LSUN,
    "lsun_uncond_100M_2400K_bs64": _LSUN,
}  # fmt: skip
#: Flags with the scripts' defaults; None: asked for, or read off the shapes.
FLAGS: dict[str, Any] = {
    "image_size": None, "num_heads": 4, "num_heads_upsample": -1, "num_head_channels": -1, "use_new_attention_order": False,
    "noise_schedule": "linear", "diffusion_steps": 1000, "rescale_timesteps": False, "predict_xstart": False,
    "sigma_small": False, "timestep_respacing": "", "use_ddim": False, "small_size": None,
}  # fmt: skip
_NEEDED = ("image_size", "noise_schedule", "diffusion_steps")
_SHAPED = ("num_channels", "num_res_blocks", "attention_resolutions", "channel_mult", "class_cond", "learn_sigma", "dropout",
           "use_scale_shift_norm", "resblock_updown", "use_fp16", "use_checkpoint", "large_size")  # fmt: skip


def read(path: Path, *, preset: str | None = None, flags: Mapping[str, Any] | None = None) -> Imported:
    """Args:
        preset: one of `PRESETS`; None: the file's own name where it is one of them.
        flags: of image_sample.py, over the preset; without a preset image_size, noise_schedule, diffusion_steps, and num_heads
            or num_head_channels are needed.

    Raises:
        PlanError: the file's tensors do not make such a network. OptionError: a flag.
    """
    state = torch_file.load(path)
    given = flags_of(path, preset, flags)
    shape = shape_of(path, state, given)
    if "output_blocks.0.0.in_layers.0.weight" not in state:
        raise PlanError(f"{path}: expected a network that predicts noise, got a classifier: give it as classifier= beside one")  # fmt: skip
    plain = shape.in_channels in (shape.out_channels, shape.out_channels // 2)
    enlarges = not plain or (
        shape.in_channels == shape.out_channels and shape.in_channels % 2 == 0
    )  # x and an image beside it
    small = given["small_size"]
    if enlarges and small is None:
        raise OptionError("flags.small_size: expected the size of an upsampler's small images, as the file does not tell it, got none")
    if small is not None and not enlarges:
        raise OptionError(f"flags.small_size: expected it unset, as {path.name} is no upsampler, got {small!r}")
    net = _built(GuidedUNet, shape, state, path)
    classes, channels = shape.num_classes, shape.in_channels // 2 if enlarges else shape.in_channels
    module = _WithNull(net, classes) if classes else _Unconditional(net)
    conditions = {"low_res": {"shape": [channels, small, small], "role": "map", "null": "same"}} if enlarges else {}
    settings = own_settings(
        alpha_bar_of(given), "x0" if given["predict_xstart"] else "eps", _sampling(given, shape),
        variance="learned_range" if shape.out_channels == 2 * channels else "fixed",
        time_scale=1000 / given["diffusion_steps"] if given["rescale_timesteps"] else 1.0,
    )  # fmt: skip
    return Imported(
        _Upsampler(module) if enlarges else module, (channels, shape.image_size, shape.image_size), settings,
        f"guided-diffusion {path.name}.", {"checkpoint_sha256": digest(path)}, classes,
        defaults={"scale": 1.0} if classes else {}, uint8="truncate", conditions=conditions,
    )  # fmt: skip


class _Unconditional(nn.Module):
    """Takes no label, which a classifier beside it does."""

    def __init__(self, net: GuidedUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)


class _WithNull(nn.Module):
    """Its class embedding has no row for "no class": a zero one, which it was not trained with."""

    def __init__(self, net: GuidedUNet, classes: int) -> None:
        super().__init__()
        self.net = net
        table = net.label_emb.weight.detach()
        net.label_emb = nn.Embedding.from_pretrained(nn.functional.pad(table, (0, 0, 0, 1)))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.net(x, t, label)


class _Upsampler(nn.Module):
    """The projects' SuperResModel: x and the small image, enlarged, side by side."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, *label: Tensor, low_res: Tensor) -> Tensor:
        enlarged = nn.functional.interpolate(low_res, x.shape[-2:], mode="bilinear")
        return self.net(torch.cat([x, enlarged], dim=1), t, *label)


def network(path: str | Path, preset: str | None = None, flags: Mapping[str, Any] | None = None) -> GuidedUNet:
    """The network of any of the files, upsamplers too (x and the enlarged image side by side, 6 channels)."""
    path = Path(path)
    state = torch_file.load(path)
    return _built(GuidedUNet, shape_of(path, state, flags_of(path, preset, flags)), state, path)


def classifier(path: str | Path, preset: str | None = None, flags: Mapping[str, Any] | None = None) -> GuidedClassifier:
    """(x, t) -> logits, of a classifier's file."""
    path = Path(path)
    state = torch_file.load(path)
    return _built(GuidedClassifier, shape_of(path, state, flags_of(path, preset, flags)), state, path)


def with_classifier(found: Imported, given: Any) -> Any:
    """A classifier's .pt as the module it is, checked against the images of `found`, which gets its classes where it has none."""
    if not isinstance(given, (str, os.PathLike)) or Path(given).suffix.lower() != ".pt":
        return given
    flags = {"image_size": found.shape[1], "noise_schedule": "linear", "diffusion_steps": 1000, "num_head_channels": 64}
    judge = classifier(given, flags=flags)
    if judge.s.in_channels != found.shape[0] or found.num_classes not in (None, judge.s.out_channels):
        raise OptionError(
            f"classifier: expected one of {found.num_classes or 'any number of'} classes for images of {found.shape[0]} channels, got "
            f"{judge.s.out_channels} classes and {judge.s.in_channels} channels"
        )
    found.num_classes = judge.s.out_channels
    found.sources["classifier_sha256"] = digest(Path(given))
    return judge


def _built(kind: type, shape: UNetShape, state: Mapping[str, Any], path: Path) -> Any:
    try:
        net = kind(shape)
    except (ValueError, IndexError, RuntimeError) as e:
        raise PlanError(f"{path}: expected tensors that make a network of {len(shape.widths)} levels, got: {e}") from e
    return load_state(net, state, str(path))


def flags_of(path: Path, preset: str | None, flags: Mapping[str, Any] | None) -> dict[str, Any]:
    name = preset or re.sub(r"\.pt$", "", path.name)
    if preset is not None and preset not in PRESETS:
        raise OptionError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    chosen, own = PRESETS.get(name), dict(flags or {})
    for key, value in own.items():
        if key in _SHAPED:
            raise OptionError(f"flags.{key}: expected it unset, as it is read off the file, got {value!r}")
        if key not in FLAGS:
            raise OptionError(f"flags.{key}: expected one of {', '.join(FLAGS)}, got an unknown one")
    given = (chosen or {}) | own
    missing = [k for k in _NEEDED if k not in given]
    if missing or not {"num_heads", "num_head_channels"} & set(given):
        raise OptionError(
            f"flags.{(missing or ['num_heads'])[0]}: expected it, or a preset ({', '.join(PRESETS)}), as the file does not tell it, "
            "got neither"
        )
    all_flags = FLAGS | given
    sizes = ("image_size", "diffusion_steps", "num_heads", "num_head_channels", "num_heads_upsample")
    for key in (*sizes, "small_size") if all_flags["small_size"] is not None else sizes:
        if isinstance(all_flags[key], bool) or not isinstance(all_flags[key], int) or not all_flags[key]:
            raise OptionError(f"flags.{key}: expected a whole number, got {all_flags[key]!r}")
    for key in ("use_new_attention_order", "rescale_timesteps", "predict_xstart", "sigma_small", "use_ddim"):
        if not isinstance(all_flags[key], bool):
            raise OptionError(f"flags.{key}: expected True or False, got {all_flags[key]!r}")
    return all_flags


def shape_of(path: Path, state: Mapping[str, Any], flags: Mapping[str, Any]) -> UNetShape:
    """The network by the names and shapes of its tensors, and by its flags."""

    def size(name: str, axis: int = 0) -> int:
        if name not in state:
            raise PlanError(f"{path}: {name}: expected a tensor of such a network, found none")
        return int(state[name].shape[axis])

    blocks = {
        i: {k.split(".")[2] for k in state if k.startswith(f"input_blocks.{i}.")} for i in range(1, _count(state))
    }
    attends = {i: f"input_blocks.{i}.1.qkv.weight" in state for i in blocks}
    ends = [i for i in blocks if f"input_blocks.{i}.0.op.weight" in state]
    residual = not ends
    per_level = _blocks_per_level(path, state, ends, len(blocks))
    starts = range(1, len(blocks) + 1, per_level + 1)
    widths = tuple(size(f"input_blocks.{i}.0.out_layers.3.weight") for i in starts)
    film_rows = size("input_blocks.1.0.emb_layers.1.weight")
    is_classifier = "out.2.c_proj.weight" in state
    head_channels = flags["num_head_channels"]
    heads = flags["num_heads"]
    return UNetShape(
        image_size=flags["image_size"],
        in_channels=size("input_blocks.0.0.weight", 1),
        out_channels=size("out.2.c_proj.weight" if is_classifier else "out.2.weight"),
        channels=size("time_embed.0.weight", 1),
        widths=widths,
        blocks=per_level,
        attention=tuple(level for level, i in enumerate(starts) if attends[i]),
        heads=(heads, heads if flags["num_heads_upsample"] == -1 else flags["num_heads_upsample"]),
        head_channels=None if head_channels == -1 else head_channels,
        new_order=flags["use_new_attention_order"],
        residual_sampling=residual and len(widths) > 1,
        film=film_rows == 2 * widths[0],
        num_classes=size("label_emb.weight") if "label_emb.weight" in state else None,
    )


def _count(state: Mapping[str, Any]) -> int:
    return 1 + max((int(m[1]) for k in state if (m := re.match(r"input_blocks\.(\d+)\.", k))), default=0)


def _blocks_per_level(path: Path, state: Mapping[str, Any], ends: list[int], count: int) -> int:
    """count = levels (per_level + 1) - 1, where each level but the last ends in a block that halves the image."""
    if ends:
        return ends[0] - 1
    ups = [int(m[1]) for k in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight", k))]
    if ups:  # the last block of a level on the way up enlarges
        return min(ups)
    # A classifier: a block that halves has no attention behind it where its level attends, and never widens.
    levels = [n for n in range(1, count + 1) if (count + 1) % (n + 1) == 0 and _fits(state, n, count)]
    if not levels:
        raise PlanError(f"{path}: input_blocks: expected levels of equal length, got {count} blocks")
    return levels[0]


def _fits(state: Mapping[str, Any], per_level: int, count: int) -> bool:
    ends = range(per_level + 1, count, per_level + 1)
    attends = [f"input_blocks.{i}.1.qkv.weight" in state for i in range(1, count + 1)]
    levels = [attends[i - 1 : i - 1 + per_level] for i in range(1, count + 1, per_level + 1)]
    return (
        not any(attends[i - 1] or f"input_blocks.{i}.0.skip_connection.weight" in state for i in ends)
        and all(len(set(level)) == 1 for level in levels)
        and all(f"input_blocks.{i + k}.0.skip_connection.weight" not in state
                for i in range(1, count + 1, per_level + 1) for k in range(1, per_level))
    )  # fmt: skip


def alpha_bar_of(flags: Mapping[str, Any]) -> np.ndarray:
    """Nichol & Dhariwal: linear betas from 0.1 / T to 20 / T, or the cosine schedule of eq. 17."""
    T, name = flags["diffusion_steps"], flags["noise_schedule"]
    if name == "linear":
        return np.cumprod(1 - np.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T))
    if name == "cosine":
        return kernels.alpha_bar({"name": "cosine", "T": T})
    raise OptionError(f"flags.noise_schedule: expected linear or cosine, got {name!r}")


def _sampling(flags: Mapping[str, Any], shape: UNetShape) -> dict[str, Any]:
    sampler = "ddim" if flags["use_ddim"] else "ddpm"
    to: dict[str, Any] = {
        "compat": "guided-diffusion",
        "sampler": sampler,
        "clip": "rederive",
        "clip_range": [-1.0, 1.0],
    }
    if flags["timestep_respacing"]:
        to["grid"] = str(flags["timestep_respacing"])
    elif flags["use_ddim"]:
        to["grid"] = str(flags["diffusion_steps"])
    if sampler == "ddpm" and shape.out_channels != 2 * shape.in_channels:
        to["variance"] = "fixed_small" if flags["sigma_small"] else "fixed_large"
    return to
