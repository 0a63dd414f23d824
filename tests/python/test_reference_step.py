"""ddpm_rt/reference/step.py: rows derived by hand against the plain loops, and every flag against its own formula."""

import math

import numpy as np
import pytest
import torch

from ddpm_rt.reference import samplers, step
from ddpm_rt.reference.schedule import Schedule, timesteps
from ddpm_rt.reference.step import ROW64, Evaluations, State, execute
from ddpm_rt.row import ROW

SHAPE = (2, 3, 5)
X, E, X0, H1, H2, H3, Y, Z = range(8)
RNG = np.random.default_rng(0)


def network(x, t):
    """A smooth stand-in for eps_theta with something to clip."""
    s = t.double().reshape(-1, 1, 1, 1) / 1000
    return torch.tanh(1.3 * x + s) * (0.5 + s)


def run_rows(rows, x, noise, learned=False):
    state = State(x)
    for i, row in enumerate(rows):
        out = network(torch.from_numpy(state.x)[None], torch.tensor([row["t"]]))[0].numpy()
        if learned:
            out = np.concatenate([out, np.sin(3 * state.x)])
        state = execute(row, rows[i + 1] if i + 1 < len(rows) else None, state, Evaluations(cond=out, z=noise(i))).state
    return state.x


def table(schedule, times, fill):
    """Rows in float64; `fill(row, ab, ab_p)` sets the weights of one."""
    rows = np.zeros(len(times), ROW64)
    ab = [float(schedule.alpha_bar[t]) for t in times] + [1.0]
    for i, row in enumerate(rows):
        row["t"], row["c_in"], row["gs"], row["noise_index"] = times[i], 1, 1, i
        row["p"], row["q"] = 1 / math.sqrt(ab[i]), -math.sqrt((1 - ab[i]) / ab[i])
        fill(row, ab[i], ab[i + 1])
    rows[-1]["flags"] |= step.LAST
    return rows


def clipped(row, low=-1.0, high=1.0):
    row["flags"] |= step.CLIP
    row["clip_lo"], row["clip_hi"] = low, high


def noises(n):
    z = np.random.default_rng(1).standard_normal((n, *SHAPE))
    return lambda i: z[i], lambda i: torch.from_numpy(z[i])[None]


