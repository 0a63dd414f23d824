"""The kernels in Triton, for a sampling loop in plain PyTorch: `ddpm_rt.kernels` with the same arguments on torch tensors.

    from ddpm_rt import kernels
    table = kernels.triton.Table(ddpm_rt.rows("ddim", 50), "cuda")
    x = kernels.triton.noise(seed, 0, (n, 3, 32, 32), device="cuda")
    for i in range(50):
        kernels.triton.step(x, eps(x, table.rows["t"][i]), table, index=i, seeds=seed)

Only their caller chooses them. Tensors are on one CUDA device (on the CPU where TRITON_INTERPRET=1 was set before triton
was first imported) and contiguous or channels-last, all of a call alike; work goes to torch's current stream. `noise`,
`step` and `cfg_combine` have the CPU kernels' bits. With a Table, and tensors or single numbers for what may differ by
sample, a call copies nothing to or from the host and can be captured into a CUDA graph. Needs the extra `triton`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import integer
from ..errors import OptionError, ShapeError
from ._table import State, Table
from ._tensors import (
    FLOAT32,
    batch,
    channels_last_format,
    current_device,
    expect_apart,
    float32_number,
    framework,
    is_channels_last,
    kernels_for,
    scales,
    seed_bits,
    tensor,
)

if TYPE_CHECKING:
    import torch

__all__ = ["State", "Table", "cfg_combine", "groupnorm_silu", "noise", "step"]


def noise(
    seeds: int | Sequence[int] | torch.Tensor,
    index: int,
    shape: Sequence[int],
    stream: int = 0,
    *,
    device: Any = "cuda",
) -> torch.Tensor:
    """`ddpm_rt.noise` of a batch: float32 `shape`, [n, ...] contiguous; sample i is ddpm_rt.noise(seed i, index, ...).

    Args:
        seeds: one per sample (int64 or uint64 bits in a tensor), or one integer (sample i uses seeds + i mod 2^64).
        index, stream: as in `ddpm_rt.noise`; stream 0 is x_T, with index 0.

    Writes 4 bytes per element.

    Raises:
        ShapeError, OptionError, DeviceError, BackendError.
    """
    torch = framework()
    index, stream = integer(index, "index", 0, 2**32 - 1), integer(stream, "stream", 0, 2**32 - 1)
    launch = kernels_for(torch.device(device), "device").philox_triton.launch_normals
    out = torch.empty(tuple(integer(size, "shape", 0, 2**31) for size in shape), device=device)
    samples, channels, pixels = batch(out, "shape")
    words = np.array([index, stream], np.uint32).view(np.int32).tolist()
    if samples > 0:
        with current_device(out.device):
            launch(
                out=out,
                seeds=seed_bits(seeds, samples, out.device),
                noise_index=words[0],
                stream=words[1],
                samples=samples,
                elements=channels * pixels,
            )
    return out


def step(
    x: torch.Tensor,
    eps: torch.Tensor,
    rows: Table | np.ndarray,
    *,
    eps_uncond: torch.Tensor | None = None,
    eps_guide: torch.Tensor | None = None,
    scale: float | Sequence[float] | torch.Tensor = 1.0,
    scale2: float = 0.0,
    seeds: int | Sequence[int] | torch.Tensor,
    index: int | torch.Tensor = 0,
    state: State | None = None,
    grad: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Executes `rows[index]`: guidance, x0, clip, update, noise and the next input in one pass over memory.

    An evaluation (eps, eps_uncond, eps_guide) is float32, float16 or bfloat16 [n, C, ...], or [n, 2C, ...] with the
    variance in its second half where a row of the table has LEARNED_VAR or LEARNED_RANGE (Nichol & Dhariwal 2102.09672
    eq. 15). Bytes per element with float16 evaluations: 12, guided 14; kernels/step_triton.py has the rest.

    Args:
        x: the state [n, C, ...] float32; updated in place unless `out` is given.
        eps: the network's output for x at `rows["t"][index]`.
        rows: a `Table`, or the numpy table, which is then copied to the device.
        eps_uncond: with the null condition; guidance with `scale` s is then u + s (c - u).
        eps_guide: a second guide g: e += scale2 (c - g).
        scale: one number, or one per sample.
        seeds: one per sample (int64 or uint64 bits in a tensor), or one integer (sample i uses seeds + i mod 2^64).
        index: a row for all, or a tensor int32 or int64 [n], a row each; outside the table it means the nearest row.
        state: a `State`, for tables that push or keep.
        grad: the classifier's gradient [n, C, ...], for GRAD rows (Dhariwal & Nichol 2105.05233 algorithms 1 and 2).
        mask, known: [n, C, ...], for BLEND rows: where mask is 1 the known image (Lugmayr et al. 2201.09865 eq. 8).
        out: receives the new state; may be x.

    Returns:
        `out`, or x.

    Raises:
        ShapeError, OptionError, DeviceError, BackendError: before anything is written. OptionError names a flag of the
            table that needs a reduction over the sample, which this executor does not have.
    """
    torch = framework()
    x = tensor(x, "x", None, FLOAT32)
    device, shape = x.device, tuple(x.shape)
    launch = kernels_for(device, "x").step_triton.launch_step
    table = rows if isinstance(rows, Table) else Table(rows, device)
    if table.words.device != device:
        raise OptionError(f"rows: expected a table on {device}, got one on {table.words.device}")
    halves = 2 if table.is_learned else 1
    samples, channels, pixels = batch(x, "x", halves)
    target = x if out is None else tensor(out, "out", shape, FLOAT32, device)
    row: int | None = None
    if isinstance(index, torch.Tensor):
        index = tensor(index, "index", (samples,), ("int32", "int64"), device).contiguous()
    else:
        index = row = integer(index, "index", 0, len(table.rows) - 1)

    given = {"eps": eps, "eps_uncond": eps_uncond, "eps_guide": eps_guide, "grad": grad, "mask": mask, "known": known}
    net_shape = (samples, halves * channels, *shape[2:])
    reads = {
        field: tensor(value, field, net_shape if field.startswith("eps") else shape, device=device)
        for field, value in given.items()
        if value is not None or field == "eps"
    }
    buffers = {} if state is None else state.buffers(x)
    for what in ("history", "anchor"):
        if table.uses(what, row) and buffers.get(f"state.{what}") is None:
            raise OptionError(f"state: expected a State with {what} for a table that uses it, got None")
    for what, fields in (("grad", ("grad",)), ("known", ("known", "mask"))):
        for field in fields:
            if table.uses(what, row) and field not in reads:
                raise OptionError(f"{field}: expected a tensor for a row that uses it, got None")
    net_input = buffers.get("state.input")
    if net_input is not None and not table.has_next(row):
        raise OptionError("rows: expected LAST in the last row, since another has no next input, got none")
    last = is_channels_last({"x": x, "out": target, **reads, **buffers})
    in_place = target.data_ptr() == x.data_ptr()
    expect_apart({"out" if out is not None else "x": target, **buffers}, reads if in_place else {"x": x, **reads})
    operands = {
        "seeds": seed_bits(seeds, samples, device),
        "scale": scales(scale, samples, device),
        "scale2": float32_number(scale2, "scale2"),
    }
    if samples == 0:
        return target

    history = buffers.get("state.history") if table.uses("history") else None
    if history is not None and row is None and isinstance(state.ring, int):
        state.ring = torch.full((samples,), state.ring, dtype=torch.int32, device=device)
    with current_device(device):
        launch(
            x=x,
            out=target,
            cond=reads["eps"],
            uncond=reads.get("eps_uncond"),
            guide=reads.get("eps_guide"),
            grad=reads.get("grad"),
            mask=reads.get("mask"),
            known=reads.get("known") if "mask" in reads else None,
            history=history,
            anchor=buffers.get("state.anchor") if table.uses("anchor") else None,
            net_input=net_input,
            x0=buffers.get("state.x0"),
            rows=table.words,
            index=index,
            ring=0 if history is None else state.ring,
            samples=samples,
            channels=channels,
            pixels=pixels,
            is_channels_last=last,
            is_learned=table.is_learned,
            draws=table.uses("noise"),
            copies=1 if net_input is None else net_input.shape[0] // samples,
            **operands,
        )
        if history is not None:
            state.advance(table, index)
    return target


