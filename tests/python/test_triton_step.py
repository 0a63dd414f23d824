"""The Triton step: bit for bit the CPU's where both execute a row, and the float64 executor's on all its flags."""

import numpy as np
import pytest
import torch
from triton_case import DEVICE, LAYOUTS, ON_BOTH, arrays, bits, lowered, on_device, random_table

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt import row as flag
from ddpm_rt.kernels._triton import step_triton
from ddpm_rt.reference import step as reference
from ddpm_rt.row import ROW

T = kernels.triton
SHAPES = [(1, 1, 1), (3, 1, 1), (1, 5, 1), (2, 3, 5), (3, 4, 4), (3, 11, 31), (1, 25, 41), (4, 16, 16)]  # .. 1023, 1025
SEEDS = [5, 2**63 + 9]


def test_triton_words_and_flags_are_those_of_the_row():
    words = {name: ROW.fields[name][1] // 4 for name in ROW.names}
    for name in ("flags", "gs", "noise_index", "c_in", "p", "q", "clip_lo", "clip_hi", "ge", "gm", "ky", "kz"):
        assert getattr(step_triton, name.upper()).value == words[name]
    for name in ("log_var_lo", "log_var_hi", "wx", "wy", "wh"):
        assert getattr(step_triton, name.upper()).value == words[name]
    assert step_triton.ROW_WORDS.value * 4 == ROW.itemsize
    for name in ("PUSH", "KEEP", "LEARNED_VAR", "LEARNED_RANGE", "GRAD", "BLEND", "NO_EVAL", "LAST"):
        assert getattr(step_triton, name).value == getattr(flag, name)
    assert step_triton.HAS_CLIP.value == flag.CLIP


def fill(state, values, layout):
    """history, anchor and ring of a CPU or a Triton state."""
    history, anchor, ring = values
    state.ring = ring
    if isinstance(state, T.State):
        for entry, value in zip(state.history, history, strict=True):
            entry.copy_(torch.from_numpy(value))
        state.anchor.copy_(torch.from_numpy(anchor))
    else:
        state.history[...], state.anchor[...] = history, anchor
    return state


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", range(6))
def test_triton_random_rows_have_the_cpu_s_bits(case, shape, layout):
    rng = np.random.default_rng([case, *shape])
    table = random_table(rng, ON_BOTH)
    x, cond, uncond, *history = arrays(rng, 6, 2, *shape)
    memory = history, arrays(rng, 1, 2, *shape)[0], int(rng.integers(3))
    options = {"scale": float(rng.choice([0, 1, 3.5])), "seeds": SEEDS, "index": int(rng.integers(2))}
    guided = bool(rng.integers(2))

    cpu = fill(kernels.State(x), memory, None)
    expected = kernels.step(x.copy(), cond, table, eps_uncond=uncond if guided else None, state=cpu, **options)
    gpu = fill(T.State(on_device(x, layout)), memory, layout)
    u = on_device(uncond, layout) if guided else None
    got = T.step(on_device(x, layout), on_device(cond, layout), table, eps_uncond=u, state=gpu, **options)

    assert (bits(got) == bits(expected)).all()
    for name in ("history", "anchor", "x0"):
        assert (bits(getattr(gpu, name)) == bits(getattr(cpu, name))).all(), name
    assert gpu.ring == cpu.ring
    if not table["flags"][options["index"]] & flag.LAST:
        assert (bits(gpu.input) == bits(cpu.input)).all()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_triton_loop_has_the_cpu_loop_s_bits(sampler):
    table = ddpm_rt.rows(sampler, 12, clip="rederive" if sampler == "ddim" else None)
    x = np.stack([ddpm_rt.noise(seed, 0, (3, 5, 5)) for seed in SEEDS])
    mine, device_table = on_device(x, "channels-last"), T.Table(table, DEVICE)
    for i in range(len(table)):
        cond, uncond = np.sin(3 * x).astype(np.float32), np.cos(2 * x).astype(np.float32)
        kernels.step(x, cond, table, eps_uncond=uncond, scale=2.5, seeds=SEEDS, index=i)
        given = [on_device(e, "channels-last") for e in (cond, uncond)]
        T.step(mine, given[0], device_table, eps_uncond=given[1], scale=2.5, seeds=SEEDS, index=i)
        assert (bits(mine) == bits(x)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_reads_and_writes_the_network_s_dtype(dtype, layout):
    rng = np.random.default_rng(3)
    table = random_table(rng, ON_BOTH & ~flag.NO_EVAL)
    x, cond, uncond = arrays(rng, 3, 2, 3, 6, 6)
    cond, uncond = (torch.from_numpy(e).to(dtype).float().numpy() for e in (cond, uncond))
    cpu = kernels.State(x)
    expected = kernels.step(x.copy(), cond, table, eps_uncond=uncond, scale=2.0, seeds=SEEDS, state=cpu)
    state = T.State(on_device(x, layout), input_dtype=dtype, copies=2)
    given = [on_device(e, layout, dtype) for e in (cond, uncond)]
    got = T.step(on_device(x, layout), given[0], table, eps_uncond=given[1], scale=2.0, seeds=SEEDS, state=state)
    assert (bits(got) == bits(expected)).all()
    assert state.input.shape == (4, 3, 6, 6) and state.input.dtype == dtype
    for copy in state.input.cpu().unflatten(0, (2, 2)):
        assert torch.equal(copy, lowered(cpu.input, dtype))


ALL = ON_BOTH | flag.LEARNED_VAR | flag.LEARNED_RANGE | flag.GRAD | flag.BLEND


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 5), (2, 4, 6)])
@pytest.mark.parametrize("case", range(12))
def test_triton_random_rows_of_all_flags_against_float64(case, shape, layout):
    rng = np.random.default_rng([77, case, *shape])
    table = random_table(rng, ALL if case % 3 else ALL & ~(flag.LEARNED_VAR | flag.LEARNED_RANGE))
    halves = 2 if (table["flags"] & (flag.LEARNED_VAR | flag.LEARNED_RANGE)).any() else 1
    index, scale, scale2, ring = int(rng.integers(2)), float(rng.choice([0, 1, 2.5])), 0.75, int(rng.integers(3))
    x, anchor, grad, known, *history = arrays(rng, 7, 2, *shape)
    cond, uncond, second = arrays(rng, 3, 2, halves * shape[0], *shape[1:])
    mask = rng.choice([0, 1, 0.25], (2, *shape)).astype(np.float32)
    guided, has_second = bool(rng.integers(2)), bool(rng.integers(2))
    row = table[index]

    state = fill(T.State(on_device(x, layout)), (history, anchor, ring), layout)
    tensors = {"eps_uncond": uncond if guided else None, "eps_guide": second if has_second else None}
    tensors |= {"grad": grad, "mask": mask, "known": known}
    tensors = {k: None if v is None else on_device(v, layout) for k, v in tensors.items()}
    options = {"scale": scale, "scale2": scale2, "seeds": SEEDS, "index": index, "state": state}
    got = T.step(on_device(x, layout), on_device(cond, layout), table, **tensors, **options)

    for i, seed in enumerate(SEEDS):
        s_row = float(np.float32(1) + (np.float32(scale) - np.float32(1)) * row["gs"])
        reads_cond, reads_uncond = not guided or s_row != 0, guided and s_row != 1
        noise = [ddpm_rt.noise(seed, int(row["noise_index"]), shape, s).astype(np.float64) for s in (1, 2)]
        learned = bool(row["flags"] & (flag.LEARNED_VAR | flag.LEARNED_RANGE))

        def of_network(e, used, i=i, learned=learned):
            return (e[i] if learned else e[i, : shape[0]]).astype(np.float64) if used else None

        evaluations = reference.Evaluations(
            cond=of_network(cond, reads_cond),
            uncond=of_network(uncond, reads_uncond),
            guide=of_network(second, has_second and reads_cond),
            z=noise[0], z_known=noise[1], grad=grad[i].astype(np.float64), mask=mask[i], known=known[i].astype(np.float64),
        )  # fmt: skip
        ordered = tuple(history[(ring + k) % 3][i].astype(np.float64) for k in range(3))
        before = reference.State(x[i].astype(np.float64), ordered, anchor[i].astype(np.float64))
        after = reference.execute(
            row, table[1] if index == 0 else None, before, evaluations, scale=scale, scale2=scale2
        )
        pairs = [(got[i], after.state.x), (state.x0[i], after.x0), (state.anchor[i], after.state.anchor)]
        if row["flags"] & flag.PUSH:
            pairs.append((state.history[state.ring][i], after.state.history[0]))
        if after.net_input is not None:
            pairs.append((state.input[i], after.net_input))
        for mine, theirs in pairs:
            assert np.abs(mine.cpu().numpy() - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())


