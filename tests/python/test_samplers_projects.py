"""compat="k-diffusion" against k-diffusion's own sampling.py; "edm" and "guided-diffusion" against golden loops.

k-diffusion (PyPI, without its dependencies) is optional: only its sampling.py is loaded, and skipped with a reason where it is
absent. EDM's and guided-diffusion's code is not on a registry: the loops here are written from Karras et al. 2206.00364
algorithm 2 and table 1, and from Nichol & Dhariwal 2102.09672 eq. 15 to 19 with the conventions of their README and code (docs/
samplers.md names them), in float64; nothing of the code under test is in them.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types

import loops
import numpy as np
import pytest

import ddpm_rt

torch = pytest.importorskip("torch")

SHAPE = (2, 3, 4, 4)
UNIT = np.random.default_rng(0).standard_normal(SHAPE)
AB = ddpm_rt.kernels.alpha_bar("linear")
SIGMAS = np.sqrt((1 - AB) / AB)


def eps_of(x, t):
    """A bounded network that takes fractional times; any floating dtype."""
    s = t / 1000
    return np.tanh(1.1 * x + 0.3 * np.roll(x, 1, -1) + s) * (0.6 + 0.5 * s)


def noise(row):
    return np.random.default_rng(500 + row).standard_normal(SHAPE)


def ours(sampler, steps, compat, schedule="linear", net=eps_of, **options):
    rows, sigma = loops.rows_of(sampler=sampler, steps=steps, schedule=schedule, compat=compat, exact=True, **options)
    return loops.float64(rows, sigma * UNIT, net, noise), rows


# --------------------------------------------------------------------------------------------------- k-diffusion


@pytest.fixture(scope="module")
def kd():
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    package.utils = utils
    package.__path__ = list(found.submodule_search_locations)
    stubs = {"k_diffusion": package, "k_diffusion.utils": utils}
    for name, attribute in (("torchdiffeq", "odeint"), ("torchsde", "BrownianTree")):  # imported there, not used here
        if importlib.util.find_spec(name) is None:
            stubs[name] = types.ModuleType(name)
            setattr(stubs[name], attribute, None)
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        spec = importlib.util.spec_from_file_location("k_diffusion.sampling", f"{package.__path__[0]}/sampling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, value in before.items():
            if value is None:
                del sys.modules[name]
            else:
                sys.modules[name] = value
    return module


def denoiser(x, sigma, **_):
    """DiscreteEpsDDPMDenoiser without rounding: x0 = x - sigma eps(x / sqrt(sigma^2 + 1), t), log sigma linear in t."""
    s = float(sigma[0])
    t = np.interp(math.log(s), np.log(SIGMAS), np.arange(1000.0))
    return x - s * torch.from_numpy(eps_of(x.numpy() / math.sqrt(s * s + 1), t))


def sequence(rows):
    """Noise for a loop that asks once for each row that adds any."""
    order = iter(rows)
    return lambda *_: torch.from_numpy(noise(next(order)))


KD = {
    "euler": ("sample_euler", {}),
    "euler_ancestral": ("sample_euler_ancestral", {}),
    "heun": ("sample_heun", {}),
    "lms": ("sample_lms", {}),
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    "dpmpp_2s": ("sample_dpmpp_2s_ancestral", {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {}),
    "dpmpp_3m": ("sample_dpmpp_3m_sde", {}),
}


@pytest.mark.parametrize("grid", ["karras", "exponential", "linspace"])
@pytest.mark.parametrize("sampler", list(KD))
def test_k_diffusion(kd, sampler, grid):
    for steps in (2, 7, 20):
        low, high = SIGMAS[0], SIGMAS[-1]
        if grid == "karras":
            ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
            sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7  # get_sigmas_karras, in float64
            assert torch.allclose(sigmas.float(), kd.get_sigmas_karras(steps, low, high)[:-1], rtol=1e-5)
        elif grid == "exponential":
            sigmas = torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp()
        else:  # DiscreteSchedule.get_sigmas
            sigmas = torch.from_numpy(np.exp(np.interp(np.linspace(999, 0, steps), np.arange(1000.0), np.log(SIGMAS))))
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        got, rows = ours(sampler, steps, "k-diffusion", grid=grid)
        noisy = [i for i, row in enumerate(rows) if row["wx"][7] != 0]
        name, more = KD[sampler]
        if sampler not in ("euler", "heun", "lms", "dpmpp_2m"):
            more = {**more, "noise_sampler": sequence(noisy)}
        expected = getattr(kd, name)(denoiser, torch.from_numpy(UNIT) * sigmas[0], sigmas, disable=True, **more).numpy()
        tolerance = 5e-5 if sampler == "lms" else 1e-9  # its quadrature stops at 1e-4
        assert np.abs(got - expected).max() <= tolerance * max(1.0, loops.float64.peak), steps


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_k_diffusion_s_churn(kd, sampler, monkeypatch):
    options = {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    got, _ = ours(sampler, 12, "k-diffusion", sampler_options=options)
    sigmas = torch.tensor([*ramp(12), 0.0], dtype=torch.float64)
    churning = [0.05 <= s <= 50.0 for s in sigmas[:-1]]
    before = {i: max(0, (i if sampler == "euler" else 2 * i) - 1) for i in range(12)}
    counter = iter(range(12))

    def randn_like(x):
        i = next(counter)
        return torch.from_numpy(noise(before[i]) if churning[i] else np.zeros(SHAPE))

    monkeypatch.setattr(kd.torch, "randn_like", randn_like)
    expected = getattr(kd, f"sample_{sampler}")(
        denoiser, torch.from_numpy(UNIT) * sigmas[0], sigmas, disable=True, **options
    )
    assert np.abs(got - expected.numpy()).max() <= 1e-9 * loops.float64.peak


def ramp(n):
    low, high = SIGMAS[0] ** (1 / 7), SIGMAS[-1] ** (1 / 7)
    return [(high + k / (n - 1) * (low - high)) ** 7 for k in range(n)]


# ----------------------------------------------------------------------------------------------------------- EDM


def edm_loop(D, x, sigmas, heun=True, churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0, place=float):
    """Karras et al. algorithm 2, line by line."""
    N, row = len(sigmas) - 1, 0
    for i in range(N):
        t, following = sigmas[i], sigmas[i + 1]
        gamma = min(churn / N, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = place(t + gamma * t) if gamma else t
        if gamma:
            row += i == 0
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise(row - 1)
        d = (x - D(x, t_hat)) / t_hat
        row += 1
        ahead = x + (following - t_hat) * d
        if following != 0 and heun:
            d2 = (ahead - D(ahead, following)) / following
            row += 1
            ahead = x + (following - t_hat) * (d + d2) / 2
        x = ahead
    return x


def eq5(n, low, high, rho=7):
    return [
        (high ** (1 / rho) + i / max(1, n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)
    ] + [0.0]


def F(x, c_noise):  # a raw network
    return np.tanh(0.7 * x + 0.2 * np.roll(x, 1, -1) + 0.3 * c_noise)


@pytest.mark.parametrize("churn", [0.0, 20.0])
@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_edm_on_edm_networks(sampler, churn):
    def D(x, sigma):
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        return c_skip * x + c_out * F(x / math.sqrt(sigma**2 + 0.25), math.log(sigma) / 4)

    for n in (2, 18):
        options = {"s_churn": churn, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003} if churn else {}
        got, rows = ours(sampler, n, "edm", "edm", F, prediction="edm", sampler_options=options)
        assert churn or len(rows) == (2 * n - 1 if sampler == "heun" else n)
        more = {"churn": churn, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003} if churn else {}
        expected = edm_loop(D, 80 * UNIT, eq5(n, 0.002, 80.0), sampler == "heun", **more)
        assert np.abs(got - expected).max() <= 1e-10 * 80


def test_edm_s_vp_network():
    """Table 1, VP column: c_skip 1, c_out -sigma, c_in 1 / sqrt(sigma^2 + 1), c_noise (M - 1) t(sigma)."""
    b_min, b_d = 0.1, 19.9

    def t_of(sigma):
        return (math.sqrt(b_min**2 + 2 * b_d * math.log(sigma**2 + 1)) - b_min) / b_d

    def sigma_of(t):
        return math.sqrt(math.exp(b_d * t**2 / 2 + b_min * t) - 1)

    def D(x, sigma):
        return x - sigma * eps_of(x / math.sqrt(sigma**2 + 1), 999 * t_of(sigma))

    got, _ = ours("heun", 18, "edm", {"name": "vp", "t_min": 1e-3}, time_scale=999.0)
    sigmas = eq5(18, max(0.002, sigma_of(1e-3)), min(80.0, sigma_of(1.0)))
    assert np.abs(got - edm_loop(D, sigmas[0] * UNIT, sigmas)).max() <= 1e-9 * 80


def test_edm_s_ve_network():
    """Table 1, VE column: c_skip 1, c_out sigma, c_in 1, c_noise ln(sigma / 2)."""

    def D(x, sigma):
        return x + sigma * F(x, math.log(sigma / 2))

    schedule = {"name": "ve", "sigma_min": 0.02, "sigma_max": 100.0}
    got, _ = ours("heun", 18, "edm", schedule, F, prediction="scaled_score", time="log_half_sigma")
    sigmas = eq5(18, 0.02, 80.0)
    assert np.abs(got - edm_loop(D, sigmas[0] * UNIT, sigmas)).max() <= 1e-9 * 80


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_edm_s_iddpm_network(churn):
    """Table 1, iDDPM column: an eps network of a discrete schedule; every level is rounded to one of the schedule's own."""

    def near(sigma):
        return int(np.abs(SIGMAS - sigma).argmin())

    def D(x, sigma):
        return x - sigma * eps_of(x / math.sqrt(sigma**2 + 1), float(near(sigma)))

    def place(sigma):
        return float(SIGMAS[near(sigma)])

    options = {"s_churn": churn} if churn else {}
    got, rows = ours("heun", 12, "edm", sampler_options=options)
    sigmas = [place(s) for s in eq5(12, max(0.002, SIGMAS[0]), min(80.0, SIGMAS[-1]))[:-1]] + [0.0]
    assert all(t == round(t) for t in rows["t"])
    assert np.abs(got - edm_loop(D, sigmas[0] * UNIT, sigmas, churn=churn, place=place)).max() <= 1e-9 * 80