def cfg_combine(
    cond: torch.Tensor,
    uncond: torch.Tensor,
    scale: float | Sequence[float] | torch.Tensor,
    *,
    rescale: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Classifier-free guidance by itself: u + s (c - u), [n, ...] float32, float16 or bfloat16, computed in float32.

    Args:
        scale: s, one number or one per sample.
        rescale: 0; the mixture of Lin et al. 2305.08891 section 3.4 needs a reduction, which is not executed here.
        out: receives the result in any of the dtypes; may be `cond` or `uncond`. None: a new tensor like `cond`.

    Bytes per element: the sizes of cond, uncond and out, 6 in float16.

    Raises:
        ShapeError, OptionError, DeviceError, BackendError: before anything is written.
    """
    cond = tensor(cond, "cond")
    device = cond.device
    launch = kernels_for(device, "cond").step_triton.launch_cfg_combine
    samples, channels, pixels = batch(cond, "cond")
    uncond = tensor(uncond, "uncond", cond.shape, device=device)
    if float32_number(rescale, "rescale") != 0:
        raise OptionError(f"rescale: expected 0 (RESCALE reduces over a sample, use ddpm_rt.kernels), got {rescale!r}")
    target = framework().empty_like(cond) if out is None else tensor(out, "out", cond.shape, device=device)
    is_channels_last({"cond": cond, "uncond": uncond, "out": target})
    apart = {field: t for field, t in (("cond", cond), ("uncond", uncond)) if t.data_ptr() != target.data_ptr()}
    expect_apart({"out": target}, apart)
    s = scales(scale, samples, device)
    if samples > 0:
        with current_device(device):
            launch(cond=cond, uncond=uncond, out=target, scale=s, samples=samples, elements=channels * pixels)
    return target


def groupnorm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """silu(group_norm(x) (1 + scale) + shift) over channels-last memory, with float32 statistics.

    GroupNorm is Wu & He 1803.08494 eq. 1 over `groups` groups of channels, SiLU x sigmoid(x), and scale and shift the
    FiLM of Nichol & Dhariwal 2102.09672 section 3. A sample's bits do not depend on the batch it is in.

    Args:
        x: [n, C, H, W] (torch.channels_last) or [n, C, D, H, W] (torch.channels_last_3d), float32, float16 or bfloat16.
        weight, bias: [C], of any of the dtypes; None: 1 and 0.
        eps: added to the variance, 0 or more.
        scale, shift: [n, C], of any of the dtypes; None: 0.
        out: receives the result in any of the dtypes; may be x. None: a new tensor like x.

    Bytes per element: twice x's size and out's, 6 in float16; the second read is often from the second-level cache.

    Raises:
        ShapeError, OptionError, DeviceError, BackendError: before anything is written.
    """
    torch = framework()
    x = tensor(x, "x")
    device = x.device
    kernels = kernels_for(device, "x", exact=False).groupnorm_silu_triton
    samples, channels, pixels = batch(x, "x")
    target = torch.empty_like(x) if out is None else tensor(out, "out", x.shape, device=device)
    for field, t in (("x", x), ("out", target)):
        if channels_last_format(t) is None:
            raise ShapeError(f"{field}: expected 4 or 5 dimensions in channels-last memory, got strides {t.stride()}")
    groups = integer(groups, "groups", 1, channels)
    if channels % groups or channels // groups > kernels.MOST_GROUP_CHANNELS:
        raise OptionError(
            f"groups: expected a divisor of {channels} with at most {kernels.MOST_GROUP_CHANNELS} channels each, got {groups}"
        )
    epsilon = float32_number(eps, "eps")
    if epsilon < 0:
        raise OptionError(f"eps: expected 0 or more, got {eps!r}")
    affine = {"weight": weight, "bias": bias}
    affine = {
        k: None if t is None else tensor(t, k, (channels,), device=device).contiguous() for k, t in affine.items()
    }
    film = {"scale": scale, "shift": shift}
    film = {k: None if t is None else tensor(t, k, (samples, channels), device=device) for k, t in film.items()}
    film = {k: t if t is None or t.stride(1) == 1 else t.contiguous() for k, t in film.items()}
    expect_apart({"out": target}, {} if target.data_ptr() == x.data_ptr() else {"x": x})
    if samples == 0:
        return target
    if x.data_ptr() % 16:
        x = x.clone()  # its loads would be narrower and its sums in another order: a sample's bits would move
    splits = kernels.splits_of(pixels, channels, groups)[-1]
    with current_device(device):
        kernels.launch_groupnorm_silu(
            x=x,
            out=target,
            partial=torch.empty((samples, groups, 2, splits), dtype=torch.float32, device=device),
            eps=epsilon,
            samples=samples,
            pixels=pixels,
            channels=channels,
            groups=groups,
            **affine,
            **film,
        )
    return target
