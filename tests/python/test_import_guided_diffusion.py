"""ddpm_rt/importers/guided_diffusion.py: the published files' key lists, and end to end against the reference's own loops.

No original file was read here. `PUBLISHED` was taken from the projects' own code: number of tensors and of parameters, and the
SHA-256 of the sorted lines "name shape", of the network that each README's flags make.
"""

from __future__ import annotations

import dataclasses
import hashlib

import loops
import numpy as np
import pytest

import ddpm_rt
import ddpm_rt.export

torch = pytest.importorskip("torch")

from ddpm_rt.importers import guided_diffusion
from ddpm_rt.importers.guided_unet import GuidedClassifier, GuidedUNet, UNetShape, attended
from ddpm_rt.reference import samplers
from ddpm_rt.reference.schedule import Schedule

SEED = 2
_64, _128 = (1, 2, 3, 4), (1, 1, 2, 3, 4)
_256, _512, _32 = (1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4), (1, 2, 2, 2)
#: tensors, parameters, hash; channels, multipliers, blocks, attending levels, classes, inputs, outputs, residual sampling, film
PUBLISHED = {
    "64x64_diffusion": (541, 295904454, "b879ba9ed4fe94bb", 192, _64, 3, (1, 2, 3), 1000, 3, 6, True, True),
    "128x128_diffusion": (493, 421529606, "d91b9be2449a697e", 256, _128, 2, (2, 3, 4), 1000, 3, 6, True, True),
    "256x256_diffusion": (567, 553838086, "408c4d65687d2b6d", 256, _256, 2, (3, 4, 5), 1000, 3, 6, True, True),
    "256x256_diffusion_uncond": (566, 552814086, "b9c90be1570d1541", 256, _256, 2, (3, 4, 5), None, 3, 6, True, True),
    "512x512_diffusion": (645, 558997638, "f95458c996170da9", 256, _512, 2, (4, 5, 6), 1000, 3, 6, True, True),
    "64_256_upsampler": (567, 311795910, "99d9c28e89d75934", 192, _256, 2, (3, 4, 5), 1000, 6, 6, True, True),
    "128_512_upsampler": (537, 308835270, "2424e4b817a8f3a3", 192, _256, 2, (4, 5), 1000, 6, 6, True, True),
    "64x64_classifier": (307, 65438568, "1f101795c34a2e14", 128, _64, 4, (1, 2, 3), None, 3, 1000, True, True),
    "128x128_classifier": (221, 42568040, "d574aa664c511e87", 128, _128, 2, (2, 3, 4), None, 3, 1000, True, True),
    "256x256_classifier": (249, 54096360, "80623bcac5ce31ac", 128, _256, 2, (3, 4, 5), None, 3, 1000, True, True),
    "512x512_classifier": (281, 54448360, "14a2ce08b1e153d1", 128, _512, 2, (4, 5, 6), None, 3, 1000, True, True),
    "imagenet64_uncond_100M_1500K": (450, 121063942, "5a42ef114f79713a", 128, _64, 3, (2, 3), None, 3, 6, False, True),
    "cifar10_uncond_50M_500K": (446, 52546438, "001b621871f3fa9d", 128, _32, 3, (1, 2), None, 3, 6, False, True),
    "imagenet64_cond_270M_250K": (451, 273049350, "59179ffdc09597c8", 192, _64, 3, (2, 3), 1000, 3, 6, False, True),
    "lsun_uncond_100M_1200K_bs128": (426, 113676678, "0313288a27e5d1d5", 128, _256, 2, (4,), None, 3, 6, False, False),
    "upsample_cond_500K": (457, 279792390, "dcd196aa34ef2321", 192, _256, 2, (4, 5), 1000, 6, 6, False, True),
}  # fmt: skip


