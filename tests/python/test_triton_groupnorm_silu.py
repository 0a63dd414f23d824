"""Fused GroupNorm, FiLM and SiLU in Triton against PyTorch in float64."""

import pytest
import torch
from torch.nn import functional as F
from triton_case import DEVICE

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.kernels._triton import groupnorm_silu_triton

fused = kernels.triton.groupnorm_silu
ULP = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# n, C, H, W, groups: groups of one channel, of a power of two, of 3 and 10; one pixel; tails; several tiles in a split
SHAPES = [
    (1, 4, 1, 1, 1),
    (2, 4, 3, 5, 4),
    (3, 12, 5, 7, 4),
    (1, 32, 8, 8, 32),
    (2, 40, 9, 9, 4),
    (1, 128, 6, 6, 32),
    (1, 96, 3, 3, 1),
    (1, 16, 61, 67, 2),
    (1, 1, 33, 31, 1),
]


def case(n, c, h, w, dtype=torch.float32, mean=2.0):
    torch.manual_seed(c * h + w)
    x = (torch.randn(n, c, h, w) * 3 + mean).to(dtype).to(memory_format=torch.channels_last)
    weight, bias, film = torch.randn(c), torch.randn(c), torch.randn(n, 2 * c)
    return [t.to(DEVICE) for t in (x, weight, bias, film)]


def expected(x, groups, weight=None, bias=None, scale=None, shift=None, eps=1e-5):
    y = F.group_norm(x.double(), groups, *(None if t is None else t.double() for t in (weight, bias)), eps=eps)
    if scale is not None:
        y = y * (1 + scale.double()[:, :, None, None])
    if shift is not None:
        y = y + shift.double()[:, :, None, None]
    return F.silu(y)


def assert_close(got, wanted, dtype):
    """Statistics and the activation in float32, then one rounding (which the interpreter cuts off for bfloat16)."""
    tolerance = (8 if dtype == torch.float32 else 2) * ULP[dtype] * wanted.abs().clamp(min=1) + 1e-5
    assert ((got.double() - wanted).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", list(ULP))
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_groupnorm_silu_is_torch_s(shape, dtype):
    *size, groups = shape
    x, weight, bias, film = case(*size, dtype)
    got = fused(x, groups, weight, bias)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert_close(got, expected(x, groups, weight, bias), dtype)
    scale, shift = film.chunk(2, dim=1)  # rows that are not dense, as a network's embedding gives them
    assert_close(
        fused(x, groups, weight, bias, scale=scale, shift=shift), expected(x, groups, weight, bias, scale, shift), dtype
    )


def test_triton_groupnorm_silu_options():
    x, weight, bias, film = case(2, 12, 5, 5)
    scale, shift = film.chunk(2, dim=1)
    for given in ({}, {"weight": weight}, {"bias": bias}, {"scale": scale}, {"shift": shift}, {"eps": 0.5}):
        assert_close(fused(x, 3, **given), expected(x, 3, **given), torch.float32)
    half = weight.bfloat16()
    assert_close(fused(x, 3, half, bias.half()), expected(x, 3, half, bias.half()), torch.float32)
    assert_close(fused(x, 3, scale=scale.T.contiguous().T), expected(x, 3, scale=scale), torch.float32)


def test_triton_groupnorm_silu_of_a_mean_far_from_zero():
    """float32 holds this mean to 1e-4; from sums of squares about zero the variance would be a tenth off."""
    x, weight, bias, _ = case(1, 8, 40, 40, mean=3000.0)
    assert (fused(x, 2, weight, bias) - expected(x, 2, weight, bias)).abs().max() < 1e-3


def test_triton_groupnorm_silu_does_not_depend_on_the_batch():
    x, weight, bias, _ = case(5, 24, 7, 9)
    together = fused(x, 6, weight, bias)
    for i in range(5):
        alone = fused(x[i : i + 1], 6, weight, bias)
        assert torch.equal(together[i : i + 1], alone) and torch.equal(fused(x[i : i + 1], 6, weight, bias), alone)
    x[1] = torch.nan
    poisoned = fused(x, 6, weight, bias)
    assert torch.equal(poisoned[2:], together[2:]) and poisoned[1].isnan().all()


def test_triton_groupnorm_silu_in_place_into_out_and_in_three_dimensions():
    x, weight, bias, _ = case(2, 8, 4, 6)
    wanted = fused(x, 2, weight, bias)
    out = torch.zeros(x.shape, dtype=torch.float16, device=DEVICE).to(memory_format=torch.channels_last)
    assert fused(x, 2, weight, bias, out=out) is out and (out.float() - wanted).abs().max() < 1e-2
    deep = x.reshape(2, 8, 2, 2, 6).to(memory_format=torch.channels_last_3d)
    assert torch.equal(fused(deep, 2, weight, bias).flatten(2), wanted.flatten(2))
    assert fused(x, 2, weight, bias, out=x) is x and torch.equal(x, wanted)


@pytest.mark.parametrize("shape", [(64 * 64, 320, 32), (32 * 32, 128, 32), (16 * 16, 512, 32)])
def test_triton_groupnorm_silu_of_one_sample_fills_the_device(shape):
    """At least one program for each of an H100's 132 SMs, each with work, on the shapes that U-Nets have."""
    pixels, _, groups = shape
    tile_groups, tile_pixels, split_pixels, splits = groupnorm_silu_triton.splits_of(*shape)
    assert (splits - 1) * split_pixels < pixels <= splits * split_pixels and split_pixels % tile_pixels == 0
    assert splits <= groupnorm_silu_triton.MOST_SPLITS
    assert splits * -(-groups // tile_groups) >= 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 5}, "groups: expected a divisor of 8"),
        ({"groups": 0}, "groups: expected an integer from 1 to 8"),
        ({"eps": -1.0}, "eps: expected 0 or more"),
        ({"weight": torch.zeros(7)}, r"weight: expected .* \[8\]"),
        ({"scale": torch.zeros(1, 8)}, r"scale: expected .* \[2, 8\]"),
        ({"x": torch.zeros(2, 8, 3, 3)}, "x: expected 4 or 5 dimensions in channels-last memory"),
        ({"x": torch.zeros(2, 8)}, "x: expected 4 or 5 dimensions"),
        ({"out": torch.zeros(2, 8, 3, 3)}, "out: expected 4 or 5 dimensions in channels-last"),
        ({"x": torch.zeros(2, 8, 3, 3, requires_grad=True)}, "x: expected a tensor without gradient"),
    ],
)
def test_triton_groupnorm_silu_refuses(change, message):
    given = {"x": torch.zeros(2, 8, 3, 3).to(memory_format=torch.channels_last), "groups": 2} | change
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(ddpm_rt.DdpmError, match=message):
        fused(**given)
