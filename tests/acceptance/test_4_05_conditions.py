"""Issue 4 line 5: arbitrary named tensors of a request condition the network, each with a null value for guidance."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import export

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")
T, STEPS, LENGTH = 1000, 5, 6
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, T))


class Net(torch.nn.Module):
    """A vector, a small image beside x with its augmentation level, and a sequence that every pixel attends to."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1)
        self.shift, self.key, self.value = torch.nn.Linear(5, 8), torch.nn.Linear(4, 8), torch.nn.Linear(4, 8)

    def forward(self, x, t, *, level, low, style, text, text_mask):
        grown = torch.nn.functional.interpolate(low, scale_factor=2, mode="nearest")
        scalars = torch.cat([style, level[:, None], t[:, None] / T], 1)
        h = torch.nn.functional.silu(self.enter(torch.cat([x, grown], 1)) + self.shift(scalars)[:, :, None, None])
        scores = torch.einsum("bchw,blc->bhwl", h, self.key(text)).masked_fill(text_mask[:, None, None] == 0, float("-inf"))
        return self.leave(h + torch.einsum("bhwl,blc->bchw", scores.softmax(-1), self.value(text)))


CONDITIONS = {
    "style": {"shape": [3]},
    "low": {"shape": [1, 4, 4], "role": "map", "null": "same"},
    "level": {"null": "same"},
    "text": {"shape": [4], "max_length": LENGTH, "mask": True, "role": "text"},
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def plan(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "conditional.plan"
    export.export_plan(net, path, shape=(1, 8, 8), conditions=CONDITIONS, defaults={"steps": STEPS, "clip": "none"})
    return path


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def engine(request, plan):
    with ddpm_rt.Engine(plan, backend=request.param, precision="fp32", cache_dir="") as opened:
        yield opened


def conditions(n, seed=0):
    """One per image, texts of different lengths."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {"style": normal(n, 3), "low": normal(n, 1, 4, 4), "level": normal(n),
            "text": [normal(1 + (i + seed) % LENGTH, 4) for i in range(n)]}  # fmt: skip


def tensors(cond, i):
    """Image i's as the module takes them, the text in its own length."""
    found = {k: torch.from_numpy(np.asarray(v[i]))[None] for k, v in cond.items()}
    return found | {"text_mask": torch.ones(1, found["text"].shape[1])}


def null_of(cond, i):
    text = torch.zeros(1, LENGTH, 4)
    return tensors(cond, i) | {"style": torch.zeros(1, 3), "text": text, "text_mask": torch.ones(1, LENGTH)}


def ddim(net, x, cond, scale=1.0, null=None):
    """Song et al. 2010.02502 eq. 12, eta 0.  x [1, 1, 8, 8]"""
    for t in range(T - T // STEPS, -1, -T // STEPS):
        told = torch.tensor([float(t)])
        with torch.no_grad():
            e = net(x, told, **cond)
            if scale != 1:
                u = net(x, told, **null)
                e = u + scale * (e - u)
        a, b = ALPHA_BAR[t], ALPHA_BAR[t - T // STEPS] if t > 0 else 1.0
        x = float(np.sqrt(b / a)) * (x - float(np.sqrt(1 - a)) * e) + float(np.sqrt(1 - b)) * e
    return x[0].numpy()


def noise(n, seed=9):
    return np.random.default_rng(seed).standard_normal((n, 1, 8, 8)).astype(np.float32)


def close(got, expected, tolerance=1e-5):
    return np.abs(np.asarray(got) - expected).max() <= tolerance * np.abs(expected).max()


def test_every_kind_of_condition_reaches_the_network(engine, net):
    n, z, cond = 4, noise(4), conditions(4)
    got = engine.sample(n, cond=cond, latents=z, output="float")
    for i in range(n):
        assert close(got[i], ddim(net, torch.from_numpy(z[i : i + 1]), tensors(cond, i))), i
    assert got.nfe == STEPS
    for name in cond:  # each of them matters
        changed = engine.sample(n, cond=cond | {name: conditions(n, seed=1)[name]}, latents=z, output="float")
        assert np.abs(np.asarray(changed) - np.asarray(got)).max(axis=(1, 2, 3)).min() > 1e-4, name


def test_guidance_with_null_values_and_with_negative_ones(engine, net):
    n, z, cond, other = 3, noise(3), conditions(3), conditions(3, seed=5)
    guided = engine.sample(n, cond=cond, scale=3, latents=z, output="float")
    away = engine.sample(n, cond=cond, scale=3, negative={"text": other["text"]}, latents=z, output="float")
    assert guided.nfe == 2 * STEPS
    for i in range(n):
        x = torch.from_numpy(z[i : i + 1])
        assert close(guided[i], ddim(net, x, tensors(cond, i), 3.0, null_of(cond, i))), i
        null = null_of(cond, i) | {k: tensors(other, i)[k] for k in ("text", "text_mask")}
        assert close(away[i], ddim(net, x, tensors(cond, i), 3.0, null)), i


def test_one_value_serves_all_images(engine):
    cond = {k: v[0] for k, v in conditions(1).items()}
    repeated = {k: [v] * 3 if k == "text" else np.stack([v] * 3) for k, v in cond.items()}
    one = np.asarray(engine.sample(3, cond=cond, seed=0, output="float"))
    assert (one == np.asarray(engine.sample(3, cond=repeated, seed=0, output="float"))).all()
    plain = cond | {"level": float(cond["level"]), "style": torch.from_numpy(cond["style"])}
    assert (one == np.asarray(engine.sample(3, cond=plain, seed=0, output="float"))).all()


def test_an_image_has_the_same_bits_alone_and_among_strangers(engine):
    def sample(seed, n, **options):
        return np.asarray(engine.sample(n, cond=conditions(n, seed), seed=seed, scale=2, output="float", **options))

    alone = [sample(seed, 5) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        crowd = [pool.submit(sample, seed % 4, 5) for seed in range(16)]
        crowd_of_others = [pool.submit(sample, 10 + seed, 3, steps=7 + seed) for seed in range(6)]
        assert all((f.result() == alone[seed % 4]).all() for seed, f in enumerate(crowd))
        assert all(np.isfinite(f.result()).all() for f in crowd_of_others)
    own = conditions(5, 2)
    one = {k: v[3:4] for k, v in own.items()}
    assert (np.asarray(engine.sample(1, cond=one, seed=5, scale=2, output="float"))[0] == alone[2][3]).all()


SMALL = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}  # attends in the middle
SD = {"block_out_channels": (16, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
      "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip


@pytest.mark.parametrize("blocks", [SMALL, pytest.param(SD, marks=pytest.mark.slow)], ids=["small", "as Stable Diffusion 1.5"])
def test_a_text_to_image_network_of_diffusers(blocks, tmp_path):
    """Two lengths in one batch, guided, equal to diffusers' own scheduler and network row by row."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, norm_num_groups=4, cross_attention_dim=12, attention_head_dim=4, **blocks
    ).eval()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.2)
    unet.save_pretrained(tmp_path / "p" / "unet")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.save_pretrained(tmp_path / "p" / "scheduler")
    from ddpm_rt.importers import dispatch, imported

    imported.write(dispatch.read(tmp_path / "p", "diffusers"), tmp_path / "x.plan")
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((length, 12)).astype(np.float32) for length in (5, 77)]
    empty, z = rng.standard_normal((3, 12)).astype(np.float32), rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    with ddpm_rt.Engine(tmp_path / "x.plan", precision="fp32", cache_dir="") as engine:
        got = np.asarray(engine.sample(2, cond={"encoder_hidden_states": texts}, negative={"encoder_hidden_states": empty},
                                       scale=4, steps=4, latents=z))  # fmt: skip
        with pytest.raises(ddpm_rt.OptionError, match="negative: expected encoder_hidden_states"):
            engine.sample(2, cond={"encoder_hidden_states": texts}, scale=4)
    for i, text in enumerate(texts):
        x, peak = torch.from_numpy(z[i : i + 1]), 0.0
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            with torch.no_grad():
                c, u = (unet(x, t, torch.from_numpy(v)[None]).sample for v in (text, empty))
            x = scheduler.step(u + 4 * (c - u), t, x).prev_sample
            peak = max(peak, float(x.abs().max()))
        assert np.abs(got[i] - x[0].numpy()).max() <= 1e-5 * peak, i


def test_the_command_line_reads_arrays(plan, tmp_path):
    cond = {k: v[0] for k, v in conditions(1).items()}
    flags = []
    for name, value in cond.items():
        np.save(tmp_path / f"{name}.npy", value)
        flags += ["--cond", f"{name}={tmp_path / name}.npy"]
    np.save(tmp_path / "other.npy", cond["style"] + 1)
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_rt", "sample", plan, "-n", "2", "--seed", "3", "--scale", "2", *flags, "--negative",
         f"style={tmp_path / 'other.npy'}", "-o", tmp_path / "a.npz", "--json"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nfe"] == 2 * STEPS
    with ddpm_rt.Engine(plan) as engine:
        expected = engine.sample(2, cond=cond, negative={"style": cond["style"] + 1}, seed=3, scale=2)
    assert (np.load(tmp_path / "a.npz")["arr_0"] == expected).all()


GOOD = {k: v[0] for k, v in conditions(1).items()}


@pytest.mark.parametrize(
    ("cond", "error", "what"),
    [
        (None, "OptionError", r"cond: expected level, low, style, text; got no level"),
        ({"style": GOOD["style"]}, "OptionError", "got no level"),
        (GOOD | {"colour": GOOD["style"]}, "OptionError", "'colour'"),
        ([GOOD], "OptionError", "cond: expected a mapping"),
        (GOOD | {"style": GOOD["style"].astype(np.float64)}, "ShapeError", r"cond\.style: expected float32"),
        (GOOD | {"style": torch.zeros(3, dtype=torch.bfloat16)}, "ShapeError", r"cond\.style: .* got torch.bfloat16"),
        (GOOD | {"style": "red"}, "ShapeError", r"cond\.style"),
        (GOOD | {"style": GOOD["style"][:2]}, "ShapeError", r"cond\.style: expected float32 \[3\]"),
        (GOOD | {"style": np.zeros((3, 3), np.float32)}, "ShapeError", r"cond\.style: expected 1 array or 2"),
        (GOOD | {"low": GOOD["low"][0]}, "ShapeError", r"cond\.low: expected float32 \[1, 4, 4\]"),
        (GOOD | {"level": [0.5, 0.1, 0.2]}, "ShapeError", r"cond\.level: expected 1 array or 2"),
        (GOOD | {"level": np.float32("nan")}, "OptionError", r"cond\.level: expected a finite number"),
        (GOOD | {"style": GOOD["style"] * np.float32("inf")}, "OptionError", r"cond\.style: expected finite numbers"),
        (GOOD | {"text": np.zeros((LENGTH + 1, 4), np.float32)}, "ShapeError", r"cond\.text: expected lengths of 1 to 6, got 7"),
        (GOOD | {"text": np.zeros((0, 4), np.float32)}, "ShapeError", r"cond\.text: expected lengths of 1 to 6, got 0"),
        (GOOD | {"text": [np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32)]}, "ShapeError", r"cond\.text\[1\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(plan, cond, error, what):
    with ddpm_rt.Engine(plan, cache_dir="") as engine, pytest.raises(getattr(ddpm_rt, error), match=what):
        engine.sample(2, cond=cond)


def test_plans_that_take_none_say_so(tmp_path):
    with ddpm_rt.Engine.from_callable(lambda x, t, labels: x, (2,)) as engine:
        for options in ({"cond": {"style": GOOD["style"]}}, {"negative": {"style": GOOD["style"]}}):
            with pytest.raises(ddpm_rt.OptionError, match="none: this plan has no conditions"):
                engine.sample(1, **options)