def made(shape, kind=GuidedUNet):
    torch.manual_seed(0)
    net = kind(shape)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.06 if p.ndim > 1 else 0.3)
    return net.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_key_lists_and_what_shapes_tell(name, tmp_path):
    tensors, count, digest, channels, mult, blocks, attention, classes, taken, given, residual, film = PUBLISHED[name]
    flags = guided_diffusion.flags_of(tmp_path / f"{name}.pt", None, None)
    head_channels = flags["num_head_channels"] if flags["num_head_channels"] > 0 else None
    shape = UNetShape(
        flags["image_size"], taken, given, channels, tuple(int(m * channels) for m in mult), blocks, attention,
        (flags["num_heads"],) * 2, head_channels, flags["use_new_attention_order"], residual, film, classes,
    )  # fmt: skip
    with torch.device("meta"):
        state = (GuidedClassifier if "classifier" in name else GuidedUNet)(shape).state_dict()
    lines = "\n".join(f"{k} {tuple(v.shape)}" for k, v in sorted(state.items()))
    assert (len(state), sum(v.numel() for v in state.values())) == (tensors, count)
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest
    assert guided_diffusion.shape_of(tmp_path / name, state, flags) == shape


def test_the_two_orders_of_qkv():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 4, 5).unbind(0)  # [B, heads, d, N] each
    expected = torch.nn.functional.scaled_dot_product_attention(*(a.transpose(2, 3) for a in (q, k, v))).transpose(2, 3)
    new = torch.cat([a.reshape(2, 12, 5) for a in (q, k, v)], dim=1)
    old = torch.cat([q, k, v], dim=2).reshape(2, 36, 5)
    for qkv, is_new in ((new, True), (old, False)):
        assert (attended(qkv, 3, is_new) - expected.reshape(2, 12, 5)).abs().max() < 1e-5
        assert (attended(qkv, 3, not is_new) - expected.reshape(2, 12, 5)).abs().max() > 0.1


BASE = UNetShape(16, 3, 6, 32, (32, 64), 1, (1,), (2, 2), None, False, True, True)
FLAGS = {"image_size": 16, "num_heads": 2, "noise_schedule": "linear", "diffusion_steps": 100}


