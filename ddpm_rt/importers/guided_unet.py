"""The U-Net of improved-diffusion and guided-diffusion, under the names of its published weights.

Nichol & Dhariwal 2021 (2102.09672) appendix A; Dhariwal & Nichol 2021 (2105.05233) section 3 and appendix F (the classifier's
attention pooling after CLIP). Names in the weights: input_blocks, middle_block, output_blocks and, in each block, one of

| keys                                  | layer                                                                  |
|---------------------------------------|------------------------------------------------------------------------|
| in_layers, emb_layers, out_layers     | residual block; `sampling` "down" or "up" where the levels change by it |
| norm, qkv, proj_out                   | attention                                                              |
| op / conv                             | convolution of stride 2 / nearest neighbour and convolution            |
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class UNetShape:
    """channels: of the first level, `model_channels`. widths: of each level. attention: the levels (0 the finest) that attend.

    heads: (down, up) where head_channels is None. new_order: qkv is [3, heads, d] and not [heads, 3, d] (2105.05233's code).
    residual_sampling: levels change by residual blocks. film: scale and shift by the embedding.
    """

    image_size: int
    in_channels: int
    out_channels: int
    channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: tuple[int, int]
    head_channels: int | None
    new_order: bool
    residual_sampling: bool
    film: bool
    num_classes: int | None = None


class Norm(nn.GroupNorm):
    def __init__(self, width: int) -> None:
        super().__init__(32, width)


def _resampled(x: Tensor, sampling: str) -> Tensor:
    if sampling == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if sampling == "up" else x


class ResBlock(nn.Module):
    def __init__(self, width: int, out: int, emb: int, film: bool, sampling: str = "") -> None:
        super().__init__()
        self.film, self.sampling = film, sampling
        self.in_layers = nn.Sequential(Norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if film else out))
        self.out_layers = nn.Sequential(Norm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](_resampled(self.in_layers[1](self.in_layers[0](x)), self.sampling))
        row = self.emb_layers(emb)[:, :, None, None]
        if self.film:
            scale, shift = row.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + row)
        h = self.out_layers[3](self.out_layers[1](h))
        return self.skip_connection(_resampled(x, self.sampling)) + h


def attended(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """qkv [B, 3 heads d, N] -> [B, heads d, N]"""
    n, d = qkv.shape[2], qkv.shape[1] // (3 * heads)
    if new_order:
        q, k, v = qkv.reshape(-1, 3, heads, d, n).unbind(1)
    else:
        q, k, v = qkv.reshape(-1, heads, 3, d, n).unbind(2)
    weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(d), dim=-1)  # [B, heads, N of q, N of k]
    return (v @ weights.transpose(2, 3)).reshape(-1, heads * d, n)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = Norm(width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        flat = x.flatten(2)
        h = self.proj_out(attended(self.qkv(self.norm(flat)), self.heads, self.new_order))
        return (flat + h).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(_resampled(x, "up"))


class Stem(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Chain(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb)
        return x


def _embedding(t: Tensor, width: int) -> Tensor:
    """Cosines first, frequencies 10000^(-k / half).  [B] -> [B, width]"""
    half = width // 2
    angles = t[:, None] * torch.exp(
        torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000) / half)
    )
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Encoder(nn.Module):
    """What U-Net and classifier share: time, the way down and the middle."""

    def __init__(self, s: UNetShape) -> None:
        super().__init__()
        self.s, emb = s, 4 * s.channels
        self.time_embed = nn.Sequential(nn.Linear(s.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if s.num_classes is not None:
            self.label_emb = nn.Embedding(s.num_classes, emb)
        width = s.widths[0]
        self.skips = [width]
        self.input_blocks = nn.ModuleList([Chain(Stem(s.in_channels, width, 3, padding=1))])
        for level, out in enumerate(s.widths):
            for _ in range(s.blocks):
                self.input_blocks.append(self._level(width, out, level, 0))
                width = out
                self.skips.append(width)
            if level + 1 < len(s.widths):
                down = ResBlock(width, width, emb, s.film, "down") if s.residual_sampling else Down(width)
                self.input_blocks.append(Chain(down))
                self.skips.append(width)
        self.middle_block = Chain(
            ResBlock(width, width, emb, s.film), self._attention(width, 0), ResBlock(width, width, emb, s.film)
        )

    def _attention(self, width: int, up: int) -> Attention:
        heads = self.s.heads[up] if self.s.head_channels is None else width // self.s.head_channels
        return Attention(width, heads, self.s.new_order)

    def _level(self, width: int, out: int, level: int, up: int) -> Chain:
        layers: list[nn.Module] = [ResBlock(width, out, 4 * self.s.channels, self.s.film)]
        if level in self.s.attention:
            layers.append(self._attention(out, up))
        return Chain(*layers)

    def embedding(self, t: Tensor) -> Tensor:
        return self.time_embed(_embedding(t, self.s.channels))


class GuidedUNet(Encoder):
    """(x [B, C, H, W], t [B], y [B] int64 or None) -> [B, C or 2C, H, W]"""

    def __init__(self, s: UNetShape) -> None:
        super().__init__(s)
        width, skips, emb = s.widths[-1], list(self.skips), 4 * s.channels
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(s.widths))):
            for i in range(s.blocks + 1):
                chain = self._level(width + skips.pop(), s.widths[level], level, 1)
                width = s.widths[level]
                if level > 0 and i == s.blocks:
                    chain.append(ResBlock(width, width, emb, s.film, "up") if s.residual_sampling else Up(width))
                self.output_blocks.append(chain)
        self.out = nn.Sequential(Norm(width), nn.SiLU(), nn.Conv2d(width, s.out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedding(t)
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


class AttentionPool(nn.Module):
    """The attended mean token, after CLIP.  [B, C, S, S] -> [B, K]"""

    def __init__(self, size: int, width: int, head_channels: int, out: int) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.positional_embedding = nn.Parameter(torch.zeros(width, size**2 + 1))
        self.qkv_proj, self.c_proj = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        tokens = torch.cat([flat.mean(dim=2, keepdim=True), flat], dim=2) + self.positional_embedding
        return self.c_proj(attended(self.qkv_proj(tokens), self.heads, True))[:, :, 0]


class GuidedClassifier(Encoder):
    """(x [B, C, H, W], t [B]) -> logits [B, K]; with pooling by attention, as all published classifiers have it."""

    def __init__(self, s: UNetShape) -> None:
        super().__init__(s)
        size, width = s.image_size >> (len(s.widths) - 1), s.widths[-1]
        pool = AttentionPool(size, width, s.head_channels or 64, s.out_channels)
        self.out = nn.Sequential(Norm(width), nn.SiLU(), pool)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.embedding(t)
        for block in self.input_blocks:
            x = block(x, emb)
        return self.out(self.middle_block(x, emb))
