"""Guidance: rows against the twin of ddpm_rt.reference.guidance, the engine against loops by hand, closed forms, bad input."""

from __future__ import annotations

import math

import loops
import numpy as np
import pytest
import torch

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.reference import run
from ddpm_rt.reference.denoise import Denoiser, gaussian
from ddpm_rt.reference.guidance import Guided
from ddpm_rt.reference.levels import Discrete
from ddpm_rt.reference.step import Evaluations, State, execute
from ddpm_rt.row import GRAD, NO_EVAL, RESCALE, THRESHOLD

SHAPE = (2, 3)
LINEAR = Discrete(ddpm_rt.kernels.alpha_bar("linear"))
INTERVAL = {"guidance_interval": (0.3, 5.0)}
EVERYTHING = {"guidance_rescale": 0.7, **INTERVAL, "threshold": (0.8, 1.5), "classifier_scale": 1.5}


def networks(prediction):
    """Conditional, unconditional, and a gradient field: smooth, different at each element."""
    of = Denoiser(None, LINEAR, prediction)
    cond, uncond = gaussian(of, 0.8, 0.5), gaussian(of, -0.3, 0.9)
    tilt = torch.linspace(-1, 1, math.prod(SHAPE), dtype=torch.float64).reshape(SHAPE)
    return (
        lambda x, t: cond(x, t) + 0.2 * torch.sin(x + tilt),
        lambda x, t: uncond(x, t) - 0.1 * tilt,
        lambda x, t: torch.cos(x) + tilt,
    )


def executed(rows, init_sigma, unit, noise, nets, scale):
    """The float64 executor over rows in float64; -> x, evaluations."""
    cond, uncond, grad = nets
    state, count = State(init_sigma * unit.numpy()), 0
    for i, row in enumerate(rows):
        following = rows[i + 1] if i + 1 < len(rows) else None
        x, t = torch.from_numpy(row["c_in"] * state.x), float(row["t"])
        given = {"z": noise(i).numpy()}
        if not row["flags"] & NO_EVAL:
            given["cond"] = cond(x, t).numpy()
            count += 1
            if 1 + (scale - 1) * row["gs"] != 1:
                given["uncond"] = uncond(x, t).numpy()
                count += 1
        if row["flags"] & GRAD:
            given["grad"] = grad(x, t).numpy()
        state = execute(row, following, state, Evaluations(**given), scale=scale).state
    return state.x, count


@pytest.mark.parametrize("options", [{"guidance_rescale": 0.7}, INTERVAL, {"threshold": (0.8, 1.5)}, {"classifier_scale": 1.5}, EVERYTHING])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "unipc", "euler_ancestral"])
def test_rows_are_the_twin_s(sampler, prediction, options):
    cond, uncond, grad = networks(prediction)
    of = Guided(
        cond,
        LINEAR,
        prediction,
        clip="rederive",
        uncond=uncond,
        scale=2.5,
        rescale=options.get("guidance_rescale", 0.0),
        interval=options.get("guidance_interval"),
        threshold=options.get("threshold"),
        gradient=grad,
        classifier_scale=options.get("classifier_scale", 0.0),
    )
    rng = np.random.default_rng(3)
    unit, drawn = torch.from_numpy(rng.standard_normal(SHAPE)), rng.standard_normal((60, *SHAPE))

    def noise(row):
        return torch.from_numpy(drawn[row])

    expected = run.sample(sampler, of, 12, unit, noise)
    rows, sigma = loops.rows_of(sampler=sampler, steps=12, prediction=prediction, clip="rederive", exact=True, **options)
    got, count = executed(rows, sigma, unit, noise, (cond, uncond, grad), 2.5)
    assert np.abs(got - expected.numpy()).max() <= 1e-10 * max(1, float(expected.abs().max()))
    assert count == of.evaluations