def test_triton_a_row_of_its_own_for_each_sample():
    """Rows, seeds, scales and rings on the device: each sample has the bits that it has alone."""
    rng = np.random.default_rng(8)
    table = random_table(rng, ON_BOTH, rows=5)
    device_table, n = T.Table(table, DEVICE), 4
    x, cond, uncond, anchor, *history = arrays(rng, 7, n, 3, 5, 5)
    index, scale, seeds = [3, 0, 4, 0], [2.0, 1.0, 0.0, -1.5], [7, 2**64 - 1, 0, 2**33]
    states = {}
    for i in [None, *range(n)]:
        pick = slice(None) if i is None else slice(i, i + 1)
        given = [on_device(a[pick]) for a in (x, cond, uncond)]
        state = fill(T.State(given[0]), ([h[pick] for h in history], anchor[pick], 1), None)
        rows = torch.tensor(index[pick], device=DEVICE) if i is None else index[i]
        scales = torch.tensor(scale[pick], device=DEVICE) if i is None else scale[i]
        keys = torch.from_numpy(np.array(seeds[pick], np.uint64).view(np.int64)).to(DEVICE)
        T.step(given[0], given[1], device_table, eps_uncond=given[2], scale=scales, seeds=keys, index=rows, state=state)
        states[i] = given[0], state
    together_x, together = states.pop(None)
    assert together.ring.dtype == torch.int32
    for i, (alone_x, alone) in states.items():
        assert (bits(together_x[i]) == bits(alone_x[0])).all()
        assert (bits(together.history[:, i]) == bits(alone.history[:, 0])).all()
        assert (bits(together.anchor[i]) == bits(alone.anchor[0])).all()
        assert int(together.ring[i]) == alone.ring
        if not table["flags"][index[i]] & flag.LAST:
            assert (bits(together.input[i]) == bits(alone.input[0])).all()


