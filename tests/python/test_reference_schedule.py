"""ddpm_rt/reference/schedule.py against the papers' formulas."""

import itertools
import math

import numpy as np
import pytest
import torch

from ddpm_rt.reference.schedule import GRIDS, NAMED, Schedule, timesteps, zero_terminal_snr

T0 = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("name", NAMED)
def test_named_schedules_are_schedules(name):
    s = Schedule.make(name, 1000)
    assert len(s) == 1000 and s.alpha_bar.dtype == torch.float64
    assert torch.allclose(torch.cumprod(1 - s.betas, 0), s.alpha_bar, rtol=1e-10, atol=0)
    assert 0.99 < s.alpha_bar[0] < 1 and s.alpha_bar[-1] < 0.05


def test_published_values():
    linear = Schedule.make("linear")
    assert linear.betas[0] == pytest.approx(1e-4, rel=1e-11) and linear.betas[-1] == pytest.approx(0.02, rel=1e-11)
    assert float(linear.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    cosine = Schedule.make("cosine")
    f = [math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, 0.5)]
    assert float(cosine.alpha_bar[499]) == pytest.approx(f[1] / f[0], rel=1e-9)
    assert cosine.betas.max() == pytest.approx(0.999)
    assert Schedule.make("scaled_linear").betas[-1] == pytest.approx(0.012)


def test_zero_terminal_snr():
    ab = Schedule.make("scaled_linear").alpha_bar
    z = zero_terminal_snr(ab)
    assert z[-1] == 0 and z[0] == pytest.approx(float(ab[0])) and bool((z.diff() < 0).all())
    assert torch.equal(Schedule.make("scaled_linear", zero_terminal=True).alpha_bar, z)


@pytest.mark.parametrize("name", NAMED)
def test_q_step_composed_t_times_is_q_sample(name):
    """Mean and variance of x_t by T steps of eq. 2 equal those of eq. 4 at every t: q_step is linear in (x, eps)."""
    T = 60
    s = Schedule.make(name, T)
    mean, variance = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for k in range(T):
        t = T0 + k
        gain = s.q_step(torch.ones(1, 1, dtype=torch.float64), t, torch.zeros(1, 1))[0]
        added = s.q_step(torch.zeros(1, 1, dtype=torch.float64), t, torch.ones(1, 1, dtype=torch.float64))[0]
        mean, variance = gain * mean, gain**2 * variance + added**2
        direct = s.q_sample(torch.ones(1, 1, dtype=torch.float64), t, torch.zeros(1, 1))[0]
        noise = s.q_sample(torch.zeros(1, 1, dtype=torch.float64), t, torch.ones(1, 1, dtype=torch.float64))[0]
        assert float(mean) == pytest.approx(float(direct), rel=1e-12)
        assert float(variance) == pytest.approx(float(noise**2), rel=1e-10)


def test_q_step_composed_on_samples():
    """The same statement by simulation, through the functions a user calls."""
    torch.manual_seed(0)
    s = Schedule.make("linear", 40, start=1e-3, end=0.1)
    n, x = 200_000, torch.full((200_000, 1), 0.7, dtype=torch.float64)
    for k in range(40):
        x = s.q_step(x, torch.full((n,), k), torch.randn(n, 1, dtype=torch.float64))
    expected = math.sqrt(float(s.alpha_bar[-1])) * 0.7
    assert float(x.mean()) == pytest.approx(expected, abs=0.01)
    assert float(x.var()) == pytest.approx(1 - float(s.alpha_bar[-1]), rel=0.02)


@pytest.mark.parametrize("t", [1, 7, 49])
def test_posterior_is_bayes(t):
    """q(x_{t-1}|x_t,x_0) ~ q(x_t|x_{t-1}) q(x_{t-1}|x_0), integrated on a grid."""
    s = Schedule.make("linear", 50, start=1e-3, end=0.2)
    x0, x_t = 0.4, -0.3
    ab_p, beta = float(s.alpha_bar[t - 1]), float(s.betas[t])
    grid = np.linspace(-8, 8, 400_001)
    log_p = -((grid - math.sqrt(ab_p) * x0) ** 2) / (2 * (1 - ab_p)) - (x_t - math.sqrt(1 - beta) * grid) ** 2 / (
        2 * beta
    )
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = (p * grid).sum()
    got = s.posterior_mean(
        torch.tensor([[x0]], dtype=torch.float64), torch.tensor([[x_t]], dtype=torch.float64), T0 + t
    )
    assert float(got) == pytest.approx(mean, abs=1e-9)
    assert float(s.posterior_variance[t]) == pytest.approx((p * (grid - mean) ** 2).sum(), rel=1e-8)


def test_posterior_at_the_image_is_the_image():
    s = Schedule.make("linear", 50)
    x0, x_t = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    assert torch.allclose(s.posterior_mean(x0[None], x_t[None], T0), x0[None], atol=1e-12)
    assert s.posterior_variance[0] == 0 and s.posterior_log_variance[0] == s.posterior_log_variance[1]


def test_predict_x0_inverts_q_sample():
    s = Schedule.make("cosine")
    x0, eps, t = (
        torch.randn(5, 2, 4, dtype=torch.float64),
        torch.randn(5, 2, 4, dtype=torch.float64),
        torch.arange(5) * 200,
    )
    assert torch.allclose(s.predict_x0(s.q_sample(x0, t, eps), t, eps), x0, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_hold_their_post_condition_for_every_step_count(grid):
    for steps in range(1, 1001):
        times = timesteps(grid, 1000, steps)
        assert len(times) == steps and 0 <= times[-1] and times[0] < 1000
        assert all(a > b for a, b in itertools.pairwise(times))


def test_grids_are_table_2_of_lin():
    """Lin et al. table 2, T = 1000, 10 steps."""
    assert timesteps("leading", 1000, 10)[::-1] == list(range(0, 1000, 100))
    assert timesteps("linspace", 1000, 10)[::-1] == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert timesteps("trailing", 1000, 10)[::-1] == list(range(99, 1000, 100))


@pytest.mark.parametrize(
    "call, field",
    [
        (lambda: Schedule.make("quadratic"), "schedule"),
        (lambda: Schedule.make(T=0), "T"),
        (lambda: Schedule.make(betas=[0.1, 1.5]), "betas"),
        (lambda: Schedule.make(betas=[]), "betas"),
        (lambda: Schedule.make(betas=[0.1, float("nan")]), "betas"),
        (lambda: Schedule.make(alpha_bar=[0.5, 0.6]), r"alpha_bar\[1\]"),
        (lambda: Schedule.make(alpha_bar=[0.0, 0.0]), r"alpha_bar\[0\]"),
        (lambda: Schedule.make(alpha_bar=[1.5]), r"alpha_bar\[0\]"),
        (lambda: Schedule.make(betas=[0.1], alpha_bar=[0.9]), "both"),
        (lambda: timesteps("leading", 10, 11), "steps"),
        (lambda: timesteps("leading", 10, 0), "steps"),
        (lambda: timesteps("cubic", 10, 1), "grid"),
    ],
)
def test_bad_input_is_named(call, field):
    with pytest.raises(ValueError, match=field):
        call()
