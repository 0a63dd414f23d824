"""What the Triton front refuses, before anything is written, and what it needs to be there."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from triton_case import DEVICE, arrays, on_device

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt import row as flag
from ddpm_rt.kernels._tensors import expect_rounding
from ddpm_rt.row import ROW

T = kernels.triton
SHAPE = (2, 3, 4, 4)


def table(**fields):
    rows = ddpm_rt.rows("ddim", 10)
    for name, value in fields.items():
        rows[name][3] |= value
    return rows


def zeros(*shape, **options):
    return torch.zeros(shape or SHAPE, device=DEVICE, **options)


BAD = [
    ({"x": zeros().double()}, "x: expected float32, got float64"),
    ({"x": zeros().half()}, "x: expected float32, got float16"),
    ({"x": np.zeros(SHAPE, np.float32)}, "x: expected a torch tensor, got ndarray"),
    ({"x": zeros(6)}, r"x: expected \[n, ...\]"),
    ({"x": zeros(2, 0)}, "x: expected 1 to"),
    ({"x": zeros(*SHAPE, requires_grad=True)}, "x: expected a tensor without gradient"),
    ({"eps": zeros(2, 3, 4, 5)}, r"eps: expected .* \[2, 3, 4, 4\], got float32 \[2, 3, 4, 5\]"),
    ({"eps": zeros(2, 6, 4, 4)}, "eps: expected"),
    ({"eps": None}, "eps: expected a torch tensor, got NoneType"),
    ({"eps": zeros(2, 3, 4, 8)[..., ::2]}, "eps: expected contiguous or channels-last memory"),
    (
        {"eps": zeros().to(memory_format=torch.channels_last)},
        "eps: expected contiguous or channels-last memory, the same",
    ),
    ({"eps_uncond": zeros(2, 3, 4, 4).int()}, "eps_uncond: expected .*, got int32"),
    ({"seeds": [1]}, "seeds: expected 2, got"),
    ({"seeds": [1, -1]}, "seeds"),
    ({"seeds": zeros(2)}, "seeds: expected int64 or uint64"),
    ({"index": 10}, "index: expected an integer from 0 to 9"),
    ({"index": zeros(3).int()}, r"index: expected .* \[2\]"),
    ({"index": zeros(2)}, "index: expected int32 or int64"),
    ({"scale": float("nan")}, "scale: expected a finite number"),
    ({"scale2": float("inf")}, "scale2: expected a finite number"),
    ({"scale": zeros(3)}, r"scale: expected float32 \[2\]"),
    ({"rows": np.zeros(3)}, "rows: expected a table"),
    ({"rows": np.zeros(0, ROW)}, "rows: expected a table"),
    ({"rows": table(flags=flag.THRESHOLD | flag.VLB)}, "no reduction over a sample, got THRESHOLD, VLB"),
    ({"rows": table(flags=flag.RESCALE)}, "got RESCALE"),
    ({"rows": table(flags=flag.NORM)}, "got NORM"),
    ({"rows": table(flags=1 << 20)}, "rows.flags: expected known flags"),
    ({"rows": table(flags=flag.PUSH), "index": 3}, "state: expected a State with history"),
    ({"rows": table(flags=flag.KEEP), "index": 3}, "state: expected a State with anchor"),
    ({"rows": table(flags=flag.BLEND), "index": 3, "mask": zeros()}, "known: expected a tensor for a row that uses it"),
    ({"rows": table(flags=flag.BLEND), "index": zeros(2).int(), "known": zeros()}, "mask: expected a tensor"),
    (
        {"rows": ddpm_rt.rows("ddim", 10)[:5], "index": 4, "state": T.State(zeros())},
        "rows: expected LAST in the last row",
    ),
    ({"state": T.State(zeros(1, 3, 4, 4))}, r"state.anchor: expected float32 \[2, 3, 4, 4\]"),
    (
        {"state": T.State(zeros().to(memory_format=torch.channels_last))},
        "state.anchor: expected contiguous or channels-last",
    ),
    ({"out": zeros(2, 3, 4, 8)[..., ::2]}, "out: expected contiguous or channels-last"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_triton_step_refuses(change, message):
    x, e = (on_device(a) for a in arrays(np.random.default_rng(0), 2, *SHAPE))
    given = {"x": x, "eps": e, "rows": ddpm_rt.rows("ddim", 10), "seeds": 0} | change
    before = x.clone()
    with pytest.raises(ddpm_rt.DdpmError, match=message):
        T.step(given.pop("x"), given.pop("eps"), given.pop("rows"), **given)
    assert torch.equal(x, before)


def test_triton_step_takes_rows_that_do_not_use_what_is_missing():
    """index 2 of a table whose row 3 pushes and blends needs neither a State nor an image."""
    rows = table(flags=flag.PUSH | flag.BLEND)
    x, e = (on_device(a) for a in arrays(np.random.default_rng(0), 2, *SHAPE))
    expected = T.step(x.clone(), e, ddpm_rt.rows("ddim", 10), seeds=0, index=2)
    assert torch.equal(T.step(x, e, rows, seeds=0, index=2), expected)


def test_triton_step_refuses_memory_that_it_would_read_after_writing():
    whole = zeros(3, 3, 4, 4)
    rows = ddpm_rt.rows("ddim", 10)
    with pytest.raises(ddpm_rt.OptionError, match="eps: expected memory of its own, got some of x's"):
        T.step(whole[:2], whole[1:], rows, seeds=0)
    with pytest.raises(ddpm_rt.OptionError, match="eps: expected memory of its own"):
        T.step(whole[:2], whole[:2], rows, seeds=0)
    with pytest.raises(ddpm_rt.OptionError, match="x: expected memory of its own, got some of out's"):
        T.step(whole[:2], zeros(), rows, seeds=0, out=whole[1:])
    state = T.State(whole[:2])
    state.input = whole[1:]
    with pytest.raises(ddpm_rt.OptionError, match="memory of its own"):
        T.step(whole[:2], zeros(), rows, seeds=0, state=state)


def test_triton_of_no_samples_is_nothing():
    x = zeros(0, 3, 4, 4)
    assert T.step(x, x.clone(), ddpm_rt.rows("ddpm", 10), seeds=[], state=T.State(x)) is x
    assert T.cfg_combine(x, x.clone(), 2.0).shape == x.shape
    last = x.to(memory_format=torch.channels_last)
    assert T.groupnorm_silu(last, 3).shape == x.shape


def in_fresh_python(code):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_triton_needs_a_gpu_unless_it_is_interpreted():
    code = (
        "import torch, ddpm_rt\nT = ddpm_rt.kernels.triton\nx = torch.zeros(1, 2, 2, 2)\n"
        "for call in (lambda: T.step(x, x.clone(), ddpm_rt.rows('ddim', 10), seeds=0), lambda: T.cfg_combine(x, x, 2.0),\n"
        "             lambda: T.noise(0, 0, (1, 2), device='cpu'), lambda: T.groupnorm_silu(x, 1)):\n"
        "    try: call()\n    except ddpm_rt.DeviceError as e: print(e)\n"
    )
    done = in_fresh_python(code)
    assert done.stdout.count("expected a CUDA device (or the CPU, with TRITON_INTERPRET=1") == 4, done.stderr


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_triton_says_what_is_not_installed(missing):
    code = (
        f"import sys\nsys.modules['{missing}'] = None\nimport ddpm_rt\nT = ddpm_rt.kernels.triton\n"
        "try: T.noise(0, 0, (1, 2), device='cpu')\nexcept ddpm_rt.BackendError as e: print(e)\n"
    )
    done = in_fresh_python(code)
    assert f"{missing}: expected to be installed (pip install 'ddpm_rt[triton]')" in done.stdout, done.stderr


def test_triton_refuses_an_assembler_that_contracts():
    """test_triton_ptx.py looks for the contraction itself."""
    for capability, version in (((9, 0), "3.6.0"), ((10, 0), "3.7.1"), ((12, 0), "3.10.0+git1")):
        expect_rounding(capability, version)
    with pytest.raises(
        ddpm_rt.BackendError, match=r"triton: expected 3.7 or newer on compute capability 12.0.*got 3.6.0"
    ):
        expect_rounding((12, 0), "3.6.0")


def test_triton_costs_the_cpu_kernels_nothing():
    code = (
        "import sys, ddpm_rt\nddpm_rt.kernels.step\nassert not {'torch', 'triton'} & set(sys.modules)\n"
        "ddpm_rt.kernels.triton.step\nassert not {'torch', 'triton'} & set(sys.modules)\nprint('light')\n"
    )
    assert in_fresh_python(code).stdout.strip() == "light"
    with pytest.raises(AttributeError, match="no attribute 'cuda_'"):
        kernels.cuda_  # noqa: B018
