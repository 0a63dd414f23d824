"""Bits per dimension against the reference in PyTorch, on the digits and on networks of one line."""

from __future__ import annotations

import functools
import json
import time

import numpy as np
import pytest
import torch

import ddpm_rt
from ddpm_rt import _core, onnx_torch, plan_files, row
from ddpm_rt.evaluations import Evaluations, deviation_table
from ddpm_rt.reference import Schedule, likelihood, philox
from ddpm_rt.training.data import mnist5k

SEED = 5


@pytest.fixture(scope="module")
def digits():
    with ddpm_rt.Engine("digits", precision="fp32") as engine:
        yield engine


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's threads and the engine's would wait for each other's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def network_and_schedule():
    """The digits' graphs as torch modules, (x, t, label) -> eps, and their schedule."""
    plan = _core.Plan(str(plan_files.find("digits")))
    networks = json.loads(plan.manifest)["networks"]
    shapes = {
        "x": ((1, 28, 28), torch.float32),
        "t": ((), torch.float32),
        "label": ((), torch.int64),
        "rows": ((1040,), torch.float32),
    }

    def module(name):
        graph = networks[name]
        inputs = {role: (graph["inputs"][role], *shapes[role]) for role in graph["inputs"]}
        return onnx_torch.module(
            plan.read(graph["section"]), graph["section"], inputs, next(iter(graph["outputs"].values()))
        )

    temb, unet = module("temb"), module("unet")
    schedule = Schedule(torch.from_numpy(np.frombuffer(plan.read("alpha_bar"), "<f8").copy()))
    return lambda x, t, label: unet(x, temb(t, label)), schedule


def some_digits(n):
    held = mnist5k("held_out")
    chosen = np.arange(n) * 500 // n
    return held.images[chosen], held.labels[chosen]


def noise(t, shape):
    """float32 [n, *shape[1:]]: image i's own, of SEED + i"""
    return np.stack([philox.noise(SEED + i, t, tuple(shape[1:]), 1) for i in range(shape[0])])


def twin(images, labels, times, **options):
    module, schedule = network_and_schedule()
    x0 = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1)

    def network(x, t):
        with torch.no_grad():
            return module(x, torch.full((len(x),), float(t)), torch.from_numpy(labels))

    found = likelihood.bound_terms(
        network, schedule, times, x0, lambda t: torch.from_numpy(noise(t, x0.shape)), **options
    )
    return {k: v.numpy() for k, v in found.items()}


def test_the_bound_of_the_digits_is_the_reference_s(digits):
    images, labels = some_digits(2)
    for options in ({"variance": "fixed_small", "clip": True}, {"variance": "fixed_large", "clip": False}):
        found = digits.bits_per_dim(images, labels=labels, seed=SEED, steps=5, **options)
        wanted = twin(images, labels, found.timesteps.tolist(), **options)
        assert found.timesteps[0] == 0 and found.timesteps[-1] == 999
        assert np.allclose(found.prior, wanted[-1], rtol=1e-6)
        for k in range(5):
            assert np.allclose(found.terms[:, k], wanted[k], rtol=2e-4), k


@pytest.mark.slow
def test_every_term_of_the_digits_is_the_reference_s(digits):
    images, labels = some_digits(2)
    found = digits.bits_per_dim(images, labels=labels, seed=SEED)
    wanted = twin(images, labels, list(range(1000)))
    each = np.stack([wanted[k] for k in range(1000)], 1)
    assert np.allclose(found.terms, each, rtol=1e-3) and np.allclose(found.total, each.sum(1) + wanted[-1], rtol=2e-4)


