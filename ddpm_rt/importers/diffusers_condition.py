"""UNet2DConditionModel of a diffusers folder: a network of latents that attends to a sequence of vectors, as text encoders make them.

The sequence is a condition of the request (`encoder_hidden_states`), as are SDXL's `text_embeds` and `time_ids`. Text encoders and
VAE are not part of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import PlanError
from .imported import Imported
from .scheduler import Scheduler

_TEXT_LENGTH = 77  # CLIP's, which every published network of this class was trained with
_UNSUPPORTED = ("encoder_hid_dim_type", "time_cond_proj_dim", "class_embed_type")


class Conditional(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, encoder_hidden_states_mask: Tensor,
        text_embeds: Tensor | None = None, time_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(
            x, t, encoder_hidden_states, encoder_attention_mask=encoder_hidden_states_mask, added_cond_kwargs=added, return_dict=False
        )[0]  # fmt: skip


def read(module: nn.Module, settings: Scheduler, origin: str, sources: dict[str, str]) -> Imported:
    """PlanError naming the key of config.json that has no counterpart."""
    c = module.config
    for key in _UNSUPPORTED:
        if getattr(c, key, None) is not None:
            raise PlanError(f"config.json: {key}: expected null, got {getattr(c, key)!r}: such a condition has no counterpart")
    if c.in_channels != c.out_channels:
        raise PlanError(f"config.json: in_channels: expected out_channels = {c.out_channels}, got {c.in_channels}: inpainting "
                        "networks take further images")  # fmt: skip
    widths = {c.cross_attention_dim} if isinstance(c.cross_attention_dim, int) else set(c.cross_attention_dim)
    if len(widths) != 1:
        raise PlanError(f"config.json: cross_attention_dim: expected one width, got {sorted(widths)}")
    conditions: dict[str, dict[str, Any]] = {
        "encoder_hidden_states": {"shape": [widths.pop()], "max_length": _TEXT_LENGTH, "mask": True, "role": "text", "null": None}
    }
    if c.addition_embed_type == "text_time":
        ids = 6  # original size, crop and target size
        text = c.projection_class_embeddings_input_dim - ids * c.addition_time_embed_dim
        conditions |= {"text_embeds": {"shape": [text], "null": None}, "time_ids": {"shape": [ids], "null": "same"}}
    elif c.addition_embed_type is not None:
        raise PlanError(f"config.json: addition_embed_type: expected null or text_time, got {c.addition_embed_type!r}")
    size = (c.sample_size, c.sample_size) if isinstance(c.sample_size, int) else tuple(c.sample_size)
    if c.num_class_embeds is not None:
        raise PlanError(f"config.json: num_class_embeds: expected null, got {c.num_class_embeds}: labels beside text have no counterpart")
    return Imported(
        Conditional(module), (c.in_channels, *size), settings, origin, sources, role="latent", keeps_variance=False,
        conditions=conditions,
    )  # fmt: skip
