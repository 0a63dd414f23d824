"""The U-Nets of EDM (Karras et al. 2022, 2206.00364, appendix F), under the names of its weights.

`SongUNet` is DDPM++ and NCSN++ (Song et al. 2021, 2011.13456, appendix G and H), `DhariwalUNet` is ADM (2105.05233). Both are
one family: blocks with optional resampling and attention, a way down `enc` and a way up `dec`, both by name. Labels are one-hot
vectors; none is the zero vector. Augmentation labels, which only training has, are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resampling(nn.Module):
    """Depthwise by a small filter: halves or doubles the size, or leaves it."""

    def __init__(self, sampling: str, taps: Sequence[float]) -> None:
        super().__init__()
        self.sampling = sampling
        row = torch.tensor(list(taps), dtype=torch.float32)
        kernel = torch.outer(row, row)[None, None] / row.sum() ** 2
        self.register_buffer("resample_filter", kernel if sampling else None)

    def resampled(self, x: Tensor, padding: int | None = None) -> Tensor:
        if not self.sampling:
            return x
        f, width = self.resample_filter, x.shape[1]
        pad = (f.shape[-1] - 1) // 2 if padding is None else padding
        if self.sampling == "down":
            return F.conv2d(x, f.expand(width, -1, -1, -1), groups=width, stride=2, padding=pad)
        return F.conv_transpose2d(x, (4 * f).expand(width, -1, -1, -1), groups=width, stride=2, padding=pad)


class Conv(Resampling):
    """kernel 0: the resampling alone. late: the filter behind the convolution (down only), as NCSN++'s residual inputs have it."""

    def __init__(
        self, width: int, out: int, kernel: int, sampling: str = "", taps: Sequence[float] = (1, 1), late: bool = False
    ) -> None:
        super().__init__(sampling, taps)
        self.late, self.pad = late, kernel // 2
        self.weight = nn.Parameter(torch.zeros(out, width, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(out)) if kernel else None

    def forward(self, x: Tensor) -> Tensor:
        if self.late:
            around = (self.resample_filter.shape[-1] - 1) // 2
            h = self.resampled(F.conv2d(x, self.weight, padding=self.pad + around), padding=0)
            return h + self.bias[:, None, None]
        x = self.resampled(x)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.pad)