def test_ddpm_moves_the_mean_by_the_variance():
    """Dhariwal & Nichol algorithm 1: mu + s Sigma grad, from DDPM eq. 7 written out."""
    cond, _, grad = networks("eps")
    ab = LINEAR.alpha_bar
    for variance in ("fixed_small", "fixed_large"):
        rows = ddpm_rt.rows("ddpm", 10, variance=variance, clip="none", classifier_scale=2.0, exact=True)
        x = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE))
        for i, t in enumerate(range(900, -1, -100)):
            a, before = float(ab[t]), float(ab[t - 100]) if t else 1.0
            beta = 1 - a / before
            z = np.random.default_rng(i).standard_normal(SHAPE)
            x0 = (x - math.sqrt(1 - a) * cond(x, t)) / math.sqrt(a)
            mean = math.sqrt(before) * beta / (1 - a) * x0 + math.sqrt(a / before) * (1 - before) / (1 - a) * x
            var = (beta if variance == "fixed_large" else (1 - before) / (1 - a) * beta) if t else 0.0
            expected = mean + 2.0 * var * grad(x, t) + math.sqrt(var) * torch.from_numpy(z)
            given = Evaluations(cond=cond(x, t).numpy(), grad=grad(x, t).numpy(), z=z)
            following = rows[i + 1] if i < 9 else None
            got = execute(rows[i], following, State(x.numpy()), given).state.x
            assert np.abs(got - expected.numpy()).max() < 1e-10
            x = expected


# ------------------------------------------------------------------------------------------------- the engine itself


def by_label(calls=None, *, learned=False, classifier=False):
    """fn(x, t, labels) of 3 classes with null label 3; each class shifts the output, the null label does not."""

    def fn(x, t, labels):
        if calls is not None:
            calls.append(labels.copy())
        at = (slice(None), *[None] * (x.ndim - 1))
        shift = np.where(labels == 3, 0.0, 0.3 * (labels + 1)).astype(np.float32)[at]
        out = [np.sin(1.3 * x) * 0.5 + shift * np.cos(x) + 0.0002 * t[at]]
        if learned:
            out.append(np.cos(2 * x) * 0.9)
        if classifier:
            out.append(np.where(labels == 3, 0.0, 1.0).astype(np.float32)[at] * (0.2 * labels.astype(np.float32)[at] - np.tanh(x)))
        return np.concatenate(out, 1).astype(np.float32)

    return fn


def by_hand(fn, rows, n, label, uncond_label, scale, learned=False, classifier=False):
    """kernels.step over fn: the engine's own bits."""
    x = np.stack([ddpm_rt.noise(9 + i, 0, SHAPE) for i in range(n)])
    state = kernels.State(x)
    state.input[...] = rows[0]["c_in"] * x
    for i, row in enumerate(rows):
        halves = lambda who: np.split(fn(state.input.copy(), np.full(n, row["t"]), np.full(n, who)), 1 + learned + classifier, 1)  # noqa: E731
        cond, uncond, s = halves(label), None, np.float32(1) + (np.float32(scale) - np.float32(1)) * row["gs"]
        if s != 1:
            uncond = halves(uncond_label)[0]
        more = {"variance": cond[1]} if learned else {}
        if row["flags"] & GRAD:
            more["grad"] = np.ascontiguousarray(cond[-1])
        more = {k: np.ascontiguousarray(v) for k, v in more.items()}
        uncond = None if uncond is None else np.ascontiguousarray(uncond)
        kernels.step(x, np.ascontiguousarray(cond[0]), rows, eps_uncond=uncond, scale=scale, seeds=9, index=i, state=state, **more)
    return x