# ---------------------------------------------------------------------------------------------- guided-diffusion


def space_timesteps(T, text):
    """timestep_respacing as their README describes it, with the running float index of their code."""
    if text.startswith("ddim"):
        stride = next((s for s in range(1, T) if len(range(0, T, s)) == int(text[4:])), None)
        return None if stride is None else list(range(0, T, stride))
    counts, start, times = [int(c) for c in text.split(",")], 0, []
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        stride, at = 1 if count <= 1 else (size - 1) / (count - 1), 0.0
        for _ in range(count):
            times.append(start + round(at))
            at += stride
        start += size
    return times


def test_guided_diffusion_s_spacing_for_every_count():
    for n in range(1, 1001):
        rows = ddpm_rt.rows("ddpm", n, compat="guided-diffusion")
        assert rows["t"].tolist() == space_timesteps(1000, str(n))[::-1], n
    for text in ("10,15,20", "1,1,1", "50,0", "334,333,333", "ddim25", "ddim50", "ddim7", "ddim300"):
        expected = space_timesteps(1000, text) if "0" not in text.split(",") else None
        options = {"sampler": "ddim", "compat": "guided-diffusion", "grid": text}
        if expected is None:
            with pytest.raises(ddpm_rt.OptionError, match="grid"):
                ddpm_rt.rows(**options)
        else:
            assert ddpm_rt.rows(**options)["t"].tolist() == expected[::-1]