def test_triton_rings_that_differ_stay_right_over_rows():
    """Two samples, one row apart, through a table that pushes: the rings turn on the device."""
    rng = np.random.default_rng(9)
    table = random_table(rng, ON_BOTH & ~flag.NO_EVAL, rows=6)
    table["flags"][:] |= np.array([flag.PUSH, 0, flag.PUSH, flag.PUSH, flag.PUSH, flag.LAST], np.uint32)
    evaluations = arrays(rng, 6, 2, 7)
    start = arrays(rng, 1, 2, 7)[0]
    expected = []
    for i, first in enumerate((0, 1)):
        cpu_x, cpu = start[i : i + 1].copy(), kernels.State(start[i : i + 1])
        for k in range(5):
            kernels.step(cpu_x, evaluations[k][i : i + 1], table, seeds=i, index=first + k, state=cpu)
        expected.append(cpu_x[0])
    x = on_device(start)
    state, device_table = T.State(x), T.Table(table, DEVICE)
    index = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    for k in range(5):
        T.step(x, on_device(evaluations[k]), device_table, seeds=0, index=index + k, state=state)
    assert (bits(x) == bits(np.stack(expected))).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_triton_strangers_are_not_read(layout):
    """NaN in every operand whose weight is 0, and in the evaluation that the scale leaves out."""
    shape = (2, 3, 5, 5)
    table = np.zeros(2, ROW)
    table["flags"] = [flag.GRAD | flag.BLEND, flag.LAST]
    table["wx"][0, 0], table["gs"], table["c_in"], table["kz"] = 0.5, 1, 1, 1
    x = on_device(np.full(shape, 3.0, np.float32), layout)
    state = T.State(x)
    for stranger in (state.history, state.anchor):
        stranger.fill_(torch.nan)
    nan = torch.full_like(x, torch.nan)
    fine = torch.ones_like(x)
    mask = torch.zeros_like(x)
    given = {"eps_uncond": nan, "eps_guide": fine, "grad": nan, "mask": mask, "known": nan}
    T.step(x, fine, table, scale=1.0, seeds=0, state=state, **given)
    assert (x == 1.5).all() and (state.input == 1.5).all() and (state.x0 == 0).all()
    table["q"][0] = 1
    given = {"eps_uncond": fine, "eps_guide": nan, "grad": nan, "mask": mask, "known": nan}
    T.step(x, nan, table, scale=0.0, seeds=0, state=state, **given)
    assert (x == 0.75).all() and (state.x0 == 1).all()
    assert state.history.isnan().all() and state.anchor.isnan().all()
    # Read for x0, but without a weight in x': a stale e, then a stale x.
    given = {"grad": nan, "mask": mask, "known": nan, "seeds": 0, "state": state}
    T.step(x, nan, table, **given)
    assert (x == 0.375).all() and state.x0.isnan().all()
    table["p"][0], table["wx"][0, :2] = 1, [0, 2]
    x.fill_(torch.nan)
    T.step(x, fine, table, **given)
    assert (x == 2).all() and state.x0.isnan().all()


def test_triton_a_nan_stays_in_its_sample():
    table = ddpm_rt.rows("ddpm", 10)
    x, e = (on_device(a) for a in arrays(np.random.default_rng(0), 2, 3, 1030))
    alone = T.step(x.clone(), e, table, seeds=1)
    x[1, 1029] = torch.nan
    together = T.step(x, e, table, seeds=1)
    assert (bits(together[::2]) == bits(alone[::2])).all() and int(together.isnan().sum()) == 1


def test_triton_out_leaves_x_alone_and_unused_buffers_may_be_missing():
    table = ddpm_rt.rows("ddpm", 10)
    x, e = (on_device(a) for a in arrays(np.random.default_rng(1), 2, 2, 3, 5))
    before, out = x.clone(), torch.zeros_like(x)
    state = T.State(x)
    state.history = state.anchor = state.input = state.x0 = None
    assert T.step(x, e, table, seeds=3, out=out, state=state) is out and torch.equal(x, before)
    assert T.step(x, e, table, seeds=3, out=x.view(2, 3, 5)) is not x and torch.equal(x, out)