@pytest.mark.parametrize("options", [{"guidance_rescale": 0.7}, INTERVAL, {"threshold": (0.8, 1.5), "clip": "rederive"}, {"classifier_scale": 1.5},
                                     {**EVERYTHING, "clip": "rederive"}])  # fmt: skip
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_the_engine_s_bits_are_the_loop_s(sampler, options):
    classifier = "classifier_scale" in options
    fn = by_label(classifier=classifier)
    rows = ddpm_rt.rows(sampler, 8, **{"clip": "none", **options})
    with ddpm_rt.Engine.from_callable(fn, SHAPE, num_classes=3, role="vector", classifier=classifier) as engine:
        got = engine.sample(4, labels=1, scale=2.5, sampler=sampler, steps=8, seed=9, **options)
        assert (got == by_hand(fn, rows, 4, 1, 3, 2.5, classifier=classifier)).all()
        negative = engine.sample(4, labels=1, scale=2.5, sampler=sampler, steps=8, seed=9, negative=0, **options)
        assert (negative == by_hand(fn, rows, 4, 1, 0, 2.5, classifier=classifier)).all()
        one = engine.sample(1, labels=1, scale=2.5, sampler=sampler, steps=8, seed=11, **options)
        assert (one[0] == got[2]).all()


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_learned_variance(sampler, variance):
    fn = by_label(learned=True, classifier=True)
    rows = ddpm_rt.rows(sampler, 8, clip="none", network_variance=variance, classifier_scale=0.7)
    with ddpm_rt.Engine.from_callable(fn, SHAPE, num_classes=3, role="vector", variance=variance, classifier=True) as engine:
        got = engine.sample(4, labels=1, scale=2.5, sampler=sampler, steps=8, seed=9, clip="none", classifier_scale=0.7)
        assert (got == by_hand(fn, rows, 4, 1, 3, 2.5, learned=True, classifier=True)).all()
        fixed = engine.sample(4, labels=1, scale=2.5, sampler=sampler, steps=8, seed=9, clip="none")
        assert not (got == fixed).all()


def test_learned_range_is_the_papers():
    """Nichol & Dhariwal eq. 15 in the twin, which reads the raw second half."""
    def net(x, t):
        return torch.cat([torch.sin(x) * 0.5, torch.cos(3 * x)])

    of = Denoiser(net, LINEAR, "eps", learned=True)
    with ddpm_rt.Engine.from_callable(
        lambda x, t, labels: np.stack([net(torch.from_numpy(v.astype(np.float64)), 0).numpy() for v in x]), SHAPE, variance="learned_range", role="vector"
    ) as engine:  # fmt: skip
        got = engine.sample(1, sampler="ddpm", steps=20, seed=4)[0]
    unit = torch.from_numpy(ddpm_rt.noise(4, 0, SHAPE).astype(np.float64))
    expected = run.sample("ddpm", of, 20, unit, lambda row: torch.from_numpy(ddpm_rt.noise(4, row, SHAPE, 1).astype(np.float64)),
                          variance="learned_range")  # fmt: skip
    assert np.abs(got - expected.numpy()).max() <= 3e-5 * float(expected.abs().max())


def test_what_is_not_guided_is_not_evaluated():
    calls = []
    with ddpm_rt.Engine.from_callable(by_label(calls), SHAPE, num_classes=3, role="vector") as engine:
        def unconditional(**options):
            calls.clear()
            result = engine.sample(4, labels=2, steps=20, seed=0, **options)
            labels = np.concatenate(calls)
            assert (labels != 3).sum() == 80 and len(labels) == 4 * result.nfe
            return int((labels == 3).sum())

        sigma = np.sqrt(1 / LINEAR.alpha_bar - 1)[np.arange(0, 1000, 50)]
        assert unconditional(scale=3) == 80
        assert unconditional(scale=1) == 0
        inside = ((sigma > 0.3) & (sigma <= 5)).sum()
        assert 0 < inside < 20 and unconditional(scale=3, **INTERVAL) == 4 * inside
        assert unconditional(scale=3, guidance_interval=(200, 300)) == 0