def guided_loop(net, x, times, *, learned=False, ddim=False, eta=0.0):
    """p_sample_loop and ddim_sample_loop: eq. 15 and 19, x0 clamped, eps of the clamped x0, fixed_large unless learned."""
    ab = AB[times]
    before = np.append(1.0, ab[:-1])
    beta = 1 - ab / before
    posterior = beta * (1 - before) / (1 - ab)
    clipped = np.log(np.append(posterior[1], posterior[1:]))
    for row, k in enumerate(range(len(times))[::-1]):
        out = net(x, float(times[k]))
        out, v = (out[: len(x)], out[len(x) :]) if learned else (out, None)
        x0 = np.clip((x - math.sqrt(1 - ab[k]) * out) / math.sqrt(ab[k]), -1, 1)
        if ddim:
            eps = (x - math.sqrt(ab[k]) * x0) / math.sqrt(1 - ab[k])
            s = eta * math.sqrt((1 - before[k]) / (1 - ab[k])) * math.sqrt(1 - ab[k] / before[k])
            x = x0 * math.sqrt(before[k]) + math.sqrt(1 - before[k] - s**2) * eps + (s * noise(row) if k else 0)
            continue
        mean = (
            math.sqrt(before[k]) * beta[k] / (1 - ab[k]) * x0
            + math.sqrt(1 - beta[k]) * (1 - before[k]) / (1 - ab[k]) * x
        )
        f = (v + 1) / 2 if learned else 1.0
        log_variance = f * math.log(beta[k]) + (1 - f) * clipped[k]
        x = mean + (np.exp(0.5 * log_variance) * noise(row) if k else 0)
    return x


@pytest.mark.parametrize("learned", [False, True])
def test_guided_diffusion_s_ddpm(learned):
    def net(x, t):
        return np.concatenate([eps_of(x, t), np.sin(3 * x)]) if learned else eps_of(x, t)

    for n in (2, 25, 250):
        got, _ = ours(
            "ddpm", n, "guided-diffusion", net=net, network_variance="learned_range" if learned else "fixed"
        )
        assert np.abs(got - guided_loop(net, UNIT, space_timesteps(1000, str(n)), learned=learned)).max() <= 1e-10


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_guided_diffusion_s_ddim(eta):
    for n in (25, 50):
        got, _ = ours("ddim", n, "guided-diffusion", eta=eta)
        assert (
            np.abs(got - guided_loop(eps_of, UNIT, space_timesteps(1000, f"ddim{n}"), ddim=True, eta=eta)).max()
            <= 1e-10
        )


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sampler": "unipc", "compat": "k-diffusion"}, "that project has no other"),
        ({"sampler": "ddim", "compat": "edm"}, "that project has no other"),
        ({"sampler": "heun", "compat": "guided-diffusion"}, "that project has no other"),
        ({"sampler": "heun", "compat": "edm", "schedule": "flow"}, "flow"),
        ({"sampler": "ddpm", "compat": "guided-diffusion", "prediction": "v"}, "prediction"),
        ({"sampler": "ddpm", "compat": "guided-diffusion", "prediction": "mean"}, "never saw"),
        ({"sampler": "ddim", "steps": 300, "compat": "guided-diffusion"}, "integer stride"),
        ({"sampler": "ddim", "compat": "elsewhere"}, "compat: expected one of"),
    ],
)
def test_what_a_project_cannot_do_is_refused(options, why):
    with pytest.raises(ddpm_rt.OptionError, match=why):
        ddpm_rt.rows(**{"steps": 10, **options})