def test_the_flow_of_the_digits_is_the_reference_s_with_exact_products(digits):
    """Central differences in float32 against vector-Jacobian products in float64, on the same levels and probes."""
    images, labels = some_digits(2)
    x = (images / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
    found = digits.bits_per_dim(x, labels=labels, seed=SEED, method="ode", steps=4)
    module, schedule = network_and_schedule()
    rows = ddpm_rt.rows("euler", 5, {"alpha_bar": schedule.alpha_bar.numpy()}, clip="none", exact=True)
    times = np.rint(rows["t"]).astype(int)[::-1]
    sigma = {
        float(np.sqrt((1 - ab) / ab)): (t, float(np.sqrt(ab)))
        for t, ab in zip(times, schedule.alpha_bar.numpy()[times])
    }

    def eps(x, s):
        t, alpha = sigma[s]
        return module((alpha * x).float(), torch.full((len(x),), float(t)), torch.from_numpy(labels)).double()

    probe = torch.from_numpy(np.where(noise(0, x.shape) < 0, -1.0, 1.0))
    wanted = likelihood.flow_bits(
        eps, list(sigma), torch.from_numpy(x).double(), probe, 1 / min(a for _, a in sigma.values())
    )
    assert np.abs(found.total - wanted.numpy()).max() < 2e-3


def test_learned_variances_are_the_reference_s():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 4)).astype(np.float32) / 2

    def output(x, t):
        flat = np.tanh(np.concatenate([x, np.cos(x)], 1).reshape(len(x), 8, -1).transpose(0, 2, 1) @ weights)
        return np.ascontiguousarray(flat.transpose(0, 2, 1)).reshape(len(x), 4, 2, 2).astype(np.float32) + np.float32(
            t / 2000
        )

    images = rng.integers(0, 256, (3, 2, 2, 2), dtype=np.uint8)
    x0 = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1)

    def fn(x, t, labels):
        x = np.concatenate([x, np.sin(x)], 1)
        return np.concatenate([output(x[i : i + 1], t[i]) for i in range(len(x))])

    with ddpm_rt.Engine.from_callable(fn, (2, 2, 2), variance="learned_range") as engine:
        found = engine.bits_per_dim(images, seed=SEED, steps=20)
    wanted = likelihood.bound_terms(
        lambda x, t: torch.from_numpy(fn(x.numpy(), np.full(len(x), t, np.float32), None)),
        Schedule.make("linear"),
        found.timesteps.tolist(),
        x0,
        lambda t: torch.from_numpy(noise(t, x0.shape)),
        variance="learned_range",
    )
    for k in range(20):
        assert np.allclose(found.terms[:, k], wanted[k].numpy(), rtol=5e-4), k


def test_a_learned_deviation_survives_noise_that_is_zero():
    """std z tells nothing where z is 0, here at t = 500 of the second image: that element is asked again with other noise."""
    images = np.full((2, 64, 64, 1), 100, np.uint8)
    seeds = [1, 38200]
    assert ddpm_rt.noise(38200, 500, 4096, 1)[3532] == 0

    def fn(x, t, labels):
        return np.concatenate([x, np.full_like(x, 0.3)], 1)

    with ddpm_rt.Engine.from_callable(fn, (1, 64, 64), variance="learned_range") as engine:
        found = engine.bits_per_dim(images, seeds=seeds, steps=3)
        alone = engine.bits_per_dim(images[:1], seeds=seeds[:1], steps=3)
    assert found.timesteps.tolist() == [0, 500, 999]
    assert np.isfinite(found.terms).all() and (found.terms[0] == alone.terms[0]).all()
    assert np.allclose(found.terms[0], found.terms[1], rtol=0.2)


def test_small_requests_wait_in_the_engine_together():
    """One image at many levels fills ticks: a slow network is called for many levels at once."""
    batches = []

    def fn(x, t, labels):
        batches.append(len(x))
        time.sleep(0.01)
        return x

    with ddpm_rt.Engine.from_callable(fn, (1, 2, 2)) as engine:
        engine.bits_per_dim(np.full((1, 2, 2, 1), 100, np.uint8), seed=0, steps=300)
    assert sum(batches) == 300 and len(batches) < 100


def test_the_engine_says_what_its_tables_are_compiled_from():
    """Every noise model, parameterisation and time: the rows from `model` are those of the same arguments."""
    for schedule, prediction, told in (
        ("cosine", "v", None), ("vp", "eps", "log_sigma"), ("sub_vp", "eps", None), ({"name": "ve", "sigma_max": 20.0}, "score", None),
        ("flow", "flow", None), ({"name": "edm", "sigma_data": 0.7}, "edm", None),
    ):  # fmt: skip
        options = {"prediction": prediction, "time": told, "time_scale": 1.0 if told is None else 0.5}
        with ddpm_rt.Engine.from_callable(lambda x, t, y: x, (2,), schedule, **options) as engine:
            found, sigma = Evaluations(engine, np.zeros(1, np.int64), np.zeros(1, np.uint64)).rows("dpmpp_2m", 7)
        wanted = ddpm_rt.rows("dpmpp_2m", 7, schedule, clip="none", exact=True, **options)
        assert (found == wanted).all() and sigma == ddpm_rt.kernels.initial_sigma(
            "dpmpp_2m", 7, schedule, clip="none", **options
        )


