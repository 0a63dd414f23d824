"""Line 6: image to image, inpainting, inversion, interpolation between latents, predictions on the way."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

import ddpm_rt

SHAPE = (1, 4, 4)
ALPHA_BAR = np.asarray(ddpm_rt.kernels.alpha_bar("linear"))
MEANS, STD = np.array([[-0.6], [0.5]]), 0.3
PICTURES = np.random.default_rng(0).uniform(-1, 1, (3, *SHAPE)).astype(np.float32)


def mixture(x, ab):
    """eps of two Gaussians N(MEANS[k], STD^2 I), equally likely, in float64: DDPM eq. 4 and Tweedie's formula."""
    flat = x.reshape(len(x), 1, -1)
    ab = np.reshape(ab, (-1, 1, 1))
    apart = flat - np.sqrt(ab) * MEANS[None]
    variance = ab * STD**2 + 1 - ab
    logits = -(apart**2).sum(2, keepdims=True) / (2 * variance)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return (np.sqrt(1 - ab[:, 0]) * (weights * apart / variance).sum(1)).reshape(x.shape)


def network(x, t, labels):
    return mixture(x.astype(np.float64), ALPHA_BAR[t.astype(int)]).astype(np.float32)


@pytest.fixture(scope="module")
def engine():
    defaults = {"sampler": "ddim", "steps": 10, "clip": "none"}
    with ddpm_rt.Engine.from_callable(network, SHAPE, defaults=defaults) as opened:
        yield opened


@pytest.fixture(scope="module")
def digits():
    with ddpm_rt.Engine("digits") as opened:
        yield opened


def noise(seeds, index, stream):
    return np.stack([ddpm_rt.noise(s, index, SHAPE, stream) for s in seeds]).astype(np.float64)


