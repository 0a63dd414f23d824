"""The epsilon-U-Net of DDPM, in plain PyTorch.

Sources: Ho et al. 2020 (arXiv 2006.11239, appendix B) for the network; Nichol & Dhariwal 2021 (2102.09672) for the
FiLM time embedding and the learned-variance channels; Ho & Salimans 2022 (2207.12598) for the null label.

Notation: B batch, C channels, H W pixels, E width of the time embedding, K classes, t timestep index in [0, T).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Everything that fixes the network's shape; stored as JSON beside its weights.

    `patch` > 1 folds patch x patch pixels into channels before the first convolution and unfolds them after the last,
    so that every level works on H/patch x W/patch. `attention` names the levels (0 = finest) with self-attention.
    `film=False` adds the time embedding as DDPM does; `film=True` scales and shifts the second normalisation with it.
    """

    image_size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    res_blocks: int = 2
    attention: tuple[int, ...] = (1,)
    heads: int = 1
    groups: int = 32
    num_classes: int | None = None
    dropout: float = 0.0
    patch: int = 1
    film: bool = True
    learned_variance: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "channel_mult", "attention"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("in_channels", "channels", "res_blocks", "heads", "groups", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult: expected at least one factor of at least 1, got {self.channel_mult}")
        if any(not 0 <= level < len(self.channel_mult) for level in self.attention):
            raise ValueError(f"attention: expected levels in 0..{len(self.channel_mult) - 1}, got {self.attention}")
        if self.channels % 2:  # half of the time features are cosines, half sines
            raise ValueError(f"channels: expected an even number, got {self.channels}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes: expected None or at least 1, got {self.num_classes}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        stride = self.patch * 2 ** (len(self.channel_mult) - 1)
        if any(size % stride for size in self.image_size):
            raise ValueError(
                f"image_size: expected multiples of {stride} (patch x down-sampling), got {self.image_size}"
            )
        for i, mult in enumerate(self.channel_mult):
            attends = i in self.attention or i + 1 == len(self.channel_mult)  # the middle always does
            if attends and self.channels * mult % self.heads:
                raise ValueError(f"heads: {self.heads} does not divide {self.channels * mult} channels")
            if self.channels * mult % self.groups:
                raise ValueError(f"groups: {self.groups} does not divide {self.channels * mult} channels")

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learned_variance else 1)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features of t (Vaswani et al. 2017, section 3.5), cosines first.  t [B] float -> [B, width]"""
    half = width // 2
    freqs = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * freqs  # [B, width/2]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_init(layer: nn.Module) -> nn.Module:
    """The last layer of a residual branch starts at zero, so that each block starts as the identity."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class ResBlock(nn.Module):
    """GroupNorm, SiLU, conv, time embedding, GroupNorm, SiLU, dropout, conv, plus the skip path."""

    def __init__(self, c_in: int, c_out: int, emb: int, cfg: UNetConfig):
        super().__init__()
        self.film = cfg.film
        self.norm1 = nn.GroupNorm(cfg.groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * c_out if cfg.film else c_out)
        self.norm2 = nn.GroupNorm(cfg.groups, c_out)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, row: Tensor) -> Tensor:  # [B, c_in, H, W], [B, c_out or 2 c_out] -> [B, c_out, H, W]
        h = self.conv1(F.silu(self.norm1(x)))
        e = row[:, :, None, None]
        if self.film:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over the H*W positions (DDPM appendix B; heads as in Dhariwal & Nichol 2021)."""

    def __init__(self, channels: int, cfg: UNetConfig):
        super().__init__()
        self.heads = cfg.heads
        self.norm = nn.GroupNorm(cfg.groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(1)  # each [B, heads, HW, C/heads]
        a = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(a.transpose(2, 3).reshape(b, c, h, w))


class Level(nn.Module):
    """One residual block and, where asked for, self-attention behind it."""

    def __init__(self, c_in: int, c_out: int, emb: int, attend: bool, cfg: UNetConfig):
        super().__init__()
        self.block = ResBlock(c_in, c_out, emb, cfg)
        self.attention = Attention(c_out, cfg) if attend else nn.Identity()

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        return self.attention(self.block(x, row))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, 2H, 2W]
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """eps_theta(x_t, t, label): the noise in x_t.

    x [B, C, H, W] float32; t [B], the timestep index, integer or float; label [B] int64 in [0, K], K = the null label
    (only where `num_classes` is set). Returns [B, C, H, W], or [B, 2C, H, W] with learned variance: first the noise,
    then the raw interpolation v of Nichol & Dhariwal eq. 15.
    """

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.cfg = cfg
        base, emb = cfg.channels, 4 * cfg.channels
        widths = [base * m for m in cfg.channel_mult]
        self.time = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(cfg.num_classes + 1, emb) if cfg.num_classes is not None else None
        self.stem = nn.Conv2d(cfg.in_channels * cfg.patch**2, base, 3, padding=1)

        self.down, skips, c = nn.ModuleList(), [base], base
        for i, width in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(cfg.res_blocks):
                stage.append(Level(c, width, emb, i in cfg.attention, cfg))
                skips.append(c := width)
            if i + 1 < len(widths):
                stage.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
            self.down.append(stage)

        self.middle = nn.ModuleList([Level(c, c, emb, True, cfg), Level(c, c, emb, False, cfg)])

        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(cfg.res_blocks + 1):
                stage.append(Level(c + skips.pop(), width, emb, i in cfg.attention, cfg))
                c = width
            if i > 0:
                stage.append(Upsample(c))
            self.up.append(stage)

        self.norm = nn.GroupNorm(cfg.groups, c)
        self.head = zero_init(nn.Conv2d(c, cfg.out_channels * cfg.patch**2, 3, padding=1))

    def blocks(self) -> list[ResBlock]:
        """The residual blocks in the order in which `trunk` runs them."""
        levels = [*self.down, self.middle, *self.up]
        return [layer.block for stage in levels for layer in stage if isinstance(layer, Level)]

    def rows(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """All that the network knows of time and class, projected for every block and laid side by side.

        Depends on (t, label) alone, so a runtime computes it once per table, not once per step.  [B], [B] -> [B, R]
        """
        emb = self.time(timestep_embedding(t, self.cfg.channels))
        if self.label is not None:
            emb = emb + self.label(label)
        emb = F.silu(emb)
        return torch.cat([block.emb(emb) for block in self.blocks()], dim=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.trunk(x, self.rows(t, label))

    def trunk(self, x: Tensor, rows: Tensor) -> Tensor:
        """The network behind the embedding.  [B, C, H, W], [B, R] -> [B, C or 2C, H, W]"""
        row = iter(rows.split([block.emb.out_features for block in self.blocks()], dim=1))
        h = self.stem(F.pixel_unshuffle(x, self.cfg.patch))
        skips = [h]
        for stage in self.down:
            for layer in stage:
                h = layer(h, next(row)) if isinstance(layer, Level) else layer(h)
                skips.append(h)
        for level in self.middle:
            h = level(h, next(row))
        for stage in self.up:
            for layer in stage:
                h = layer(torch.cat([h, skips.pop()], dim=1), next(row)) if isinstance(layer, Level) else layer(h)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.cfg.patch)


CIFAR10_DDPM = UNetConfig(film=False, dropout=0.1)  # 35,746,307 parameters, as in DDPM appendix B
