"""kernels.step on random rows of all flags against the float64 executor, reference/step.py."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.reference import step as reference
from ddpm_rt.row import ROW

SHAPES = [(1,), (3,), (2, 3, 5), (1, 16, 16), (3, 37, 41), (3, 64, 64)]
RARE = [
    reference.THRESHOLD, reference.RESCALE, reference.LEARNED_VAR, reference.LEARNED_RANGE, reference.GRAD, reference.BLEND,
    reference.NORM, reference.VLB,
]  # fmt: skip
OPERANDS = ("eps", "eps_uncond", "eps_guide", "variance", "grad", "known", "mask", "x0_true")


def random_table(rng, flags):
    """One row of random weights, a third of them zero, and a row after it."""
    rows = np.zeros(2, ROW)
    row = rows[0]
    rows["c_in"], rows["flags"][0], row["noise_index"] = rng.normal(size=2), flags, rng.integers(2**32)
    for name in ("gs", "p", "q", "ge", "gm", "ky", "kz", "wx", "wy", "wh", "vx", "v0"):
        values = rng.normal(size=row[name].shape) * (rng.random(row[name].shape) < 0.67)
        row[name] = values
    row["clip_lo"], row["clip_hi"] = -1, 0.75
    row["threshold_p"], row["threshold_cap"] = rng.choice([0, 0.5, 0.9, 0.995, 1]), rng.choice([0.8, 1.5, 100])
    row["phi"], row["snr"] = rng.random(), 0.16
    row["log_var_lo"], row["log_var_hi"], row["lq"], row["lp"] = -4, -1, -3 + rng.random(), -3 + rng.random()
    if flags & reference.NO_EVAL:
        row["q"] = row["wx"][1] = row["wy"][1] = row["wh"][1] = 0
    return rows


def random_flags(rng, elements):
    common = [reference.PUSH, reference.KEEP, reference.CLIP]
    flags = sum(flag for flag in (*common, *RARE) if rng.random() < 0.3)
    if elements == 1:
        flags &= ~reference.RESCALE  # the formula divides 0 by 0 where the kernels leave e alone
    return flags | (reference.NO_EVAL if not flags & (reference.RESCALE | reference.NORM) and rng.random() < 0.1 else 0)


def expected_of(table, state, arrays, used, seed, scale, scale2):
    """The float64 executor for one sample, and the spread of its e before RESCALE."""
    a = {name: value.astype(np.float64) for name, value in arrays.items()}
    learned = table["flags"][0] & (reference.LEARNED_VAR | reference.LEARNED_RANGE)
    shape = a["x"].shape
    index = int(table["noise_index"][0])

    def halves(name):
        if name not in used:
            return None
        return np.concatenate([a[name], a["variance"]]) if learned else a[name]

    evaluations = reference.Evaluations(
        cond=halves("eps"), uncond=halves("eps_uncond"), guide=halves("eps_guide"),
        z=ddpm_rt.noise(seed, index, shape, stream=1).astype(np.float64),
        z_known=ddpm_rt.noise(seed, index, shape, stream=2).astype(np.float64),
        grad=a["grad"], mask=a["mask"], known=a["known"], x0_true=a["x0_true"],
    )  # fmt: skip
    plain = table[0].copy()
    plain["flags"] &= ~np.uint32(reference.RESCALE | reference.GRAD)
    spread = 1.0
    if table["flags"][0] & reference.RESCALE:
        spread = reference.guided_output(plain, evaluations, scale, scale2)[0].std()
    return reference.execute(table[0], table[1], state, evaluations, scale=scale, scale2=scale2), spread


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_rows_of_all_flags(shape):
    rng = np.random.default_rng(sum(shape))
    seen = 0
    for _ in range(60):
        flags = random_flags(rng, int(np.prod(shape)))
        seen |= flags
        table = random_table(rng, flags)
        n = 2
        arrays = {name: rng.normal(size=(n, *shape)).astype(np.float32) for name in ("x", *OPERANDS)}
        arrays["mask"] = (rng.random((n, *shape)) * (rng.random((n, *shape)) < 0.7)).astype(np.float32)
        used = {"eps"} | {name for name in ("eps_uncond", "eps_guide") if rng.random() < 0.6}
        given = {
            name: arrays[name] for name in OPERANDS if name not in ("eps", "eps_uncond", "eps_guide") or name in used
        }
        seeds = [int(s) for s in rng.integers(2**63, size=n)]
        scale, scale2 = 2.5, 0.7
        state = kernels.State(arrays["x"])
        state.history[:] = rng.normal(size=state.history.shape)
        state.anchor[:] = rng.normal(size=state.anchor.shape)
        state.ring = int(rng.integers(3))
        before = [
            reference.State(
                arrays["x"][i].astype(np.float64),
                tuple(state.history[(state.ring + k) % 3, i].astype(np.float64) for k in range(3)),
                state.anchor[i].astype(np.float64),
            )
            for i in range(n)
        ]
        got = kernels.step(
            arrays["x"].copy(), given.pop("eps"), table, scale=scale, scale2=scale2, seeds=seeds, state=state, **given
        )
        for i in range(n):
            one = {name: value[i] for name, value in arrays.items()}
            want, spread = expected_of(table, before[i], one, used, seeds[i], scale, scale2)
            size = max(1.0, *(np.abs(v).max() for v in (want.state.x, want.x0, want.net_input)))
            tolerance = 2e-5 * size / min(1.0, spread)  # dividing by a spread near 0 magnifies every rounding
            assert np.abs(got[i] - want.state.x).max() <= tolerance, f"{flags:#x}"
            assert np.abs(state.x0[i] - want.x0).max() <= tolerance, f"{flags:#x}"
            assert np.abs(state.input[i] - want.net_input).max() <= tolerance * 3, f"{flags:#x}"
            if flags & reference.PUSH:
                assert np.abs(state.history[state.ring, i] - want.state.history[0]).max() <= tolerance * 5
            if flags & reference.KEEP:
                assert np.abs(state.anchor[i] - want.state.anchor).max() <= tolerance * 5
            if flags & reference.VLB:
                assert state.kl[i] == pytest.approx(want.kl, rel=1e-4 / min(1.0, spread), abs=1e-5)
    assert len([flag for flag in RARE if seen & flag]) >= len(RARE) - 1


def test_without_a_network_there_is_no_variance_to_read():
    rows = np.zeros(2, ROW)
    rows["c_in"], rows["flags"][0] = 1, reference.NO_EVAL | reference.LEARNED_VAR
    rows["wx"][0, 0] = 2
    x = np.ones((1, 2, 2), np.float32)
    assert (kernels.step(x.copy(), x.copy(), rows, seeds=0) == 2 * x).all()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (reference.LEARNED_VAR, "variance: expected an array"),
        (reference.LEARNED_RANGE, "variance: expected an array"),
        (reference.GRAD, "grad: expected an array"),
        (reference.BLEND, "mask: expected an array"),
        (reference.VLB, "state: expected"),
        (reference.THRESHOLD, r"row.threshold: expected a percentile"),
    ],
)
def test_a_row_says_what_it_lacks(flag, message):
    rows = np.zeros(2, ROW)
    rows["flags"][0] = flag
    x = np.ones((1, 2, 2), np.float32)
    with pytest.raises(ddpm_rt.OptionError, match=message):
        kernels.step(x, x.copy(), rows, seeds=0)
    assert (x == 1).all()


def test_operands_have_the_shape_of_x_and_memory_of_their_own():
    rows = np.zeros(2, ROW)
    x, e = np.ones((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.float32)
    with pytest.raises(ddpm_rt.ShapeError, match=r"grad: expected float32 \[2, 2, 2\]"):
        kernels.step(x, e, rows, seeds=0, grad=np.zeros((2, 2), np.float32))
    with pytest.raises(ddpm_rt.OptionError, match="mask: expected memory of its own"):
        kernels.step(x, e, rows, seeds=0, mask=x)
    with pytest.raises(ddpm_rt.OptionError, match="scale2: expected a finite number"):
        kernels.step(x, e, rows, seeds=0, eps_guide=e, scale2=float("inf"))
