"""kernels.step, cfg_combine, rows and noise: against the float64 executor, the formulas, and the engine."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT, gaussian

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.row import CLIP, KEEP, LAST, PUSH, ROW

SHAPE = (3, 2, 5)


def arrays(count, *shape, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape or SHAPE).astype(np.float32) for _ in range(count)]


def table(*rows):
    out = np.zeros(len(rows), ROW)
    for record, fields in zip(out, rows, strict=True):
        record["c_in"] = 1
        for name, value in fields.items():
            record[name] = value
    out["flags"][-1] |= LAST
    return out


def test_row_is_256_bytes():
    assert ROW.itemsize == 256 and ROW.fields["wx"][1] == 80 and ROW.fields["spare"][1] == 168


def test_samplers_compile_to_rows():
    assert {"ddpm", "ddim"} <= {s.name for s in ddpm_rt.samplers()}
    rows = ddpm_rt.rows("ddim", 50, "linear")
    assert rows.dtype == ROW and len(rows) == 50
    assert rows["t"].tolist() == [20 * i for i in reversed(range(50))]
    assert [bool(f & LAST) for f in rows["flags"]] == [False] * 49 + [True]


def test_row_of_ddim_is_eq_12():
    alpha_bar = kernels.alpha_bar("linear")
    row = ddpm_rt.rows("ddim", 10, "linear", clip="none", eta=0.5)[3]
    ab, ab_p = alpha_bar[600], alpha_bar[500]
    sigma = 0.5 * np.sqrt((1 - ab_p) / (1 - ab)) * np.sqrt(1 - ab / ab_p)
    assert np.allclose([row["p"], row["q"]], [1 / np.sqrt(ab), -np.sqrt(1 - ab) / np.sqrt(ab)], rtol=1e-6)
    x, e = 0.3, -0.7
    x0 = row["p"] * x + row["q"] * e
    expected = np.sqrt(ab_p) * x0 + np.sqrt(1 - ab_p - sigma**2) * e
    assert row["wx"][0] * x + row["wx"][1] * e + row["wx"][2] * x0 == pytest.approx(expected, rel=1e-5)
    assert row["wx"][7] == pytest.approx(sigma, rel=1e-6)


def test_step_is_its_row():
    x, c, u = arrays(3)
    rows = table({"p": 1.1, "q": -0.4, "gs": 1, "flags": CLIP, "clip_lo": -0.5, "clip_hi": 0.5, "noise_index": 6}, {})
    rows["wx"][0] = [0.2, 0.3, 0.5, 0, 0, 0, 0, 0.1]
    seeds = [5, 9, 2**63]
    got = kernels.step(x.copy(), c, rows, eps_uncond=u, scale=2.5, seeds=seeds)
    z = np.stack([ddpm_rt.noise(s, 6, SHAPE[1:], stream=1) for s in seeds]).astype(np.float64)
    e = u + 2.5 * (c.astype(np.float64) - u)
    x0 = np.clip(1.1 * x - 0.4 * e, -0.5, 0.5)
    assert np.abs(got - (0.2 * x + 0.3 * e + 0.5 * x0 + 0.1 * z)).max() < 2e-6


def test_history_and_anchor_live_in_the_state():
    x, e = arrays(2)
    rows = table({"flags": PUSH, "q": 1.0}, {"flags": PUSH | KEEP, "q": 2.0}, {})
    rows["wh"][0], rows["wh"][1] = [0, 0, 1], [0, 0, 1]
    rows["wx"][0] = rows["wx"][1] = [1, 0, 0, 0, 0, 0, 0, 0]
    rows["wy"][1] = [3, 0, 0, 0, 0, 0, 0]
    rows["wx"][2] = [0, 0, 0, 10, 1, 0, 100, 0]  # 10 h1 + h2 + 100 y
    state, state_x = kernels.State(x), x.copy()
    for i in range(3):
        kernels.step(state_x, e, rows, seeds=0, index=i, state=state)
    assert np.allclose(state_x, 10 * 2 * e + e + 100 * 3 * x, rtol=1e-5)


def test_state_holds_the_next_input_and_x0():
    x, e = arrays(2)
    rows = table({"p": 1, "q": -1}, {"c_in": 0.5})
    rows["wx"][0, :2] = [1, 1]
    state = kernels.State(x)
    after = kernels.step(x.copy(), e, rows, seeds=0, state=state)
    assert (state.input == np.float32(0.5) * after).all() and np.allclose(state.x0, x - e)


def test_out_leaves_x_alone():
    x, e = arrays(2)
    before, out = x.copy(), np.empty_like(x)
    rows = ddpm_rt.rows("ddpm", 10)
    assert kernels.step(x, e, rows, seeds=3, out=out) is out
    assert (x == before).all() and (kernels.step(x, e, rows, seeds=3) == out).all()


def test_one_seed_counts_up():
    x, e = arrays(2)
    rows = ddpm_rt.rows("ddpm", 10)
    a = kernels.step(x.copy(), e, rows, seeds=2**64 - 1)
    assert (a == kernels.step(x.copy(), e, rows, seeds=[2**64 - 1, 0, 1])).all()


@pytest.mark.parametrize("where", ["x", "out"])
def test_torch_tensors_are_updated_in_place(where):
    torch = pytest.importorskip("torch")
    x, e = arrays(2)
    rows = ddpm_rt.rows("ddim", 10)
    expected = kernels.step(x.copy(), e, rows, seeds=0)
    tx, te, out = torch.from_numpy(x.copy()), torch.from_numpy(e), torch.zeros(SHAPE)
    got = kernels.step(tx, te, rows, seeds=0, out=out if where == "out" else None)
    assert got is (out if where == "out" else tx) and (got.numpy() == expected).all()


def test_cfg_combine_is_eq_6_with_s_one_plus_w():
    c, u = arrays(2)
    s = [2.0, 0.5, -1.0]
    got = kernels.cfg_combine(c, u, s)
    expected = u + np.reshape(s, (3, 1, 1)) * (c.astype(np.float64) - u)
    assert np.abs(got - expected).max() < 1e-6
    assert (kernels.cfg_combine(c, u, 2.0)[0] == got[0]).all()
    out = c.copy()
    assert kernels.cfg_combine(out, u, s, out=out) is out and (out == got).all()


def test_cfg_rescale_restores_the_conditional_spread():
    c, u = arrays(2)
    full = kernels.cfg_combine(c, u, 5.0, rescale=1.0)
    assert np.allclose(full.std((1, 2)), c.std((1, 2)), rtol=1e-5)
    plain = kernels.cfg_combine(c, u, 5.0)
    assert np.allclose(kernels.cfg_combine(c, u, 5.0, rescale=0.7), 0.7 * full + 0.3 * plain, atol=1e-5)


def test_cfg_combine_answers_in_the_caller_s_framework():
    torch = pytest.importorskip("torch")
    c, u = arrays(2)
    got = kernels.cfg_combine(torch.from_numpy(c), torch.from_numpy(u), 3.0)
    assert isinstance(got, torch.Tensor) and (got.numpy() == kernels.cfg_combine(c, u, 3.0)).all()


def test_noise_is_normal_and_keyed():
    z = ddpm_rt.noise(1, 0, (1000, 100))
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    for other in (ddpm_rt.noise(2, 0, 64), ddpm_rt.noise(1, 1, 64), ddpm_rt.noise(1, 0, 64, stream=1)):
        assert not (other == z.ravel()[:64]).any()
    assert (ddpm_rt.noise(1, 0, 61) == z.ravel()[:61]).all()  # element by element, whatever the length


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 50), ("ddpm", 30)])
def test_own_loop_is_the_engine_bit_for_bit(sampler, steps):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from own_loop import sample
    finally:
        sys.path.pop(0)
    labels = np.array([0, 1, 1, 0])
    mine = sample(gaussian, (1, 4, 4), labels, null=2, sampler=sampler, steps=steps, scale=3.0, seed=11)
    with ddpm_rt.Engine.from_callable(gaussian, (1, 4, 4), num_classes=2) as engine:
        images = engine.sample(4, labels=labels, sampler=sampler, steps=steps, scale=3.0, seed=11, output="float")
    assert (mine == images).all()


BAD = [
    ({"x": np.zeros(SHAPE)}, "x: expected float32"),
    ({"eps": np.zeros((3, 2, 4), np.float32)}, "eps: expected float32"),
    ({"eps": [1, 2]}, "eps: expected a numpy array"),
    ({"seeds": [1, 2]}, "seeds: expected 3, got 2"),
    ({"seeds": [1, 2, -1]}, "seeds"),
    ({"seeds": 2**64}, "seeds"),
    ({"index": 10}, "index: expected an integer from 0 to 9"),
    ({"index": -1}, "index"),
    ({"scale": float("nan")}, "scale: expected a finite number"),
    ({"rows": np.zeros(3)}, "rows: expected a table"),
    ({"rows": table({"flags": PUSH}, {})}, "state: expected"),
    ({"rows": table({"flags": 1 << 20}, {})}, "flag"),
    ({"out": np.zeros(SHAPE, np.float32)[::-1]}, "out: expected C-contiguous"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_to_step(change, message):
    given = dict(zip(("x", "eps"), arrays(2), strict=True)) | {"rows": ddpm_rt.rows("ddim", 10), "seeds": 0} | change
    x = given["x"]
    before = x.copy()
    with pytest.raises(ddpm_rt.DdpmError, match=message):
        kernels.step(given.pop("x"), given.pop("eps"), given.pop("rows"), **given)
    assert (x == before).all()


def test_read_only_and_aliased_memory_is_refused():
    x, e = arrays(2)
    with pytest.raises(ddpm_rt.OptionError, match="memory of its own"):
        kernels.step(x, x, ddpm_rt.rows("ddim", 10), seeds=0)
    x.flags.writeable = False
    with pytest.raises(ddpm_rt.ShapeError, match="writable"):
        kernels.step(x, e, ddpm_rt.rows("ddim", 10), seeds=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("euler9",), {}, "sampler"),
        (("ddim", 0), {}, "steps"),
        (("ddim", 1001), {}, "steps"),
        (("ddim", 10, "quadratic"), {}, "schedule"),
        (("ddim", 10, [0.1, 2.0]), {}, "betas"),
        (("ddim", 10, {"beta": 1}), {}, "schedule"),
        (("ddim", 10), {"eta": 2.0}, "eta"),
        (("ddpm", 10), {"eta": 0.5}, "eta"),
        (("ddim", 10), {"clip": "hard"}, "clip"),
        (("ddim", 10), {"grid": "log"}, "grid"),
        (("ddim", 10), {"prediction": "guess"}, "prediction"),
    ],
)
def test_bad_input_to_rows(arguments, options, message):
    with pytest.raises(ddpm_rt.OptionError, match=message):
        ddpm_rt.rows(*arguments, **options)


def test_a_tensor_elsewhere_is_a_device_error():
    class Elsewhere:
        def __dlpack__(self, **unused):
            raise AssertionError("not to be called")

        def __dlpack_device__(self):
            return (10, 0)  # kDLROCM

    with pytest.raises(ddpm_rt.DeviceError, match="CPU"):
        kernels.cfg_combine(Elsewhere(), Elsewhere(), 1.0)