@pytest.mark.parametrize("variance", samplers.VARIANCES)
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize(
    "name, grid, steps", [("linear", "leading", 50), ("cosine", "trailing", 20), ("linear", "linspace", 1000)]
)
def test_ddpm_rows_equal_the_loop(variance, clip, name, grid, steps):
    schedule, learned = Schedule.make(name), variance == "learned_range"
    times = timesteps(grid, 1000, steps)

    def fill(row, ab, ab_p):
        beta, small = 1 - ab / ab_p, (1 - ab_p) / (1 - ab) * (1 - ab / ab_p)
        row["wx"][X0] = math.sqrt(ab_p) * beta / (1 - ab)
        row["wx"][X] = math.sqrt(ab / ab_p) * (1 - ab_p) / (1 - ab)
        row["wx"][Z] = math.sqrt(beta if variance == "fixed_large" else small)
        if learned:
            row["flags"] |= step.LEARNED_RANGE
            row["wx"][Z] = ab_p < 1
            row["log_var_hi"], row["log_var_lo"] = math.log(beta), math.log(small) if ab_p < 1 else 0
        if ab_p == 1:
            row["wx"][:] = 0
            row["wx"][X0] = 1
        if clip:
            clipped(row)

    x = RNG.standard_normal(SHAPE)
    mine, theirs = noises(steps)

    def net(x, t):
        return torch.cat([network(x, t), torch.sin(3 * x)], 1) if learned else network(x, t)

    expected = samplers.ddpm(net, schedule, torch.from_numpy(x)[None], times, theirs, variance=variance, clip=clip)
    got = run_rows(table(schedule, times, fill), x, mine, learned)
    assert np.abs(got - expected[0].numpy()).max() <= 1e-12 * max(1, np.abs(got).max()) * (1 if steps < 1000 else 10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", samplers.CLIPS)
@pytest.mark.parametrize("grid", ["leading", "trailing"])
def test_ddim_rows_equal_the_loop(eta, clip, grid):
    schedule, times = Schedule.make("linear"), timesteps(grid, 1000, 40)

    def fill(row, ab, ab_p):
        sigma = eta * math.sqrt((1 - ab_p) / (1 - ab)) * math.sqrt(1 - ab / ab_p)
        direction = math.sqrt(max(0, 1 - ab_p - sigma**2))
        row["wx"][X0], row["wx"][Z] = math.sqrt(ab_p), sigma
        if clip == "rederive":  # eps = (x - a x0) / s
            row["wx"][X], row["wx"][X0] = (
                direction / math.sqrt(1 - ab),
                math.sqrt(ab_p) - direction * math.sqrt(ab / (1 - ab)),
            )
        else:
            row["wx"][E] = direction
        if clip != "none":
            clipped(row)

    x = RNG.standard_normal(SHAPE)
    mine, theirs = noises(40)
    expected = samplers.ddim(network, schedule, torch.from_numpy(x)[None], times, theirs, eta=eta, clip=clip)
    got = run_rows(table(schedule, times, fill), x, mine)
    assert np.abs(got - expected[0].numpy()).max() <= 1e-12


def test_ddim_eta_1_is_ddpm_fixed_small_without_clipping():
    schedule, times = Schedule.make("linear"), timesteps("leading", 1000, 25)
    x, (_, z) = torch.from_numpy(RNG.standard_normal((1, *SHAPE))), noises(25)
    a = samplers.ddpm(network, schedule, x, times, z, clip=None)
    b = samplers.ddim(network, schedule, x, times, z, eta=1.0, clip="none")
    assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_predictions_agree(prediction):
    """One network told as eps, x0 and v gives one picture."""
    schedule, times = Schedule.make("linear"), timesteps("leading", 1000, 25)
    x = torch.from_numpy(RNG.standard_normal((1, *SHAPE)))

    def other(x, t):
        ab = schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
        eps = network(x, t)
        x0 = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
        return x0 if prediction == "x0" else ab.sqrt() * eps - (1 - ab).sqrt() * x0

    a = samplers.ddim(network, schedule, x, times, clip="keep_eps")
    b = samplers.ddim(other, schedule, x, times, clip="keep_eps", prediction=prediction)
    assert torch.allclose(a, b, atol=1e-9)


def test_samplers_recover_a_gaussian():
    """For data N(m, s^2) the optimal eps is known; DDPM with all steps must return samples of that law."""
    m, s = 0.3, 0.25
    schedule = Schedule.make("linear")

    def exact(x, t):
        ab = schedule.alpha_bar[t].reshape(-1, 1)
        return (1 - ab).sqrt() * (x - ab.sqrt() * m) / (ab * s**2 + 1 - ab)

    torch.manual_seed(0)
    x = torch.randn(20_000, 1, dtype=torch.float64)
    times = timesteps("leading", 1000, 1000)
    got = samplers.ddpm(exact, schedule, x, times, lambda i: torch.randn_like(x), variance="fixed_small", clip=None)
    assert float(got.mean()) == pytest.approx(m, abs=0.01) and float(got.std()) == pytest.approx(s, rel=0.03)


def test_guided_is_u_plus_s_c_minus_u():
    def model(x, t, label):
        return torch.cat([x * (label + 1).reshape(-1, 1, 1, 1), x - label.reshape(-1, 1, 1, 1)], 1)

    x, t, label = torch.ones(1, 2, 1, 1), torch.zeros(1), torch.tensor([4])
    out = samplers.guided(model, label, 9, 3.0)(x, t)
    assert torch.equal(out[:, :2], (10 + 3 * (5 - 10)) * x) and torch.equal(out[:, 2:], x - 4)  # the variance is c's
    assert torch.equal(samplers.guided(model, label, 9, 1.0)(x, t), model(x, t, label))
    assert torch.equal(samplers.guided(model, label, 9, 0.0)(x, t), model(x, t, label * 0 + 9))


def row_with(**fields):
    row = np.zeros((), ROW64)
    row["gs"] = row["c_in"] = 1
    for name, value in fields.items():
        if isinstance(value, dict):
            for k, v in value.items():
                row[name][k] = v
        else:
            row[name] = value
    return row[()]


def arrays(*names):
    return {n: RNG.standard_normal(SHAPE) for n in names}


def test_row_is_256_bytes_and_row64_has_its_fields():
    assert ROW.itemsize == 256 and ROW64.names == ROW.names and ROW64["wx"].shape == (8,)
    assert ROW.fields["wx"][1] == 80 and ROW.fields["spare"][1] == 168  # offsets as kernels/step.h lays them out


def test_guidance_with_interval_factor_and_second_guide():
    a = arrays("cond", "uncond", "guide")
    row = row_with(gs=0.5, wx={E: 1})
    e = execute(row, row, State(np.zeros(SHAPE)), Evaluations(**a), scale=5.0, scale2=0.7).state.x
    expected = a["uncond"] + 3.0 * (a["cond"] - a["uncond"]) + 0.7 * (a["cond"] - a["guide"])  # 1 + (5 - 1) 0.5 = 3
    assert np.allclose(e, expected, atol=1e-14)
    for only in ("cond", "uncond"):
        e = execute(row, row, State(np.zeros(SHAPE)), Evaluations(**{only: a[only]}), scale=5.0).state.x
        assert np.array_equal(e, a[only])


def test_weights_history_anchor_and_next_input():
    a = arrays("x", "cond", "z", "h1", "h2", "h3", "y")
    w = RNG.standard_normal(18)
    row = row_with(
        flags=step.PUSH | step.KEEP,
        p=0.3,
        q=-0.2,
        wx=dict(enumerate(w[:8])),
        wy=dict(enumerate(w[8:15])),
        wh=dict(enumerate(w[15:])),
    )
    state = State(a["x"], (a["h1"], a["h2"], a["h3"]), a["y"])
    r = execute(row, row_with(c_in=0.25), state, Evaluations(cond=a["cond"], z=a["z"]))
    x0 = 0.3 * a["x"] - 0.2 * a["cond"]
    ops = [a["x"], a["cond"], x0, a["h1"], a["h2"], a["h3"], a["y"], a["z"]]
    assert np.allclose(r.state.x, sum(k * o for k, o in zip(w[:8], ops)), atol=1e-13)
    assert np.allclose(r.state.anchor, sum(k * o for k, o in zip(w[8:15], ops)), atol=1e-13)
    assert np.allclose(r.state.history[0], sum(k * o for k, o in zip(w[15:], ops)), atol=1e-13)
    assert r.state.history[1] is a["h1"] and r.state.history[2] is a["h2"] and len(r.state.history) == 3
    assert np.allclose(r.net_input, 0.25 * r.state.x) and np.allclose(r.x0, x0)


def test_zero_weight_is_not_read():
    nan = np.full(SHAPE, np.nan)
    x = RNG.standard_normal(SHAPE)
    row = row_with(flags=step.LAST, p=1, wx={X0: 0.5})
    r = execute(row, None, State(x, (nan, nan, nan), nan), Evaluations(cond=nan, z=nan))
    assert np.array_equal(r.state.x, 0.5 * x) and r.net_input is None


def test_missing_operand_and_unknown_flag_are_named():
    x = np.zeros(SHAPE)
    for k, name in ((Z, "z"), (H2, "h2"), (Y, "y")):
        with pytest.raises(ValueError, match=name):
            execute(row_with(wx={k: 1}), row_with(), State(x), Evaluations(cond=x))
    with pytest.raises(ValueError, match="flags"):
        execute(row_with(flags=1 << 13), row_with(), State(x), Evaluations(cond=x))
    with pytest.raises(ValueError, match="cond"):
        execute(row_with(), row_with(), State(x), Evaluations())


def test_threshold_is_imagens():
    x = 3 * RNG.standard_normal(SHAPE)
    for cap in (100.0, 1.5):
        row = row_with(flags=step.THRESHOLD, p=1, threshold_p=0.9, threshold_cap=cap, wx={X0: 1})
        s = min(max(np.quantile(np.abs(x), 0.9), 1), cap)
        assert np.allclose(execute(row, row, State(x), Evaluations(cond=x)).state.x, np.clip(x, -s, s) / s, atol=1e-14)
    small = x / 100
    assert np.array_equal(execute(row, row, State(small), Evaluations(cond=x)).state.x, small)


def test_rescale_is_lins():
    a = arrays("cond", "uncond")
    row = row_with(flags=step.RESCALE, phi=0.7, wx={E: 1})
    e = execute(row, row, State(np.zeros(SHAPE)), Evaluations(**a), scale=6.0).state.x
    cfg = a["uncond"] + 6 * (a["cond"] - a["uncond"])
    assert np.allclose(e, 0.7 * cfg * a["cond"].std() / cfg.std() + 0.3 * cfg, atol=1e-13)


@pytest.mark.parametrize("flag", [step.LEARNED_VAR, step.LEARNED_RANGE])
def test_learned_variance_scales_noise_and_gradient(flag):
    a = arrays("x", "mean_c", "mean_u", "v_c", "v_u", "z", "grad")
    ev = Evaluations(
        cond=np.concatenate([a["mean_c"], a["v_c"]]),
        uncond=np.concatenate([a["mean_u"], a["v_u"]]),
        z=a["z"],
        grad=a["grad"],
    )
    row = row_with(flags=flag | step.GRAD, gm=0.4, ge=-0.3, log_var_lo=-4.0, log_var_hi=-3.0, wx={E: 0.5, Z: 1})
    f = (a["v_c"] + 1) / 2
    std = np.exp(a["v_c"] / 2) if flag == step.LEARNED_VAR else np.exp(0.5 * (f * -3 + (1 - f) * -4))
    e = a["mean_u"] + 2 * (a["mean_c"] - a["mean_u"]) - 0.3 * a["grad"]
    got = execute(row, row, State(a["x"]), ev, scale=2.0).state.x
    assert np.allclose(got, 0.5 * e + std * a["z"] + 0.4 * std**2 * a["grad"], atol=1e-13)


def test_fixed_variance_gradient():
    a = arrays("x", "cond", "grad")
    row = row_with(flags=step.GRAD, gm=0.4, wx={X: 1})
    got = execute(row, row, State(a["x"]), Evaluations(cond=a["cond"], grad=a["grad"])).state.x
    assert np.allclose(got, a["x"] + 0.4 * a["grad"], atol=1e-14)


def test_blend_keeps_the_known_picture():
    a = arrays("x", "cond", "known", "z_known")
    mask = RNG.random(SHAPE)
    row = row_with(flags=step.BLEND, ky=0.8, kz=0.6, wx={X: 1})
    got = execute(
        row, row, State(a["x"]), Evaluations(cond=a["cond"], known=a["known"], z_known=a["z_known"], mask=mask)
    ).state.x
    assert np.allclose(got, mask * (0.8 * a["known"] + 0.6 * a["z_known"]) + (1 - mask) * a["x"], atol=1e-14)


def test_norm_is_the_langevin_corrector():
    a = arrays("x", "cond", "z")
    row = row_with(flags=step.NORM, snr=0.16, wx={X: 1, E: 2, Z: 2})
    r = 0.16 * np.linalg.norm(a["z"]) / np.linalg.norm(a["cond"])  # step = 2 r^2, noise sqrt(2 step) = 2 r
    got = execute(row, row, State(a["x"]), Evaluations(cond=a["cond"], z=a["z"])).state.x
    assert np.allclose(got, a["x"] + 2 * r**2 * a["cond"] + 2 * r * a["z"], atol=1e-13)


def test_no_eval_moves_without_a_network():
    a = arrays("x", "z")
    row = row_with(flags=step.NO_EVAL, wx={X: 0.9, Z: 0.4})
    got = execute(row, row, State(a["x"]), Evaluations(z=a["z"])).state.x
    assert np.allclose(got, 0.9 * a["x"] + 0.4 * a["z"], atol=1e-14)


@pytest.mark.parametrize("learned", [False, True])
def test_vlb_is_the_kl_of_two_gaussians(learned):
    a = arrays("x", "cond", "v", "x0_true")
    out = np.concatenate([a["cond"], a["v"]]) if learned else a["cond"]
    flags = step.VLB | (step.LEARNED_RANGE if learned else 0)
    row = row_with(flags=flags, p=1.1, q=-0.4, vx=0.7, v0=0.3, lq=-4.0, lp=-3.5, log_var_lo=-4, log_var_hi=-3)
    f = (a["v"] + 1) / 2
    lp = f * -3 + (1 - f) * -4 if learned else np.full(SHAPE, -3.5)
    x0 = 1.1 * a["x"] - 0.4 * a["cond"]
    q = torch.distributions.Normal(torch.from_numpy(0.7 * a["x"] + 0.3 * a["x0_true"]), math.exp(-2))
    p = torch.distributions.Normal(torch.from_numpy(0.7 * a["x"] + 0.3 * x0), torch.from_numpy(np.exp(lp / 2)))
    expected = float(torch.distributions.kl_divergence(q, p).mean())
    got = execute(row, row, State(a["x"]), Evaluations(cond=out, x0_true=a["x0_true"])).kl
    assert got == pytest.approx(expected, rel=1e-12)
    assert execute(row_with(), row, State(a["x"]), Evaluations(cond=a["cond"])).kl is None


def test_every_flag_is_exercised_here():
    import inspect
    import re

    text = inspect.getsource(inspect.getmodule(row_with))
    assert set(re.findall(r"step\.([A-Z_]+)", text)) >= {
        "PUSH", "KEEP", "CLIP", "THRESHOLD", "RESCALE", "LEARNED_VAR", "LEARNED_RANGE", "GRAD", "BLEND", "NORM", "VLB",
        "NO_EVAL", "LAST",
    }  # fmt: skip
