"""ddpm_rt/reference/losses.py and unet.py against the papers."""

import math

import pytest
import torch

from ddpm_rt.reference import losses
from ddpm_rt.reference.schedule import Schedule
from ddpm_rt.reference.unet import CIFAR10_DDPM, UNet, UNetConfig

SCHEDULE = Schedule.make("linear", 200, start=1e-3, end=0.05)


def batch(channels=3):
    g = torch.Generator().manual_seed(1)
    t = torch.randint(1, 200, (16,), generator=g)
    x0, eps, out = torch.randn(3, 16, channels, 4, 4, generator=g, dtype=torch.float64)
    return t, x0, eps, SCHEDULE.q_sample(x0, t, eps), out


def test_mean_loss_of_eq_8_is_the_weighted_eps_loss_of_eq_12():
    t, x0, eps, x_t, eps_theta = batch()
    eq8 = losses.mean_loss(SCHEDULE, losses.mean_from_eps(SCHEDULE, x_t, t, eps_theta), x0, x_t, t)
    eq12 = losses.bound_weight(SCHEDULE)[t] * losses.per_image_mse(eps, eps_theta)
    assert torch.allclose(eq8, eq12, rtol=1e-10, atol=0)


def test_mean_from_the_true_noise_is_the_posterior_mean():
    t, x0, eps, x_t, _ = batch()
    mean = losses.mean_from_eps(SCHEDULE, x_t, t, eps)
    assert torch.allclose(mean, SCHEDULE.posterior_mean(x0, x_t, t), atol=1e-11)


def test_min_snr_weight():
    w, snr = losses.min_snr_weight(SCHEDULE), SCHEDULE.snr
    assert torch.allclose(w, torch.minimum(snr, torch.tensor(5.0)) / snr)
    zero = Schedule.make("linear", zero_terminal=True)
    assert losses.min_snr_weight(zero)[-1] == 1 and torch.isfinite(losses.min_snr_weight(zero)).all()


def test_gaussian_kl_by_sampling():
    torch.manual_seed(0)
    m1, v1, m2, v2 = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.0, -0.2, 0.4))
    x = m1 + (v1 / 2).exp() * torch.randn(400_000, dtype=torch.float64)
    logs = [-0.5 * (v + (x - m) ** 2 / v.exp()) for m, v in ((m1, v1), (m2, v2))]
    assert float(losses.gaussian_kl(m1, v1, m2, v2)) == pytest.approx(float((logs[0] - logs[1]).mean()), rel=0.02)


def test_discretised_gaussian_sums_to_one_over_all_pixels():
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, log_var in ((0.1, -6.0), (0.99, -3.0), (-1.2, 0.0)):
        nll = losses.discretised_gaussian_nll(pixels, torch.tensor(mean).double(), torch.tensor(log_var).double())
        assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-6)


def test_vlb_term_at_beta_variance_is_eq_8_plus_its_constant():
    """v = 1 is log variance log beta: KL = |mean gap|^2 / (2 beta) + (ratio - 1 - log ratio)/2, in bits."""
    t, x0, _, x_t, eps_theta = batch()
    out = torch.cat([eps_theta, torch.ones_like(eps_theta)], 1)
    ratio = (SCHEDULE.posterior_variance / SCHEDULE.betas)[t]
    eq8 = losses.bound_weight(SCHEDULE)[t] * losses.per_image_mse(batch()[2], eps_theta)
    expected = (eq8 + 0.5 * (ratio - 1 - ratio.log())) / math.log(2)
    assert torch.allclose(losses.vlb_term(SCHEDULE, out, x0, x_t, t), expected, rtol=1e-9)


def test_hybrid_loss_trains_the_noise_by_l_simple_alone():
    t, x0, eps, x_t, eps_theta = batch()
    t[0] = 0
    out = torch.cat([eps_theta, torch.zeros_like(eps_theta)], 1).requires_grad_()
    losses.hybrid_loss(SCHEDULE, out, x0, x_t, t, eps).sum().backward()
    noise_grad, v_grad = out.grad.chunk(2, dim=1)
    per_element = eps_theta[0].numel()
    assert torch.allclose(noise_grad, 2 * (eps_theta - eps) / per_element, atol=1e-12)
    assert bool((v_grad != 0).any()) and torch.isfinite(v_grad).all()


def test_cifar10_unet_has_the_published_parameter_count():
    with torch.device("meta"):
        net = UNet(CIFAR10_DDPM)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307  # DDPM appendix B: 35.7 million


@pytest.mark.parametrize("film", [False, True])
def test_unet_shapes_split_and_learned_variance(film):
    cfg = UNetConfig(
        image_size=(8, 12), in_channels=2, channels=8, channel_mult=(1, 2), res_blocks=1, attention=(0,), heads=2,
        groups=4, num_classes=3, patch=2, film=film, learned_variance=True,
    )  # fmt: skip
    torch.manual_seed(0)
    net = UNet(cfg).eval()
    for p in net.parameters():  # the branches that start at zero too
        torch.nn.init.normal_(p, std=0.2)
    x, t, label = torch.randn(2, 2, 8, 12), torch.tensor([3.0, 900.0]), torch.tensor([1, 3])
    out = net(x, t, label)
    assert out.shape == (2, 4, 8, 12)
    assert torch.equal(out, net.trunk(x, net.rows(t, label)))
    assert torch.allclose(out[1:], net(x[1:], t[1:], label[1:]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out, net(x, t + 50, label)) and not torch.allclose(out, net(x, t, label * 0))


@pytest.mark.parametrize(
    "field, value",
    [("groups", 3), ("heads", 3), ("image_size", (30, 32)), ("attention", (4,)), ("dropout", 1.0), ("patch", 0)],
)
def test_unet_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        UNetConfig(**{field: value})
