"""A diffusers folder of a trained network: model_index.json, unet/, scheduler/, loadable by diffusers itself.

The two architectures are one under other names: flip_sin_to_cos (cosines first), freq_shift 0 (frequencies over half the
width), FiLM as resnet_time_scale_shift "scale_shift", the null label as the last of num_class_embeds = K + 1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import OptionError
from ..reference.unet import Attention, Level, ResBlock, UNet, UNetConfig, Upsample
from .config import TrainConfig

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def unet_config(cfg: UNetConfig) -> dict:
    """UNet2DModel's config.json. OptionError naming the field that it has no counterpart for."""
    widths = [cfg.channels * m for m in cfg.channel_mult]
    if cfg.patch != 1:
        raise OptionError(f"patch: diffusers' UNet2DModel has none, expected 1, got {cfg.patch}")
    if cfg.channel_mult[0] != 1:
        raise OptionError(
            f"channel_mult: UNet2DModel's first level is its stem, expected a leading 1, got {cfg.channel_mult}"
        )
    attending = {widths[i] for i in cfg.attention} | {widths[-1]}  # the middle always attends
    if cfg.heads > 1 and len(attending) > 1:
        raise OptionError(
            f"heads: UNet2DModel fixes the width of a head, not their number; expected 1, or attention at one width "
            f"alone, got {cfg.heads} heads at widths {sorted(attending)}"
        )
    attends = [i in cfg.attention for i in range(len(widths))]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": list(cfg.image_size),
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": cfg.res_blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": cfg.dropout,
        "act_fn": "silu",
        "attention_head_dim": None if cfg.heads == 1 else widths[-1] // cfg.heads,
        "norm_num_groups": cfg.groups,
        "attn_norm_num_groups": cfg.groups,  # absent, the middle has none with scale_shift
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if cfg.film else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None if cfg.num_classes is None else cfg.num_classes + 1,
    }


def unet_weights(model: UNet) -> dict[str, Tensor]:
    """UNet2DModel's state dict."""
    out: dict[str, Tensor] = {}

    def copy(name: str, module: nn.Module) -> None:
        for key, value in module.state_dict().items():
            out[f"{name}.{key}"] = value

    def resnet(name: str, block: ResBlock) -> None:
        parts = {"norm1": block.norm1, "conv1": block.conv1, "time_emb_proj": block.emb}
        for key, module in (parts | {"norm2": block.norm2, "conv2": block.conv2}).items():
            copy(f"{name}.{key}", module)
        if isinstance(block.skip, nn.Conv2d):
            copy(f"{name}.conv_shortcut", block.skip)

    def attention(name: str, block: Attention) -> None:
        copy(f"{name}.group_norm", block.norm)
        for i, key in enumerate(("to_q", "to_k", "to_v")):  # 1x1 convolutions are linear layers over positions
            out[f"{name}.{key}.weight"] = block.qkv.weight.chunk(3)[i][:, :, 0, 0]
            out[f"{name}.{key}.bias"] = block.qkv.bias.chunk(3)[i]
        out[f"{name}.to_out.0.weight"], out[f"{name}.to_out.0.bias"] = block.out.weight[:, :, 0, 0], block.out.bias

    def stage(name: str, layers: nn.ModuleList) -> None:
        for i, level in enumerate(layer for layer in layers if isinstance(layer, Level)):
            resnet(f"{name}.resnets.{i}", level.block)
            if isinstance(level.attention, Attention):
                attention(f"{name}.attentions.{i}", level.attention)
        if isinstance(layers[-1], Upsample):
            copy(f"{name}.upsamplers.0", layers[-1])
        elif isinstance(layers[-1], nn.Conv2d):
            copy(f"{name}.downsamplers.0.conv", layers[-1])

    copy("conv_in", model.stem)
    copy("time_embedding.linear_1", model.time[0])
    copy("time_embedding.linear_2", model.time[2])
    if model.label is not None:
        copy("class_embedding", model.label)
    for i, layers in enumerate(model.down):
        stage(f"down_blocks.{i}", layers)
    stage("mid_block", model.middle)
    for i, layers in enumerate(model.up):
        stage(f"up_blocks.{i}", layers)
    copy("conv_norm_out", model.norm)
    copy("conv_out", model.head)
    return {k: v.detach().cpu().contiguous() for k, v in out.items()}


def scheduler_config(cfg: TrainConfig) -> dict:
    """DDPMScheduler's config; its other schedulers load it too. A schedule that it cannot name is written out."""
    spec = dict(cfg.schedule)
    name, T = spec.pop("name", "linear"), spec.pop("T", 1000)
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": T}
    if name in BETA_SCHEDULES and not spec:
        defaults = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
        start, end = defaults.get(name, defaults["linear"])
        config |= {"beta_schedule": BETA_SCHEDULES[name], "beta_start": start, "beta_end": end}
    else:
        betas = cfg.make_schedule().betas.tolist()
        config |= {"num_train_timesteps": len(betas), "beta_schedule": "linear", "trained_betas": betas}
    learned = cfg.unet().learned_variance
    return config | {
        "variance_type": "learned_range" if learned else "fixed_small",
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }


def save_diffusers(model: UNet, cfg: TrainConfig, folder: str | Path) -> None:
    """Writes the folder, model_index.json last. OptionError, before anything is written, where diffusers has no such
    network; the message names the field."""
    folder, config = Path(folder), unet_config(model.cfg)
    files = {
        "unet/config.json": config,
        "scheduler/scheduler_config.json": scheduler_config(cfg),
        "model_index.json": {
            "_class_name": "DDPMPipeline",
            "_diffusers_version": "0.30.0",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    }
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    part = folder / "unet" / ".weights.part"
    with torch.no_grad():
        save_file(unet_weights(model), part, metadata={"format": "pt"})
    os.replace(part, folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(part, path)