class Norm(nn.GroupNorm):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__(min(32, width // 4), width, eps=eps)


class Block(nn.Module):
    """Residual block: conv0 resamples; `affine` adds the embedding, or scales and shifts by it; then attention."""

    def __init__(
        self, width: int, out: int, emb: int, *, sampling: str = "", heads: int = 0, scale: float = 1.0, eps: float = 1e-5,
        taps: Sequence[float] = (1, 1), project: bool = False, film: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.out, self.heads, self.scale, self.film = width, out, heads, scale, film
        self.norm0, self.norm1 = Norm(width, eps), Norm(out, eps)
        self.conv0 = Conv(width, out, 3, sampling, taps)
        self.affine = nn.Linear(emb, 2 * out if film else out)
        self.conv1 = Conv(out, out, 3)
        self.skip = None
        if out != width or sampling:
            self.skip = Conv(width, out, 1 if project or out != width else 0, sampling, taps)
        if heads:
            self.norm2 = Norm(out, eps)
            self.qkv, self.proj = Conv(out, 3 * out, 1), Conv(out, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        row = self.affine(emb)[:, :, None, None]
        if self.film:
            scale, shift = row.chunk(2, dim=1)
            h = self.norm1(h) * (scale + 1) + shift
        else:
            h = self.norm1(h + row)
        h = self.conv1(F.silu(h))
        h = (h + (x if self.skip is None else self.skip(x))) * self.scale
        return self._attend(h) if self.heads else h

    def _attend(self, x: Tensor) -> Tensor:
        """Channels of qkv lie as [heads, d, 3]."""
        height, width, d = x.shape[2], x.shape[3], self.out // self.heads
        q, k, v = self.qkv(self.norm2(x)).reshape(-1, self.heads, d, 3, height * width).unbind(3)
        weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(d), dim=-1)
        h = (v @ weights.transpose(2, 3)).reshape(-1, self.out, height, width)
        return (self.proj(h) + x) * self.scale


class _Positional(nn.Module):
    """Cosines, then sines; frequencies 10000^-(k / half), or to 1 / 10000 exactly with `endpoint`."""

    def __init__(self, width: int, endpoint: bool) -> None:
        super().__init__()
        half = width // 2
        self.rates = (torch.arange(half, dtype=torch.float32) / (half - endpoint)).tolist()

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * (1 / 10000) ** torch.tensor(self.rates, device=t.device)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Fourier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(width // 2))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class SongUNet(nn.Module):
    """(x, c_noise [B], one-hot labels [B, label_dim] or None) -> [B, out_channels, H, W]"""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, augment_dim: int = 0,
        model_channels: int = 128, channel_mult: Sequence[int] = (1, 2, 2, 2), channel_mult_emb: int = 4, num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,), dropout: float = 0.1, label_dropout: float = 0, embedding_type: str = "positional",
        channel_mult_noise: int = 1, encoder_type: str = "standard", decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:  # fmt: skip
        super().__init__()
        emb, noise, taps = (
            model_channels * channel_mult_emb,
            model_channels * channel_mult_noise,
            tuple(resample_filter),
        )
        self.map_noise = _Positional(noise, True) if embedding_type == "positional" else _Fourier(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)

        def block(width: int, out: int, attends: bool = False, sampling: str = "") -> Block:
            return Block(width, out, emb, sampling=sampling, heads=int(attends), scale=math.sqrt(0.5), eps=1e-6, taps=taps,
                         project=True, film=False)  # fmt: skip

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, aux, skips, last = model_channels, in_channels, [model_channels], len(channel_mult) - 1
        for level, mult in enumerate(channel_mult):
            size = img_resolution >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv(in_channels, width, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(width, width, sampling="down")
                skips.append(width)
                if encoder_type == "skip":
                    self.enc[f"{size}x{size}_aux_down"] = Conv(aux, aux, 0, "down", taps)
                    self.enc[f"{size}x{size}_aux_skip"] = Conv(aux, width, 1)
                if encoder_type == "residual":
                    self.enc[f"{size}x{size}_aux_residual"] = Conv(aux, width, 3, "down", taps, late=True)
                    aux = width
            for i in range(num_blocks):
                self.enc[f"{size}x{size}_block{i}"] = block(width, model_channels * mult, size in attn_resolutions)
                width = model_channels * mult
                skips.append(width)
        for level in reversed(range(last + 1)):
            size, out = img_resolution >> level, model_channels * channel_mult[level]
            if level == last:
                self.dec[f"{size}x{size}_in0"] = block(width, width, True)
                self.dec[f"{size}x{size}_in1"] = block(width, width)
            else:
                self.dec[f"{size}x{size}_up"] = block(width, width, sampling="up")
            for i in range(num_blocks + 1):
                attends = i == num_blocks and size in attn_resolutions
                self.dec[f"{size}x{size}_block{i}"] = block(width + skips.pop(), out, attends)
                width = out
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    self.dec[f"{size}x{size}_aux_up"] = Conv(out_channels, out_channels, 0, "up", taps)
                self.dec[f"{size}x{size}_aux_norm"] = Norm(width, 1e-6)
                self.dec[f"{size}x{size}_aux_conv"] = Conv(width, out_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        cosines, sines = self.map_noise(noise).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        aux, skips = x, []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        out: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                shown = F.silu(layer(x))
            elif name.endswith("aux_conv"):
                out = layer(shown) if out is None else layer(shown) + out
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != layer.width else x, emb)
        return out


class DhariwalUNet(nn.Module):
    """(x, c_noise [B], one-hot labels [B, label_dim] or None) -> [B, out_channels, H, W]"""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, augment_dim: int = 0,
        model_channels: int = 192, channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4, num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8), dropout: float = 0.1, label_dropout: float = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        emb = model_channels * channel_mult_emb
        self.map_noise = _Positional(model_channels, False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(label_dim, emb, bias=False) if label_dim else None

        def block(width: int, out: int, attends: bool = False, sampling: str = "") -> Block:
            return Block(width, out, emb, sampling=sampling, heads=out // 64 if attends else 0)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, last = model_channels * channel_mult[0], len(channel_mult) - 1
        skips = [width]
        for level, mult in enumerate(channel_mult):
            size = img_resolution >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv(in_channels, width, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(width, width, sampling="down")
                skips.append(width)
            for i in range(num_blocks):
                self.enc[f"{size}x{size}_block{i}"] = block(width, model_channels * mult, size in attn_resolutions)
                width = model_channels * mult
                skips.append(width)
        for level in reversed(range(last + 1)):
            size, out = img_resolution >> level, model_channels * channel_mult[level]
            if level == last:
                self.dec[f"{size}x{size}_in0"] = block(width, width, True)
                self.dec[f"{size}x{size}_in1"] = block(width, width)
            else:
                self.dec[f"{size}x{size}_up"] = block(width, width, sampling="up")
            for i in range(num_blocks + 1):
                self.dec[f"{size}x{size}_block{i}"] = block(width + skips.pop(), out, size in attn_resolutions)
                width = out
        self.out_norm, self.out_conv = Norm(width, 1e-5), Conv(width, out_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise))))
        if self.map_label is not None:
            emb = emb + self.map_label(labels)
        emb, skips = F.silu(emb), []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = layer(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != layer.width else x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))