def ends(schedule):
    """(alpha, sigma) of the least and the most noise of a noise model."""
    if schedule in ("linear", "cosine"):
        ab = ddpm_rt.kernels.alpha_bar(schedule)[[0, -1]]
        return [(np.sqrt(v), np.sqrt(1 - v)) for v in ab]
    if schedule in ("vp", "sub_vp"):
        ab = [np.exp(-(t**2) * 19.9 / 2 - t * 0.1) for t in (1e-3, 1.0)]
        return [(np.sqrt(v), 1 - v if schedule == "sub_vp" else np.sqrt(1 - v)) for v in ab]
    return {"ve": [(1, 0.01), (1, 50)], "edm": [(1, 0.002), (1, 80)], "flow": [(0.999, 0.001), (0, 1)]}[schedule]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp", "sub_vp", "ve", "edm", "flow"])
def test_the_flow_of_a_point_has_a_closed_form_on_every_noise_model(schedule):
    """x0 = 0 always: dx = x dsigma / sigma, exact for Heun's steps up to their order; x_T = x_0 sigma_T / sigma_0."""
    (a0, s0), (aT, sT) = ends(schedule)
    if schedule == "flow":  # in the network's own space
        scale, stretch, prior = a0, sT / s0, 1.0
    else:
        scale, stretch = 1.0, (sT / aT) / (s0 / a0)
        prior = sT / aT if schedule in ("ve", "edm") else 1 / aT
    x = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3) * np.float32(s0 / a0)
    with ddpm_rt.Engine.from_callable(lambda x, t, y: np.zeros_like(x), (3,), schedule, "x0") as engine:
        found = engine.bits_per_dim(x, method="ode", steps=100, seed=0)
    at_the_end = scale * x.astype(np.float64) * stretch / prior
    nats = 0.5 * (at_the_end**2).mean(1) + 0.5 * np.log(2 * np.pi) + np.log(prior) - np.log(stretch * scale)
    assert np.allclose(found.total, nats / np.log(2), atol=0.03)


def test_deviation_rows_have_the_flag_of_their_kind():
    base = ddpm_rt.rows("ddpm", 10, exact=True)[0]
    for kind, flag in (("learned", row.LEARNED_VAR), ("learned_range", row.LEARNED_RANGE)):
        table = deviation_table(base, kind, -3.0, -2.0, 7)
        assert table.rows["flags"][0] == flag | row.LAST and table.rows["noise_index"][0] == 7


def test_the_flow_takes_every_timestep_of_a_short_schedule():
    asked = set()

    def fn(x, t, labels):
        asked.update(t.tolist())
        return x

    x = np.zeros((1, 2), np.float32)
    with ddpm_rt.Engine.from_callable(fn, (2,), {"name": "cosine", "T": 12}) as engine:
        for steps in (11, 10, 3):
            asked.clear()
            engine.bits_per_dim(x, method="ode", steps=steps, seed=0)
            assert len(asked) == steps + 1 and {0.0, 11.0} <= asked <= {float(t) for t in range(12)}
        asked.clear()
        engine.bits_per_dim(x, method="ode", seed=0)
        assert len(asked) == 12
        with pytest.raises(ddpm_rt.OptionError, match="steps: expected an integer from 1 to 11, got 12"):
            engine.bits_per_dim(x, method="ode", steps=12)


def test_the_flow_refuses_an_engine_that_rounds_more():
    try:
        engine = ddpm_rt.Engine("digits", precision="bf16")
    except ddpm_rt.BackendError as e:
        pytest.skip(f"no bf16 here: {e}")
    with engine, pytest.raises(ddpm_rt.OptionError, match="method: expected an engine opened with precision='fp32'"):
        engine.bits_per_dim(np.zeros((1, 28, 28, 1), np.uint8), method="ode")