def levels(steps, T=1000):
    """alpha_bar of the leading grid, noisiest first, and the end."""
    return np.append(ALPHA_BAR[np.arange(steps)[::-1] * (T // steps)], 1.0)


def ddim_step(x, ab, ab_to):
    eps = mixture(x, np.full(len(x), ab))
    return np.sqrt(ab_to) * (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab) + np.sqrt(1 - ab_to) * eps


# ---------------------------------------------------------------------------------------------------- image to image


@pytest.mark.parametrize(("steps", "strength"), [(10, 0.5), (10, 0.79), (50, 0.58), (7, 1.0), (1000, 0.001)])
def test_strength_takes_the_last_steps(engine, steps, strength):
    taken, ab = int(steps * strength), levels(steps)  # diffusers' get_timesteps
    found = engine.sample(3, image=PICTURES, strength=strength, steps=steps, seed=5, output="float")
    assert found.nfe == taken
    x = np.sqrt(ab[steps - taken]) * PICTURES + np.sqrt(1 - ab[steps - taken]) * noise([5, 6, 7], 0, 0)
    for i in range(steps - taken, steps):
        x = ddim_step(x, ab[i], ab[i + 1])
    assert np.abs(found - x).max() < 2e-5


def test_an_edited_image_does_not_depend_on_its_batch(engine):
    options = {"steps": 20, "strength": 0.6, "sampler": "ddpm", "output": "float"}
    batch = engine.sample(3, image=PICTURES, seed=8, **options)
    for i in range(3):
        assert (engine.sample(1, image=PICTURES[i], seed=8 + i, **options)[0] == batch[i]).all()
    one = engine.sample(3, image=PICTURES[1], seed=8, **options)
    assert (one[1] == batch[1]).all() and not (one[0] == batch[0]).all()
    given = engine.sample(3, image=PICTURES, seed=8, latents=noise([8, 9, 10], 0, 0).astype(np.float32), **options)
    assert (given == batch).all()


@pytest.mark.parametrize(
    ("schedule", "prediction", "sampler"),
    [("linear", "eps", "euler"), ("linear", "v", "dpmpp_2m"), ("flow", "flow", "euler"), ("ve", "score", "ddim"), ("edm", "edm", "heun"), ("vp", "eps", "heun")],
)  # fmt: skip
def test_the_start_is_a_level_of_the_schedule(schedule, prediction, sampler):
    """alpha image + sigma noise, in every space a solver may keep its state in; at the level the network is told."""
    seen = []

    def fn(x, t, labels):
        seen.append((x.astype(np.float64), float(t[0])))
        return np.zeros_like(x)

    with ddpm_rt.Engine.from_callable(fn, SHAPE, schedule=schedule, prediction=prediction) as engine:
        engine.sample(2, image=PICTURES[:2], strength=0.5, steps=8, sampler=sampler, clip="none", seed=1)
    x, t = seen[0]
    scale = 1.0
    if schedule == "linear":
        low = int(np.floor(t))
        log_sigma = 0.5 * np.log((1 - ALPHA_BAR) / ALPHA_BAR)
        sigma = np.exp(log_sigma[low] + (t - low) * (log_sigma[min(low + 1, 999)] - log_sigma[low]))
        alpha = 1 / np.sqrt(1 + sigma**2)
        sigma *= alpha
    elif schedule == "vp":
        log_alpha = -(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2
        alpha, sigma = np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))
    elif schedule == "flow":
        alpha, sigma = 1 - t, t
    else:
        alpha, sigma = 1.0, np.exp(4 * t) if prediction == "edm" else t
        scale = 1 / np.hypot(sigma, 0.5) if prediction == "edm" else 1.0
    expected = scale * (alpha * PICTURES[:2] + sigma * noise([1, 2], 0, 0))
    assert 0 < sigma and np.abs(x - expected).max() <= 2e-5 * max(1, np.abs(expected).max())


def test_image_to_image_as_diffusers_does_it(engine):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(25)
    start = max(25 - min(int(25 * 0.7), 25), 0)
    times = scheduler.timesteps[start:]
    x = scheduler.add_noise(torch.from_numpy(PICTURES).double(), torch.from_numpy(noise([4, 5, 6], 0, 0)), times[:1])
    for t in times:
        eps = torch.from_numpy(mixture(x.numpy(), np.full(3, ALPHA_BAR[int(t)])))
        x = scheduler.step(eps, t, x).prev_sample
    found = engine.sample(3, image=PICTURES, strength=0.7, steps=25, compat="diffusers", clip="none", seed=4, output="float")
    assert np.abs(found - x.numpy()).max() < 2e-5


# -------------------------------------------------------------------------------------------------------- inpainting


def jumps(steps, length, resamples):
    """The levels that RePaint visits, noisiest `steps` - 1: the published get_schedule_jump, counted in levels."""
    remaining = {t: resamples - 1 for t in range(0, steps - length, length)}
    t, visited = steps, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if remaining.get(t, 0) > 0:
            remaining[t] -= 1
            visited += list(range(t + 1, t + length + 1))
            t += length
    return [*visited, -1]


@pytest.mark.parametrize(("sampler", "length", "resamples"), [("ddpm", 1, 3), ("ddpm", 3, 2), ("ddim", 4, 3), ("ddpm", 10, 1)])
def test_inpainting_is_repaint_s_algorithm_1(engine, sampler, length, resamples):
    steps, seeds = 12, [30, 31, 32]
    mask = np.zeros((3, *SHAPE), np.float32)
    mask[0, :, :, :2], mask[1, :, 1:3, :], mask[2] = 1, 1, np.random.default_rng(1).uniform(0, 1, SHAPE)  # the last: a soft one
    found = engine.sample(
        3, image=PICTURES, mask=mask, jump_length=length, resamples=resamples, steps=steps, sampler=sampler, seed=30, output="float"
    )
    ab, row = levels(steps), 0  # levels()[steps - 1 - t] is level t
    x, evaluations = noise(seeds, 0, 0), 0
    visited, at = jumps(steps, length, resamples), 0
    while at + 1 < len(visited):
        here, there = visited[at], visited[at + 1]
        now, to = ab[steps - 1 - here], ab[steps - 1 - there]
        if there < here:  # lines 4 to 8
            eps = mixture(x, np.full(3, now))
            evaluations += 1
            x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
            if sampler == "ddim":
                x = np.sqrt(to) * x0 + np.sqrt(1 - to) * eps
            else:  # DDPM eq. 7, respaced
                beta = 1 - now / to
                x = np.sqrt(to) * beta / (1 - now) * x0 + np.sqrt(now / to) * (1 - to) / (1 - now) * x
                x = x + np.sqrt(beta * (1 - to) / (1 - now)) * noise(seeds, row, 1)
            known = np.sqrt(to) * PICTURES + np.sqrt(1 - to) * noise(seeds, row, 2)
            x = mask * known + (1 - mask) * x
            at += 1
        else:  # line 10, `length` levels at once
            at += length
            back = ab[steps - 1 - visited[at]]
            x = np.sqrt(back / now) * x + np.sqrt(1 - back / now) * noise(seeds, row, 1)
        row += 1
    assert found.nfe == evaluations
    assert np.abs(found - x).max() < 5e-5
    kept = mask == 1
    assert (np.asarray(found)[kept] == PICTURES[kept]).all()


def test_resampling_counts_as_in_the_paper(engine):
    """250 steps, j = r = 10: 4570 transitions in the published code, of which each jump of ten is one row here."""
    visited = jumps(250, 10, 10)
    down = sum(b < a for a, b in itertools.pairwise(visited))
    assert len(visited) - 1 == 4570
    seen = []
    found = engine.sample(
        1, image=PICTURES[0], mask=np.ones(SHAPE, bool), sampler="ddpm", steps=250, callback=lambda row, rows, x0: seen.append(rows)
    )
    assert found.nfe == down and seen[0] == down + (4570 - down) // 10
    assert (found == engine.sample(1, image=PICTURES[0], mask=np.ones(SHAPE, bool), steps=3, jump_length=1, resamples=1)).all()


def test_repaint_s_step_as_diffusers_does_it(engine, monkeypatch):
    """Without resampling: its jumps start one level later and also from the clean picture, as the paper's do not."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    from diffusers.schedulers import scheduling_repaint

    scheduler = diffusers.RePaintScheduler(beta_schedule="linear", eta=0.0, clip_sample=False)
    scheduler.set_timesteps(20, jump_length=5, jump_n_sample=1)
    mask = torch.zeros(1, *SHAPE, dtype=torch.float64)
    mask[..., :2] = 1
    x, row = torch.from_numpy(noise([3], 0, 0)), 0
    monkeypatch.setattr(scheduling_repaint, "randn_tensor", lambda *a, **k: torch.from_numpy(noise([3], row, 2)))
    picture = torch.from_numpy(PICTURES[:1]).double()
    for t in scheduler.timesteps:
        eps = torch.from_numpy(mixture(x.numpy(), np.full(1, ALPHA_BAR[int(t)])))
        x = scheduler.step(eps, int(t), x, picture, mask).prev_sample
        row += 1
    found = engine.sample(
        1, image=PICTURES[0], mask=mask.numpy()[0].astype(bool), resamples=1, steps=20, sampler="ddim", seed=3, output="float"
    )
    assert np.abs(found - x.numpy()).max() < 2e-5


def test_inpainting_does_not_depend_on_the_batch(engine):
    mask = np.zeros((3, 4, 4), bool)
    mask[0, :2], mask[1, :, 1:], mask[2, 3] = True, True, True
    options = {"steps": 12, "jump_length": 2, "resamples": 2, "sampler": "ddpm", "output": "float"}
    batch = engine.sample(3, image=PICTURES, mask=mask, seed=50, **options)
    for i in range(3):
        assert (engine.sample(1, image=PICTURES[i], mask=mask[i], seed=50 + i, **options)[0] == batch[i]).all()
    late = engine.sample(3, image=PICTURES, mask=mask, seed=50, strength=0.5, **options)
    assert late.nfe < batch.nfe and not (late == batch).all()
    unit = engine.sample(3, image=PICTURES, mask=mask, seed=50, **{**options, "sampler": "euler_ancestral"})
    for images in (late, unit):  # with a start of its own; with a state in EDM space
        kept = np.broadcast_to(mask[:, None], images.shape)
        assert (np.asarray(images)[kept] == PICTURES[kept]).all()


@pytest.mark.parametrize("compat", [None, "guided-diffusion"])
def test_known_pixels_come_back_exactly(digits, compat):
    """All 256 levels of uint8, rounded, and truncated as guided-diffusion does."""
    picture = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28, 1)
    mask = np.ones((28, 28), bool)
    mask[10:18, 10:18] = False
    found = digits.sample(1, image=picture, mask=mask, steps=2, resamples=1, compat=compat, sampler="ddim", seed=0, scale=1)
    assert (np.asarray(found)[0, mask] == picture[0, mask]).all()


def test_a_table_of_one_s_own_may_blend(engine):
    rows = ddpm_rt.rows("ddim", 5, clip="none").copy()
    with pytest.raises(ddpm_rt.OptionError, match="BLEND"):
        engine.sample(1, sampler=ddpm_rt.Table(rows), image=PICTURES[0], mask=np.ones((4, 4), bool))
    rows["flags"][-1] |= 1 << 8
    rows["ky"][-1] = 1
    with pytest.raises(ddpm_rt.OptionError, match="BLEND"):
        engine.sample(1, sampler=ddpm_rt.Table(rows))
    found = engine.sample(1, sampler=ddpm_rt.Table(rows), image=PICTURES[0], mask=np.ones((4, 4), bool), output="float")
    assert (found[0] == PICTURES[0]).all()


# --------------------------------------------------------------------------------------------------------- inversion


def test_inversion_is_ddim_backwards(engine):
    ab = levels(20)
    x = PICTURES.astype(np.float64)
    for i in reversed(range(20)):  # eq. 14; eps is told the level that the step leads to
        eps = mixture(x, np.full(3, ab[i]))
        x = np.sqrt(ab[i]) * (x - np.sqrt(1 - ab[i + 1]) * eps) / np.sqrt(ab[i + 1]) + np.sqrt(1 - ab[i]) * eps
    found = engine.invert(PICTURES, steps=20)
    assert found.shape == PICTURES.shape and found.nfe == 20 and np.abs(found - x).max() < 2e-5
    alone = engine.invert(PICTURES[1], steps=20)
    assert (alone[0] == found[1]).all()


def test_inversion_as_diffusers_does_it(engine):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    scheduler = diffusers.DDIMInverseScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(25)
    x = torch.from_numpy(PICTURES).double()
    for t in scheduler.timesteps:
        eps = torch.from_numpy(mixture(x.numpy(), np.full(3, ALPHA_BAR[int(t)])))
        x = scheduler.step(eps, t, x).prev_sample
    assert np.abs(engine.invert(PICTURES, steps=25) - x.numpy()).max() < 2e-5


def test_inverted_mixtures_come_back(engine):
    """Samples of the model itself; the error falls as 1 / steps, and geometrically with the iterations."""
    samples = engine.sample(16, steps=200, seed=0, output="float")

    def error(steps, **options):
        back = engine.sample(16, x_init=engine.invert(samples, steps=steps, **options), sampler="ddim", steps=steps, output="float")
        return np.abs(np.asarray(back) - np.asarray(samples)).max()

    plain = [error(steps) for steps in (50, 100, 200)]
    assert plain[0] < 0.2 and plain[1] < 0.6 * plain[0] and plain[2] < 0.6 * plain[1]
    refined = [error(50, iterations=k) for k in (1, 2, 4, 16)]
    assert all(b < 0.7 * a for a, b in itertools.pairwise(refined)) and refined[-1] < 1e-3


def test_half_the_way_back(engine):
    """To a level in the middle and from there, x_init being the state of that level."""
    samples = engine.sample(8, steps=200, seed=0, output="float")
    middle = engine.invert(samples, steps=100, strength=0.5, iterations=8)
    back = engine.sample(8, x_init=middle, strength=0.5, steps=100, sampler="ddim", output="float")
    assert middle.nfe == 50 * 8 and back.nfe == 50
    assert np.abs(np.asarray(back) - np.asarray(samples)).max() < 5e-3
    assert np.abs(np.asarray(middle) - np.asarray(engine.invert(samples, steps=100, iterations=8))).max() > 0.1


def test_inverted_digits_come_back(digits):
    pictures = digits.sample(2, labels=[3, 8], seed=0, steps=20)
    options = {"labels": [3, 8], "scale": 1, "steps": 20}

    def error(**more):
        back = digits.sample(2, x_init=digits.invert(pictures, **options, **more), sampler="ddim", **options)
        return np.abs(back.astype(float) - pictures).mean()

    plain, refined = error(), error(iterations=4)
    assert plain < 6 and refined < 0.5 * plain  # levels of 255


# ---------------------------------------------------------------------------------------- interpolation, predictions


def test_slerp():
    a, b = noise([0, 1, 2], 0, 0), noise([3, 4, 5], 0, 0)
    assert np.abs(ddpm_rt.slerp(a, b, 0) - a).max() < 1e-6 and np.abs(ddpm_rt.slerp(a, b, 1) - b).max() < 1e-6
    middle = ddpm_rt.slerp(a, b, [0.25, 0.5, 0.9])
    assert middle.dtype == np.float32 and middle.shape == a.shape
    for i, t in enumerate((0.25, 0.5, 0.9)):
        p, q = a[i].ravel(), b[i].ravel()
        w = np.arccos(p @ q / np.linalg.norm(p) / np.linalg.norm(q))
        assert np.abs(middle[i].ravel() - (np.sin((1 - t) * w) * p + np.sin(t * w) * q) / np.sin(w)).max() < 1e-6
        assert (ddpm_rt.slerp(a[i : i + 1], b[i : i + 1], t)[0] == middle[i]).all()
    circle = ddpm_rt.slerp(np.array([[3.0, 0.0]]), np.array([[0.0, 3.0]]), 1 / 3)
    assert np.abs(circle - [[3 * np.cos(np.pi / 6), 1.5]]).max() < 1e-6
    assert np.abs(ddpm_rt.slerp(a, 2 * a, 0.5) - 1.5 * a).max() < 1e-6  # parallel: a straight line
    for error, other, t in ((ddpm_rt.ShapeError, b[:2], 0.5), (ddpm_rt.OptionError, -a, 0.5), (ddpm_rt.ShapeError, b, [0.1, 0.2])):
        with pytest.raises(error):
            ddpm_rt.slerp(a, other, t)
    with pytest.raises(ddpm_rt.OptionError, match="t: "):
        ddpm_rt.slerp(a, b, float("nan"))


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [({"steps": 7}, 7), ({"steps": 5, "sampler": "heun"}, 9), ({"steps": 6, "sampler": "euler", "sampler_options": {"s_churn": 2.0}}, 6)],
)
def test_predictions_on_the_way(engine, options, evaluations):
    everything = engine.sample(3, seed=2, x0_every=1, output="float", **options)
    assert everything.x0.shape == (3, evaluations, *SHAPE) and everything.x0.dtype == np.float32
    watched = []
    with_callback = engine.sample(3, seed=2, x0_every=2, output="float", callback=lambda row, rows, x0: watched.append(x0.copy()), **options)
    assert (with_callback == everything).all() and (with_callback.x0 == everything.x0[:, ::-1][:, ::2][:, ::-1]).all()
    rows = [x0 for x0 in watched if len(x0) == 3][-evaluations:]  # a churn before the first evaluation predicts nothing
    assert (np.stack(rows, 1) == everything.x0).all()
    assert (engine.sample(1, seed=3, x0_every=2, **options).x0[0] == with_callback.x0[1]).all()
    assert (everything[1:].x0 == everything.x0[1:]).all() and (everything[2].x0 == everything.x0[2]).all()
    assert engine.sample(1, seed=3, **options).x0 is None


def test_the_prediction_of_the_last_step_is_the_image(engine):
    found = engine.sample(2, seed=0, x0_every=100, steps=5, output="float")
    assert found.x0.shape == (2, 1, *SHAPE) and (found.x0[:, 0] == np.asarray(found)).all()


# ------------------------------------------------------------------------------------------- command line, bad input


def test_from_the_command_line(digits, tmp_path):
    picture = digits.sample(1, labels=3, seed=0)
    picture.save(tmp_path / "3.png")
    keep = np.zeros((28, 28, 1), np.uint8)
    keep[:, :14] = 255
    np.save(tmp_path / "keep.npy", keep[..., 0] > 0)
    ddpm_rt.Images(keep[None]).save(tmp_path / "keep.png")
    base = [sys.executable, "-m", "ddpm_rt", "sample", "digits", "-n", "2", "--seed", "1", "--label", "8", "--steps", "10"]
    base += ["--image", str(tmp_path / "3.png"), "--x0-every", "4", "-o", str(tmp_path / "a.npz")]
    options = {"labels": 8, "seed": 1, "steps": 10, "image": picture}
    for extra, same in (
        (["--strength", "0.7"], {"strength": 0.7}),
        (["--mask", str(tmp_path / "keep.png"), "--jump-length", "2", "--resamples", "2"], {"mask": keep[..., 0] > 0, "jump_length": 2, "resamples": 2}),
    ):  # fmt: skip
        done = subprocess.run([*base, *extra], capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        expected = digits.sample(2, **options, **same, x0_every=4)
        with np.load(tmp_path / "a.npz") as found:
            assert (found["arr_0"] == expected).all() and (found["x0"] == expected.x0).all()
    refused = subprocess.run([*base[:-1], str(tmp_path / "a.png")], capture_output=True, text=True, check=False, timeout=200)
    assert refused.returncode == 2 and "x0_every" in refused.stderr


MASK = np.ones((4, 4), bool)
BAD = [
    (ddpm_rt.ShapeError, "image", {"image": PICTURES[:, :, :2], "strength": 0.5}),
    (ddpm_rt.ShapeError, "image", {"image": PICTURES[:2], "strength": 0.5}),
    (ddpm_rt.ShapeError, "image", {"image": PICTURES.astype(np.float64), "strength": 0.5}),
    (ddpm_rt.ShapeError, "image", {"image": np.zeros((3, 1, 4, 4), np.uint8), "strength": 0.5}),
    (ddpm_rt.ShapeError, "image", {"image": "3.png", "strength": 0.5}),
    (ddpm_rt.OptionError, "image", {"image": np.full_like(PICTURES, np.nan), "strength": 0.5}),
    (ddpm_rt.OptionError, "image", {"image": PICTURES}),
    (ddpm_rt.OptionError, "strength", {"strength": 0.5}),
    (ddpm_rt.OptionError, "strength", {"image": PICTURES, "strength": 1.5}),
    (ddpm_rt.OptionError, "strength", {"image": PICTURES, "strength": -0.1}),
    (ddpm_rt.OptionError, "strength", {"image": PICTURES, "strength": float("nan")}),
    (ddpm_rt.OptionError, "strength", {"image": PICTURES, "strength": 0.05}),
    (ddpm_rt.OptionError, "strength", {"image": PICTURES, "strength": 0}),
    (ddpm_rt.OptionError, "x_init", {"image": PICTURES, "strength": 0.5, "x_init": PICTURES}),
    (ddpm_rt.OptionError, "mask", {"mask": MASK}),
    (ddpm_rt.OptionError, "mask", {"image": PICTURES, "mask": np.full((4, 4), 2, np.float32)}),
    (ddpm_rt.OptionError, "mask", {"image": PICTURES, "mask": MASK, "sampler": "dpmpp_2m"}),
    (ddpm_rt.OptionError, "mask", {"image": PICTURES, "mask": MASK, "sampler": "euler", "sampler_options": {"s_churn": 1.0}}),
    (ddpm_rt.ShapeError, "mask", {"image": PICTURES, "mask": np.ones((4, 4), np.uint8)}),
    (ddpm_rt.ShapeError, "mask", {"image": PICTURES, "mask": np.ones((2, 4, 4), bool)}),
    (ddpm_rt.OptionError, "jump_length", {"image": PICTURES, "strength": 0.5, "jump_length": 3}),
    (ddpm_rt.OptionError, "jump_length", {"image": PICTURES, "mask": MASK, "jump_length": 0}),
    (ddpm_rt.OptionError, "resamples", {"image": PICTURES, "strength": 0.5, "resamples": 3}),
    (ddpm_rt.OptionError, "resamples", {"image": PICTURES, "mask": MASK, "resamples": 1.5}),
    (ddpm_rt.OptionError, "x0_every", {"x0_every": 0}),
    (ddpm_rt.OptionError, "x0_every", {"x0_every": 1, "n": 5_000_000, "steps": 1000, "sampler": "heun", "clip": "none"}),
]


@pytest.mark.parametrize(("error", "field", "options"), BAD, ids=[f"{f}-{i}" for i, (_, f, _) in enumerate(BAD)])
def test_bad_input_names_its_field(engine, error, field, options):
    with pytest.raises(error, match=rf"^{field}.*expected.*got"):
        engine.sample(**{"n": 3, **options})


@pytest.mark.parametrize(
    ("field", "options"),
    [("sampler", {"sampler": "euler"}), ("sampler", {"eta": 0.5}), ("iterations", {"iterations": 0}), ("seed", {"seed": 1}), ("stepz", {"stepz": 1})],
)  # fmt: skip
def test_bad_inversions(engine, field, options):
    with pytest.raises(ddpm_rt.OptionError, match=f"^{field}"):
        engine.invert(PICTURES, **options)
    with pytest.raises(ddpm_rt.ShapeError, match="^images"):
        engine.invert(PICTURES[:, :, :3])