def test_autoguidance_is_the_other_network():
    """2406.02507: g + s (c - g); in one callable the same bits."""
    main, weak = by_label(), (lambda x, t, labels: 0.9 * by_label()(x, t, labels) + 0.05 * x)

    def both(x, t, labels):
        c, g = main(x, t, labels), weak(x, t, labels)
        return g + np.float32(2.0) * (c - g)

    options = {"labels": [0, 1, 2, 0, 1], "steps": 10, "seed": 3, "output": "float"}
    with (
        ddpm_rt.Engine.from_callable(main, SHAPE, num_classes=3, role="vector", max_batch=3) as engine,
        ddpm_rt.Engine.from_callable(weak, SHAPE, num_classes=3, role="vector") as guide,
        ddpm_rt.Engine.from_callable(both, SHAPE, num_classes=3, role="vector") as one,
    ):
        got = engine.sample(5, scale=2, guide=guide, **options)
        assert (got == one.sample(5, scale=1, **options)).all() and got.nfe == 20
        assert (engine.sample(5, scale=1, guide=guide, **options) == engine.sample(5, scale=1, **options)).all()
        with pytest.raises(ddpm_rt.OptionError, match="negative"):
            engine.sample(1, guide=guide, negative=0)
    calls = []
    with (
        ddpm_rt.Engine.from_callable(lambda x, t, labels: 0.1 * x, SHAPE, role="vector") as engine,
        ddpm_rt.Engine.from_callable(lambda x, t, labels: calls.append(len(x)) or 0.2 * x, SHAPE, role="vector") as guide,
    ):
        for _ in range(2):  # the guide's network is opened once
            assert np.isfinite(engine.sample(2, scale=2, steps=5, guide=guide)).all()
        assert sum(calls) == 20
        guide.close()
        with pytest.raises(ddpm_rt.DeviceError, match="closed"):
            engine.sample(1, guide=guide)


def test_a_guide_that_fails_fails_its_request_alone():
    def broken(x, t, labels):
        raise RuntimeError("no such network")

    with (
        ddpm_rt.Engine.from_callable(by_label(), SHAPE, num_classes=3, role="vector") as engine,
        ddpm_rt.Engine.from_callable(broken, SHAPE, num_classes=3, role="vector") as guide,
    ):
        with pytest.raises(ddpm_rt.BackendError, match="no such network"):
            engine.sample(2, scale=2, guide=guide)
        assert np.isfinite(engine.sample(2, scale=2, steps=3)).all()


