"""Guidance by itself in Triton: bit for bit the CPU's."""

import numpy as np
import pytest
import torch
from triton_case import DEVICE, LAYOUTS, arrays, bits, lowered, on_device

import ddpm_rt
from ddpm_rt import kernels

combine = kernels.triton.cfg_combine


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 5, 1), (3, 11, 31), (1, 25, 41)])
def test_triton_combination_has_the_cpu_s_bits(shape, layout):
    cond, uncond = arrays(np.random.default_rng(0), 2, 3, *shape)
    c, u = on_device(cond, layout), on_device(uncond, layout)
    for scale in (3.5, [2.0, 0.5, -1.0]):
        assert (bits(combine(c, u, scale)) == bits(kernels.cfg_combine(cond, uncond, scale))).all()
    on_gpu = torch.tensor([2.0, 0.5, -1.0], device=DEVICE)
    assert torch.equal(combine(c, u, on_gpu), combine(c, u, [2.0, 0.5, -1.0]))
    assert torch.equal(combine(c, u, torch.tensor(3.5, device=DEVICE)), combine(c, u, 3.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_combination_computes_in_float32(dtype):
    cond, uncond = (torch.from_numpy(a).to(dtype) for a in arrays(np.random.default_rng(1), 2, 2, 130))
    wide = kernels.cfg_combine(cond.float().numpy(), uncond.float().numpy(), 7.5)
    given = cond.to(DEVICE), uncond.to(DEVICE)
    assert torch.equal(combine(*given, 7.5).cpu(), lowered(wide, dtype))
    out = torch.zeros(2, 130, device=DEVICE)
    assert combine(*given, 7.5, out=out) is out and (bits(out) == bits(wide)).all()


@pytest.mark.parametrize("place", ["cond", "uncond"])
def test_triton_combination_in_place(place):
    cond, uncond = (on_device(a) for a in arrays(np.random.default_rng(2), 2, 2, 33))
    expected = combine(cond, uncond, 2.0)
    out = {"cond": cond, "uncond": uncond}[place]
    assert combine(cond, uncond, 2.0, out=out) is out and torch.equal(out, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rescale": 0.7}, "rescale: expected 0 .*RESCALE"),
        ({"scale": float("inf")}, "scale: expected a finite number"),
        ({"scale": 1e39}, "scale: expected a finite number"),
        ({"scale": [1.0, 2.0, 3.0]}, "scale: expected 1 or 2 numbers, got 3"),
        ({"uncond": torch.zeros(2, 5)}, r"uncond: expected .* \[2, 4\], got float32 \[2, 5\]"),
        ({"uncond": torch.zeros(2, 4, dtype=torch.float64)}, "uncond: expected float32 or float16 or bfloat16"),
        ({"out": torch.zeros(4, 2).T}, "out: expected contiguous or channels-last memory"),
        ({"cond": np.zeros((2, 4), np.float32)}, "cond: expected a torch tensor, got ndarray"),
        ({"cond": torch.zeros(4)}, r"cond: expected \[n, ...\]"),
    ],
)
def test_triton_combination_refuses(change, message):
    given = {"cond": torch.zeros(2, 4), "uncond": torch.zeros(2, 4), "scale": 2.0} | change
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(ddpm_rt.DdpmError, match=message):
        combine(**given)


def test_triton_combination_refuses_shared_memory():
    whole = torch.zeros(3, 4, device=DEVICE)
    with pytest.raises(ddpm_rt.OptionError, match="cond: expected memory of its own"):
        combine(whole[:2], torch.zeros(2, 4, device=DEVICE), 2.0, out=whole[1:])
