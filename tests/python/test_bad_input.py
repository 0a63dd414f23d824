"""Bad input: a typed error that names the field, nothing half done, and an engine that works afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import gaussian, write_mixture_plan

import ddpm_rt
from ddpm_rt import DdpmError, OptionError, PlanError, ShapeError

NOISE = np.zeros((2, 1, 4, 4), np.float32)
CALLS = [
    (OptionError, "n", {"n": 0}),
    (OptionError, "n", {"n": -3}),
    (OptionError, "n", {"n": 2**31}),
    (OptionError, "n", {"n": 2**31 - 1}),
    (OptionError, "n", {"n": 1.5}),
    (OptionError, "n", {"n": "two"}),
    (OptionError, "labels", {"labels": 2}),
    (OptionError, "labels", {"labels": -2}),
    (OptionError, "labels", {"labels": [0, 7]}),
    (OptionError, "labels", {"labels": [0]}),
    (OptionError, "labels", {"labels": [0, 1, 0]}),
    (OptionError, "labels", {"labels": []}),
    (OptionError, "labels", {"labels": 0.5}),
    (OptionError, "labels", {"labels": "walrus"}),
    (OptionError, "labels", {"labels": True}),
    (OptionError, "steps", {"steps": 0}),
    (OptionError, "steps", {"steps": -1}),
    (OptionError, "steps", {"steps": 1001}),
    (OptionError, "steps", {"steps": 2**40}),
    (OptionError, "steps", {"steps": 7.5}),
    (OptionError, "scale", {"scale": float("nan")}),
    (OptionError, "scale", {"scale": float("inf")}),
    (OptionError, "scale", {"scale": "high"}),
    (OptionError, "w", {"w": float("nan")}),
    (OptionError, "eta", {"eta": float("nan")}),
    (OptionError, "eta", {"eta": 1.5}),
    (OptionError, "eta", {"eta": 0.5, "sampler": "ddpm"}),
    (OptionError, "sampler", {"sampler": "dpm++"}),
    (OptionError, "clip", {"clip": "soft"}),
    (OptionError, "variance", {"variance": "learned"}),
    (OptionError, "grid", {"grid": "cubic"}),
    (OptionError, "seed", {"seed": -1}),
    (OptionError, "seed", {"seed": 2**64}),
    (OptionError, "seed", {"seed": 1.0}),
    (OptionError, "seed", {"seed": 1, "seeds": [1, 2]}),
    (OptionError, "seeds", {"seeds": [1]}),
    (OptionError, "seeds", {"seeds": []}),
    (OptionError, "seeds", {"seeds": 7}),
    (OptionError, "seeds", {"seeds": [1, -2]}),
    (ShapeError, "latents", {"latents": NOISE[:1]}),
    (ShapeError, "latents", {"latents": NOISE.astype(np.float64)}),
    (ShapeError, "latents", {"latents": NOISE.transpose(0, 2, 3, 1)}),
    (ShapeError, "latents", {"latents": [1.0]}),
    (ShapeError, "x_init", {"x_init": NOISE[:, :, :2]}),
    (OptionError, "x_init", {"x_init": NOISE, "latents": NOISE}),
    (OptionError, "output", {"output": "jpeg"}),
    (OptionError, "on_error", {"on_error": "ignore"}),
    (OptionError, "callback", {"callback": 3}),
    (OptionError, "tiling", {"tiling": True}),
]


@pytest.mark.parametrize(
    ("error", "field", "options"), CALLS, ids=[f"{list(o)[-1]}-{i}" for i, (_, _, o) in enumerate(CALLS)]
)
def test_a_bad_call_names_its_field_and_leaves_the_engine(engine, error, field, options):
    before = engine.sample(2, seed=0)
    with pytest.raises(error, match=rf"^{field}.*: (expected|.*got)"):
        engine.sample(**{"n": 2, **options})
    assert issubclass(error, ValueError) and issubclass(error, DdpmError)
    assert (engine.sample(2, seed=0) == before).all()


def test_guiding_an_unconditional_plan_is_refused():
    with ddpm_rt.Engine.from_callable(gaussian, (1, 4, 4)) as engine:
        with pytest.raises(OptionError, match="scale.*condition"):
            engine.sample(1, scale=3)
        with pytest.raises(OptionError, match="labels"):
            engine.sample(1, labels=0)
        assert engine.sample(1, labels=-1, scale=1).labels.tolist() == [-1]


@pytest.mark.parametrize("kind", ["uint8", "pil"])
def test_pixels_of_what_is_no_image_are_refused(kind):
    with ddpm_rt.Engine.from_callable(gaussian, (5,)) as engine, pytest.raises(OptionError, match="output.*vector"):
        engine.sample(1, output=kind)


def poisoned(x, t, labels):
    """NaN for class 1 in the second half of the walk."""
    eps = gaussian(x, t, labels)
    eps[(labels == 1) & (t < 500)] = np.nan
    return eps


def test_one_image_s_nan_is_reported_and_its_neighbours_are_unharmed():
    with ddpm_rt.Engine.from_callable(poisoned, (1, 4, 4), num_classes=2) as engine:
        with pytest.raises(ddpm_rt.NumericError, match="images") as caught:
            engine.sample(4, labels=[0, 1, 0, 1], seed=0, scale=1, steps=6)
        assert caught.value.bad == (1, 3)
        clean = engine.sample(4, labels=0, seed=0, scale=1, steps=6)
        assert (caught.value.images[0] == clean[0]).all() and (caught.value.images[2] == clean[2]).all()
        kept = engine.sample(4, labels=[0, 1, 0, 1], seed=0, scale=1, steps=6, on_error="keep", output="float")
        assert kept.bad == (1, 3) and np.isnan(kept[1]).all() and np.isfinite(kept[0]).all()


@pytest.mark.parametrize("shape", [(), (0,), (1, 2, 3, 4, 5), (-1, 4), ("a",), 7])
def test_bad_shapes_of_a_callable(shape):
    with pytest.raises(DdpmError, match="shape"):
        ddpm_rt.Engine.from_callable(gaussian, shape)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("fn", {"fn": 3}),
        ("prediction", {"prediction": "guess"}),
        ("schedule", {"schedule": "bumpy"}),
        ("betas", {"schedule": [0.1, -0.1]}),
        ("betas", {"schedule": []}),
        ("betas", {"schedule": ["a"]}),
        ("alpha_bar", {"schedule": {"alpha_bar": [0.5, 0.9]}}),
        ("num_classes", {"num_classes": -1}),
        ("class_names", {"num_classes": 3, "class_names": ["a"]}),
        ("range", {"data_range": (1, -1)}),
        ("role", {"role": "sound"}),
        ("max_batch", {"max_batch": 0}),
        ("defaults", {"defaults": {"steps": 5000}}),
        ("defaults", {"defaults": {"sampler": "what"}}),
        ("defaults", {"defaults": {"scale": float("nan")}}),
        ("scale", {"defaults": {"scale": 3.0}}),
    ],
)
def test_bad_descriptions_of_a_callable(field, options):
    with pytest.raises(DdpmError, match=field):
        ddpm_rt.Engine.from_callable(**{"fn": gaussian, "shape": (1, 4, 4), **options})


@pytest.mark.parametrize(
    ("result", "text"),
    [(np.zeros((1, 2)), "eps of shape"), ("noise", "denoiser"), (None, "denoiser"), (object(), "denoiser")],
)
def test_a_callable_that_returns_something_else(result, text):
    with ddpm_rt.Engine.from_callable(lambda x, t, labels: result, (4,)) as engine:
        with pytest.raises(ddpm_rt.BackendError, match=text) as caught:
            engine.sample(1)
        assert isinstance(caught.value.__cause__, (TypeError, ValueError))


@pytest.mark.parametrize(
    ("error", "field", "options"),
    [
        (OptionError, "device", {"device": "tpu"}),
        (OptionError, "backend", {"backend": "tensorflow"}),
        (OptionError, "backend", {"backend": "openvino"}),  # a mixture is no graph
        (OptionError, "precision", {"precision": "int3"}),
        (OptionError, "threads", {"threads": 0}),
        (OptionError, "threads", {"threads": "all"}),
        (OptionError, "max_batch", {"max_batch": 10**9}),
        (OptionError, "card", {"card": "card.json"}),
    ],
)
def test_bad_engine_options(mixture_plan, error, field, options):
    with pytest.raises(error, match=f"^{field}"):
        ddpm_rt.Engine(mixture_plan, **options)


def test_a_missing_plan_names_what_there_is(tmp_path):
    with pytest.raises(PlanError, match="plan: expected a file or the name of a plan here"):
        ddpm_rt.Engine(tmp_path / "absent.plan")
    with pytest.raises(PlanError):
        ddpm_rt.Engine(tmp_path)
    with pytest.raises(OptionError, match="plan"):
        ddpm_rt.Engine(7)


def test_damaged_plans(tmp_path):
    data = write_mixture_plan(tmp_path / "good.plan").read_bytes()
    bad = tmp_path / "bad.plan"
    for cut in (0, 10, 63, 90, 4095, len(data) - 1):
        bad.write_bytes(data[:cut])
        with pytest.raises(PlanError):
            ddpm_rt.Engine(bad)
    rng = np.random.default_rng(0)
    manifest_end = int.from_bytes(data[24:32], "little") + int.from_bytes(data[32:40], "little")
    section = int(ddpm_rt._core.Plan(str(tmp_path / "good.plan")).sections[-1]["offset"])
    for position in [0, 8, 16, 24, 30, 48, 70, 100, *rng.integers(0, manifest_end, 40), section, len(data) - 1]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        bad.write_bytes(flipped)
        with pytest.raises(PlanError):
            ddpm_rt.Engine(bad)
    bad.write_bytes(data + b"more")
    with pytest.raises(PlanError):
        ddpm_rt.Engine(bad)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, "format"),
        ({"row_version": 2}, "row_version"),
        ({"rng_version": 9}, "rng_version"),
        ({"requires": ["sound"]}, "requires"),
        ({"sample": {"shape": [1, 4, 4, 4, 4]}}, "shape"),
        ({"prediction": "guess"}, "prediction"),
        ({"class_names": ["one"]}, "class_names"),
        ({"defaults": {"sampler": "magic"}}, "sampler"),
    ],
)
def test_a_manifest_of_another_kind_is_not_written(tmp_path, change, field):
    with pytest.raises(PlanError, match=field):
        write_mixture_plan(tmp_path / "x.plan", **change)
    assert list(tmp_path.iterdir()) == []