def test_classifier_guidance_is_bayes_rule():
    """Two Gaussians: with the exact gradient of log p(y | x_t) and scale 1 the unconditional model is the conditional one."""
    means, std = np.array([-0.6, 0.7]), 0.4
    ab = LINEAR.alpha_bar

    def parts(x, t):
        a = ab[t.astype(int)][:, None]
        return a, x[:, None, :] - np.sqrt(a)[:, None] * means[None, :, None], a * std**2 + 1 - a

    def conditional(x, t, labels):
        a, off, var = parts(x.astype(np.float64), t)
        return (np.sqrt(1 - a) * off[np.arange(len(x)), labels] / var).astype(np.float32)

    def unconditional(x, t, labels):
        a, off, var = parts(x.astype(np.float64), t)
        log_p = (-(off**2) / (2 * var[:, None])).sum(2)  # one sample is one vector: the mixture is over whole samples
        weight = np.exp(log_p - log_p.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        score = -(weight[:, :, None] * off).sum(1) / var
        grad = -off[np.arange(len(x)), labels % 2] / var - score
        return np.concatenate([-np.sqrt(1 - a) * score, grad], 1).astype(np.float32)

    options = {"labels": [0, 1, 1, 0], "seed": 2, "steps": 50, "scale": 1, "clip": "none"}
    with (
        ddpm_rt.Engine.from_callable(conditional, (6,), num_classes=2) as exact,
        ddpm_rt.Engine.from_callable(unconditional, (6,), num_classes=2, classifier=True) as guided,
    ):
        for sampler in ("ddim", "dpmpp_2m", "heun", "unipc"):
            a, b = exact.sample(4, sampler=sampler, **options), guided.sample(4, sampler=sampler, classifier_scale=1, **options)
            assert np.abs(a - b).max() < 1e-3, sampler
            assert np.abs(a - guided.sample(4, sampler=sampler, **options)).max() > 0.1
        a = exact.sample(4, sampler="ddpm", **{**options, "steps": 1000})
        b = guided.sample(4, sampler="ddpm", classifier_scale=1, **{**options, "steps": 1000})
        assert np.abs(a - b).max() < 0.1  # algorithm 1 is exact in the limit of small steps


def test_plans_may_say_it():
    fn = by_label()
    said = {"guidance_rescale": 0.5, "guidance_interval": [0.3, 5.0], "threshold": [0.9, 2.0], "scale": 2.0, "clip": "rederive"}
    with (
        ddpm_rt.Engine.from_callable(fn, SHAPE, num_classes=3, role="vector", defaults=said) as plan,
        ddpm_rt.Engine.from_callable(fn, SHAPE, num_classes=3, role="vector", defaults={"clip": "rederive"}) as plain,
    ):
        options = {"labels": 0, "seed": 0, "steps": 9}
        a = plan.sample(2, **options)
        assert (a == plain.sample(2, scale=2.0, guidance_rescale=0.5, guidance_interval=(0.3, 5.0), threshold=(0.9, 2.0), **options)).all()
        assert not (a == plan.sample(2, guidance_rescale=0.0, **options)).all()


BAD = [
    ({"guidance_rescale": 1.5}, "guidance_rescale: expected a number in"),
    ({"guidance_rescale": float("nan")}, "guidance_rescale"),
    ({"guidance_interval": (3, 2)}, "guidance_interval: expected"),
    ({"guidance_interval": (-1, 2)}, "guidance_interval: expected"),
    ({"guidance_interval": 3}, "guidance_interval: expected"),
    ({"threshold": (0, 2)}, "threshold: expected p above 0"),
    ({"threshold": (0.9, 0.5)}, "threshold: expected a finite cap"),
    ({"threshold": (0.9, float("inf"))}, "threshold"),
    ({"threshold": "0.9"}, "threshold"),
    ({"threshold": (0.9, 1.5), "clip": "none"}, "clip: expected keep_eps"),
    ({"threshold": (0.9, 1.5), "sampler": "pc"}, "threshold: expected it unset with sampler pc"),
    ({"classifier_scale": 1.0}, "no classifier"),
    ({"negative": 7}, "negative: expected"),
    ({"negative": [0, 1]}, "negative: expected one label"),
    ({"guide": "digits"}, "guide: expected a ddpm_rt.Engine"),
]


@pytest.mark.parametrize(("options", "why"), BAD)
def test_bad_input(options, why):
    with ddpm_rt.Engine.from_callable(by_label(), SHAPE, num_classes=3, role="vector") as engine:
        with pytest.raises(ddpm_rt.OptionError, match=why):
            engine.sample(3, steps=5, **options)
        assert np.isfinite(engine.sample(1, steps=2)).all()


def test_guides_that_do_not_fit():
    with ddpm_rt.Engine.from_callable(by_label(), SHAPE, num_classes=3, role="vector") as engine:
        for other in ({"shape": (3, 2)}, {"prediction": "v"}, {"schedule": "cosine"}, {"num_classes": 5}):
            arguments = {"shape": SHAPE, "num_classes": 3, "role": "vector", **other}
            with ddpm_rt.Engine.from_callable(by_label(), **arguments) as guide:
                with pytest.raises(ddpm_rt.OptionError, match="guide: expected an engine"):
                    engine.sample(1, guide=guide)


def test_flags_of_the_rows():
    rows = ddpm_rt.rows("ddim", 5, **{**EVERYTHING, "clip": "rederive"})
    assert (rows["flags"] & (RESCALE | THRESHOLD | GRAD) == RESCALE | THRESHOLD | GRAD).all()
    assert set(rows["gs"]) == {0.0, 1.0}
