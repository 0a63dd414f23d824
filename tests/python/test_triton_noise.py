"""Random numbers, version 1, drawn by Triton: bit for bit those of the CPU."""

import numpy as np
import pytest
import torch
from triton_case import DEVICE, LAYOUTS, bits, on_device, tl, triton

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.kernels._triton import philox_triton
from ddpm_rt.reference import philox
from ddpm_rt.row import BLEND, LAST, ROW

normal_pair = philox_triton.normal_pair
SIZES = (1, 3, 4, 5, 1023, 1024, 1025, 3072)
KEYS = ((0, 0, 0), (2**63 + 5, 2**32 - 1, 1), (0xDEADBEEF12345678, 7, 2), (2**32 - 1, 2**31, 16))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("seed", "index", "stream"), KEYS)
def test_triton_normals_are_the_cpu_s(size, seed, index, stream):
    got = kernels.triton.noise([seed, seed ^ 1], index, (2, size), stream, device=DEVICE)
    for i, key in enumerate((seed, seed ^ 1)):
        assert (bits(got[i]) == bits(ddpm_rt.noise(key, index, (size,), stream))).all()


def test_triton_normals_of_many_words():
    """A hundred thousand pairs: every quadrant, and radii from u near 0 to u near 1."""
    got = kernels.triton.noise(11, 3, (1, 200_000), 1, device=DEVICE)
    assert (bits(got) == bits(ddpm_rt.noise(11, 3, (1, 200_000), 1))).all()
    assert got.abs().max() > 4 and abs(float(got.mean())) < 0.01


@triton.jit
def pair_kernel(a_ptr, b_ptr, out_ptr, count):
    at = tl.arange(0, 256)
    a = tl.load(a_ptr + at, mask=at < count, other=0).to(tl.uint32, bitcast=True)
    b = tl.load(b_ptr + at, mask=at < count, other=0).to(tl.uint32, bitcast=True)
    first, second = normal_pair(a, b)
    tl.store(out_ptr + at, first)
    tl.store(out_ptr + 256 + at, second)


def test_triton_pair_at_the_edges_of_its_words():
    """u = 2^-33 and 1, and angles on both sides of every quadrant's edge, against the numpy definition."""
    edges = np.array([0, 1, 2, 2**24 - 1, 2**24, 2**31, 2**32 - 2**8, 2**32 - 1], np.uint32)
    angles = np.array(
        [q * 2**30 + d & 0xFFFFFFFF for q in range(4) for d in (-(2**29), -1, 0, 1, 2**29 - 1)], np.uint32
    )
    a, b = (words.ravel() for words in np.meshgrid(edges, angles))
    given = [torch.from_numpy(w.view(np.int32)).to(DEVICE) for w in (a, b)]
    out = torch.zeros(2, 256, device=DEVICE)
    pair_kernel[(1,)](*given, out, len(a), enable_fp_fusion=False)
    expected = philox.normal_pair(a, b)
    for got, wanted in zip(out, expected, strict=True):
        assert (bits(got[: len(a)]) == bits(wanted)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 5, 5), (1, 3, 7), (4, 8, 8), (5, 2, 2), (70, 2, 3), (16, 1, 1)])
@pytest.mark.parametrize("stream", [1, 2])
def test_triton_noise_follows_the_logical_index_in_every_layout(layout, shape, stream):
    """A row that writes z alone, by way of wx (stream 1) or as the known image's noise (stream 2)."""
    table = np.zeros(1, ROW)
    table["flags"] = LAST
    table["noise_index"] = 9
    if stream == 1:
        table["wx"][0, 7] = 1
    else:
        table["flags"] |= BLEND
        table["kz"] = 1
    x = on_device(np.zeros((2, *shape), np.float32), layout)
    extra = {} if stream == 1 else {"mask": torch.ones_like(x), "known": torch.full_like(x, torch.nan)}
    kernels.triton.step(x, torch.zeros_like(x), table, seeds=[21, 2**64 - 1], **extra)
    expected = np.stack([ddpm_rt.noise(seed, 9, shape, stream) for seed in (21, 2**64 - 1)])
    assert (x.cpu().numpy() == expected).all()


def test_triton_seeds_count_up_and_may_lie_on_the_device():
    expected = np.stack([ddpm_rt.noise(seed, 0, (6,)) for seed in (2**64 - 2, 2**64 - 1, 0)])
    for seeds in (
        2**64 - 2,
        [2**64 - 2, 2**64 - 1, 0],
        np.array([2**64 - 2, 2**64 - 1, 0], np.uint64),
        torch.tensor([-2, -1, 0], device=DEVICE),
    ):
        assert (kernels.triton.noise(seeds, 0, (3, 6), device=DEVICE).cpu().numpy() == expected).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2**64, 0, (1, 4)), "seeds: expected an integer from 0"),
        (([1, 2], 0, (1, 4)), "seeds: expected 1, got"),
        ((0, -1, (1, 4)), "index: expected an integer"),
        ((0, 0, (4,)), r"shape: expected \[n, ...\]"),
        ((0, 0, (1, 0)), "shape: expected 1 to"),
        ((0, 0, (1, 4), 2**32), "stream: expected an integer"),
    ],
)
def test_triton_noise_refuses(arguments, message):
    with pytest.raises(ddpm_rt.DdpmError, match=message):
        kernels.triton.noise(*arguments, device=DEVICE)
