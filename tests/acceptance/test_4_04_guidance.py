"""Issue 4 line 4: every kind of guidance, per row, from Python and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import ddpm_rt


@pytest.fixture(scope="module")
def digits():
    with ddpm_rt.Engine("digits") as engine:
        yield engine


def test_scale_and_w_are_one(digits):
    options = {"labels": 3, "seed": 0, "steps": 8}
    assert (digits.sample(2, scale=2.5, **options) == digits.sample(2, w=1.5, **options)).all()
    assert digits.sample(2, scale=1, **options).nfe == 8 and digits.sample(2, scale=2, **options).nfe == 16


def test_the_interval_saves_evaluations(digits):
    everywhere = digits.sample(8, labels=7, seed=0, steps=20, scale=3)
    inside = digits.sample(8, labels=7, seed=0, steps=20, scale=3, guidance_interval=(0.3, 5.0))
    nowhere = digits.sample(8, labels=7, seed=0, steps=20, scale=3, guidance_interval=(1e4, 2e4))
    assert everywhere.nfe == 40 and nowhere.nfe == 20 and 20 < inside.nfe < 40
    assert (nowhere == digits.sample(8, labels=7, seed=0, steps=20, scale=1)).all()
    assert not (inside == everywhere).all()


def test_rescale_and_thresholds_act(digits):
    options = {"labels": 5, "seed": 1, "steps": 10, "scale": 6, "output": "float"}
    plain = np.asarray(digits.sample(4, **options))
    rescaled = np.asarray(digits.sample(4, guidance_rescale=0.7, **options))
    dynamic = np.asarray(digits.sample(4, threshold=(0.9, 3.0), **options))
    unclipped = np.asarray(digits.sample(4, clip="none", **options))
    assert not np.array_equal(plain, rescaled) and not np.array_equal(plain, dynamic)
    assert np.abs(plain).max() <= 1 + 1e-5 and np.abs(dynamic).max() <= 1 + 1e-5 < np.abs(unclipped).max()
    for name, value in (("guidance_rescale", 2.0), ("threshold", (0.9, 0.2)), ("guidance_interval", (2, 1))):
        with pytest.raises(ddpm_rt.OptionError, match=name):
            digits.sample(1, **{name: value})


def test_negative_labels_and_a_guide(digits):
    options = {"labels": [4, 9], "seed": 3, "steps": 10, "scale": 2}
    away = digits.sample(2, negative=[9, 4], **options)
    assert not (away == digits.sample(2, **options)).all() and away.nfe == 20
    assert (digits.sample(2, negative=-1, **options) == digits.sample(2, **options)).all()
    with ddpm_rt.Engine("digits") as guide:  # guided by itself, every scale is the conditional model
        same = digits.sample(2, guide=guide, **options)
        conditional = digits.sample(2, **{**options, "scale": 1})
        assert np.abs(same.astype(int) - conditional.astype(int)).max() <= 1 and same.nfe == 20


def test_a_classifier_steers_an_unconditional_model():
    """Data N(0, 1) in each of 2 dimensions, class 1 to the right: log p(y | x) = log sigmoid(8 x_0)."""

    def fn(x, t, labels):
        ab = np.asarray(ddpm_rt.kernels.alpha_bar("linear"))[t.astype(int)][:, None]
        eps = np.sqrt(1 - ab) * x
        side = np.where(labels == 1, 1.0, -1.0)
        grad = np.zeros_like(x)
        grad[:, 0] = side * 8 / (1 + np.exp(side * 8 * x[:, 0]))
        return np.concatenate([eps, grad], 1).astype(np.float32)

    with ddpm_rt.Engine.from_callable(fn, (2,), num_classes=2, classifier=True) as engine:
        for sampler, steps in (("ddim", 50), ("ddpm", 200)):
            for label, side in ((1, 1), (0, -1)):
                x = np.asarray(
                    engine.sample(300, labels=label, scale=1, sampler=sampler, steps=steps, classifier_scale=1, seed=0)
                )
                assert (side * x[:, 0] > 0).mean() > 0.95 and abs(x[:, 1].mean()) < 0.2
        free = np.asarray(engine.sample(300, labels=1, scale=1, steps=50, seed=0))
        assert 0.4 < (free[:, 0] > 0).mean() < 0.6


def test_a_plan_with_a_classifier(tmp_path):
    torch = pytest.importorskip("torch")
    net, classifier = torch.nn.Module(), torch.nn.Module()
    net.forward = lambda x, t: 0.3 * x + 0.0001 * t[:, None, None, None]
    classifier.forward = lambda x, t: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3)), 0 * t], 1) * 9
    path = tmp_path / "guided.plan"
    ddpm_rt.export.export_plan(net, path, shape=(1, 4, 4), num_classes=3, classifier=classifier)
    with ddpm_rt.Engine(path) as engine:
        up, down = (
            np.asarray(engine.sample(4, labels=k, seed=0, classifier_scale=20, output="float")).mean() for k in (0, 1)
        )
        assert up > down + 0.1


def test_from_the_command_line(tmp_path):
    out = tmp_path / "a.png"
    command = [
        sys.executable,
        "-m",
        "ddpm_rt",
        "sample",
        "digits",
        "-n",
        "2",
        "--seed",
        "0",
        "--steps",
        "10",
        "--label",
        "3",
    ]
    extra = [
        "--guidance-interval",
        "0.3,5",
        "--guidance-rescale",
        "0.5",
        "--threshold",
        "0.99,1.5",
        "--negative",
        "8",
        "-o",
        str(out),
        "--json",
    ]
    done = subprocess.run([*command, *extra], capture_output=True, text=True, check=True, timeout=120)
    assert out.exists() and 10 < json.loads(done.stdout)["nfe"] < 20
    guided = subprocess.run(
        [*command, "--guide", "digits", "-o", str(out)], capture_output=True, text=True, timeout=120, check=False
    )
    assert guided.returncode == 0, guided.stderr