def compared(tmp_path, shape, flags, loop, name="net", labels=None, beside=None, **call):
    net = made(shape)
    torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    result = ddpm_rt.export.export_model(tmp_path / f"{name}.pt", tmp_path / f"{name}.plan", flags=flags)
    unit = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    y = None if labels is None else torch.tensor(labels)
    with torch.no_grad():
        expected = loop(
            lambda x, t: net(x if beside is None else torch.cat([x, beside], 1), t.float(), y), torch.from_numpy(unit), loops.engine_noise(SEED, unit.shape)
        ).numpy()
    with ddpm_rt.Engine(tmp_path / f"{name}.plan") as engine:
        got = engine.sample(2, latents=unit, seed=SEED, output="float", labels=labels, **call)
        assert engine.info()["self_test"]["status"] == "passed"
        images = engine.sample(2, latents=unit, seed=SEED, labels=labels, **call)
    assert np.abs(got - expected).max() <= 2e-4 * max(1.0, np.abs(expected).max())
    levels = ((np.asarray(got).transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255)
    assert (np.asarray(images) == levels.astype(np.uint8)).mean() > 0.999  # truncated, as its scripts do
    return result["manifest"]


def _schedule(T=100):
    return Schedule(np.cumprod(1 - np.linspace(0.1 / T, 20 / T, T)))


@pytest.mark.slow
def test_learned_sigma_and_respacing(tmp_path):
    schedule = _schedule()
    times = [
        int(t)
        for t in ddpm_rt.rows("ddpm", schedule={"alpha_bar": schedule.alpha_bar.numpy()}, grid="10", clip="none")["t"]
    ]

    def loop(net, x, noise):
        return samplers.ddpm(
            net, schedule, x, times, lambda row: torch.from_numpy(noise(row)), variance="learned_range"
        )

    manifest = compared(tmp_path, BASE, FLAGS | {"timestep_respacing": "10"}, loop)
    assert manifest["variance"] == "learned_range" and manifest["defaults"]["compat"] == "guided-diffusion"
    assert manifest["sample"]["uint8"] == "truncate"


@pytest.mark.slow
def test_ddim_of_a_class_conditional_network_with_rescaled_times(tmp_path):
    shape = dataclasses.replace(
        BASE, out_channels=3, num_classes=4, residual_sampling=False, film=False, head_channels=16, new_order=True
    )
    schedule = _schedule()
    times = list(range(0, 100, 10))[::-1]

    def loop(net, x, noise):
        return samplers.ddim(lambda x, t: net(x, t * 10), schedule, x, times, clip="rederive")

    flags = FLAGS | {"num_head_channels": 16, "use_new_attention_order": True, "use_ddim": True, "timestep_respacing": "ddim10",
                     "rescale_timesteps": True}  # fmt: skip
    manifest = compared(tmp_path, shape, flags, loop, labels=[1, 3])
    assert manifest["conditions"]["label"]["classes"] == 4 and manifest["defaults"]["scale"] == 1


@pytest.mark.slow
def test_an_upsampler_s_small_image_is_a_condition(tmp_path):
    schedule, times = _schedule(), list(range(0, 100, 20))[::-1]
    small = torch.randn(2, 3, 4, 4)
    manifest = compared(
        tmp_path, dataclasses.replace(BASE, in_channels=6, widths=(32,), attention=(), residual_sampling=False),
        FLAGS | {"small_size": 4, "use_ddim": True, "timestep_respacing": "ddim5"},
        lambda net, x, noise: samplers.ddim(lambda x, t: net(x, t)[:, :3], schedule, x, times, clip="rederive"),
        beside=torch.nn.functional.interpolate(small, (16, 16), mode="bilinear"), cond={"low_res": small},
    )  # fmt: skip
    assert manifest["conditions"]["low_res"]["shape"] == [3, 4, 4] and manifest["sample"]["shape"] == [3, 16, 16]


def test_networks_that_are_no_plans_and_small_sizes(tmp_path):
    up = made(dataclasses.replace(BASE, in_channels=6))
    torch.save(up.state_dict(), tmp_path / "up.pt")
    x, t = torch.randn(2, 6, 16, 16), torch.tensor([3.0, 50.0])
    with torch.no_grad():
        assert torch.equal(guided_diffusion.network(tmp_path / "up.pt", flags=FLAGS)(x, t), up(x, t))
    judge = made(dataclasses.replace(BASE, out_channels=7, head_channels=16), GuidedClassifier)
    torch.save(judge.state_dict(), tmp_path / "c.pt")
    flags = FLAGS | {"num_head_channels": 16}
    with torch.no_grad():
        assert torch.equal(guided_diffusion.classifier(tmp_path / "c.pt", flags=flags)(x[:, :3], t), judge(x[:, :3], t))
    torch.save(made(BASE).state_dict(), tmp_path / "net.pt")
    for file, what, given in (
        ("c.pt", "classifier", flags),
        ("up.pt", r"flags\.small_size: expected the size", FLAGS),
        ("net.pt", r"flags\.small_size: expected it unset", FLAGS | {"small_size": 8}),
        ("up.pt", r"flags\.small_size: expected a whole number", FLAGS | {"small_size": "8"}),
    ):
        with pytest.raises(ddpm_rt.PlanError if file == "c.pt" else ddpm_rt.OptionError, match=what):
            ddpm_rt.export.export_model(tmp_path / file, tmp_path / "x.plan", flags=given)


def test_what_is_wrong_is_named(tmp_path):
    state = made(BASE).state_dict()
    torch.save(state, tmp_path / "net.pt")

    def refused(error, match, file="net.pt", **options):
        with pytest.raises(error, match=match):
            ddpm_rt.export.export_model(tmp_path / file, tmp_path / "x.plan", **options)
        assert not (tmp_path / "x.plan").exists()

    refused(ddpm_rt.OptionError, r"flags\.image_size")  # neither preset nor flags: nothing is guessed
    refused(ddpm_rt.OptionError, r"flags\.num_heads", flags={k: v for k, v in FLAGS.items() if k != "num_heads"})
    refused(ddpm_rt.OptionError, "preset", preset="1024x1024")
    refused(ddpm_rt.OptionError, r"flags\.learn_sigma", flags=FLAGS | {"learn_sigma": True})
    refused(ddpm_rt.OptionError, r"flags\.colour", flags=FLAGS | {"colour": "red"})
    refused(ddpm_rt.OptionError, r"flags\.noise_schedule", flags=FLAGS | {"noise_schedule": "sqrt"})
    refused(ddpm_rt.OptionError, r"flags\.use_ddim", flags=FLAGS | {"use_ddim": "yes"})
    refused(ddpm_rt.OptionError, "image_size", image_size=16)
    torch.save({k: v for k, v in state.items() if k != "middle_block.1.qkv.bias"}, tmp_path / "less.pt")
    refused(ddpm_rt.PlanError, r"middle_block\.1\.qkv\.bias", "less.pt", flags=FLAGS)
    torch.save(state | {"input_blocks.1.0.out_layers.3.weight": torch.zeros(48, 32, 3, 3)}, tmp_path / "odd.pt")
    refused(ddpm_rt.PlanError, "expected .* got", "odd.pt", flags=FLAGS)


@pytest.mark.slow
def test_a_classifier_s_file_guides_a_network_without_classes(tmp_path):
    """Dhariwal & Nichol algorithm 1 on a learned variance, by hand: the mean moves by s Sigma grad log p(y | x_t)."""
    net = made(BASE)
    judge = made(dataclasses.replace(BASE, out_channels=7, head_channels=64, widths=(64, 64)), GuidedClassifier)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    torch.save(judge.state_dict(), tmp_path / "judge.pt")
    manifest = ddpm_rt.export.export_model(
        tmp_path / "net.pt", tmp_path / "x.plan", flags=FLAGS | {"timestep_respacing": "6"}, classifier=tmp_path / "judge.pt"
    )["manifest"]
    assert manifest["conditions"]["label"]["classes"] == 7
    labels, s = torch.tensor([2, 5]), 1.5
    unit = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    noise, bars = loops.engine_noise(SEED, unit.shape), np.cumprod(1 - np.linspace(0.001, 0.2, 100))
    with ddpm_rt.Engine(tmp_path / "x.plan") as engine:
        got = engine.sample(2, latents=unit, seed=SEED, labels=[2, 5], classifier_scale=s, output="float")
    times = [int(t) for t in ddpm_rt.rows("ddpm", schedule={"alpha_bar": bars}, grid="6", clip="none")["t"]]
    ab = [float(bars[t]) for t in times]
    after = [*ab[1:], 1.0]
    beta = [1 - a / b for a, b in zip(ab, after, strict=True)]
    small = [(1 - b) / (1 - a) * v for a, b, v in zip(ab, after, beta, strict=True)]
    small[-1] = small[-2]  # the end's is clipped to its neighbour's
    x = torch.from_numpy(unit)
    for i, t in enumerate(times):
        told = torch.full((2,), float(t))
        with torch.no_grad():
            eps, v = net(x, told).chunk(2, dim=1)
        x0 = ((x - (1 - ab[i]) ** 0.5 * eps) / ab[i] ** 0.5).clamp(-1, 1)
        mean = after[i] ** 0.5 * beta[i] / (1 - ab[i]) * x0 + (ab[i] / after[i]) ** 0.5 * (1 - after[i]) / (1 - ab[i]) * x
        f = (v + 1) / 2
        variance = (f * np.log(beta[i]) + (1 - f) * np.log(small[i])).exp()
        leaf = x.clone().requires_grad_()
        chosen = judge(leaf, told).log_softmax(dim=1).gather(1, labels[:, None]).sum()
        (grad,) = torch.autograd.grad(chosen, leaf)
        x = mean + s * variance * grad
        if i + 1 < len(times):
            x = x + variance.sqrt() * torch.from_numpy(noise(i))
        x = x.detach()
    assert np.abs(got - x.numpy()).max() <= 5e-4 * max(1.0, np.abs(x.numpy()).max())
