"""Plans with a classifier's gradient: the graph against autograd on every backend, guidance with it, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt

torch = pytest.importorskip("torch")
from torch import nn

CLASSES = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.conv(x)) + 0.001 * t[:, None, None, None]


class Labelled(Net):
    def forward(self, x, t, label):
        return super().forward(x, t) + 0.1 * label.float()[:, None, None, None]


class Classifier(nn.Module):
    """Convolutions with stride, GroupNorm, SiLU, time by FiLM, attention, average pooling, LayerNorm: the ADM classifier's parts."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.down, self.time = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Linear(1, 32)
        self.qkv, self.ln, self.out = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x, t):
        h = nn.functional.silu(self.norm(self.first(x)))
        scale, shift = self.time(t[:, None] / 1000)[:, :, None, None].chunk(2, 1)
        h = self.down(h) * (1 + scale) + shift
        b, c, height, width = h.shape
        z = self.ln(h.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(z).chunk(3, -1)
        h = h + (torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v).transpose(1, 2).reshape(b, c, height, width)
        return self.out(nn.functional.gelu(nn.functional.avg_pool2d(h, 2)).mean((2, 3)))


def by_autograd(classifier, x, t, label):
    x = x.clone().requires_grad_(True)
    log_p = torch.log_softmax(classifier(x, t), 1)
    known = label < CLASSES
    log_p[torch.arange(len(x))[known], label[known]].sum().backward()
    return x.grad.detach()


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return Net().eval(), Labelled().eval(), Classifier().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plan(parts, tmp_path_factory):
    from ddpm_rt.export import export_plan

    path = tmp_path_factory.mktemp("classifier") / "guided.plan"
    result = export_plan(parts[0], path, shape=(2, 8, 8), num_classes=CLASSES, classifier=parts[2])
    assert result["parity"] < 1e-5 and result["manifest"]["networks"]["unet"]["output_slices"]["gradient"] == [2, 4]
    return path


def guided(net, classifier):
    def fn(x, t, labels):
        x, t, labels = torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(labels)
        with torch.no_grad():
            out = net(x, t)
        return torch.cat([out, by_autograd(classifier, x, t, labels)], 1).numpy()

    return fn


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_plan_guides_as_autograd_does(parts, plan, backend):
    pytest.importorskip(backend)
    options = {"labels": [0, 1, 3], "steps": 10, "seed": 1, "output": "float"}
    with (
        ddpm_rt.Engine(plan, backend=backend, precision="fp32") as engine,
        ddpm_rt.Engine.from_callable(
            guided(parts[0], parts[2]), (2, 8, 8), num_classes=CLASSES, classifier=True
        ) as exact,
    ):
        for sampler in ("ddim", "ddpm"):
            for s in (1.0, 30.0):
                a = engine.sample(3, sampler=sampler, classifier_scale=s, **options)
                b = exact.sample(3, sampler=sampler, scale=1, classifier_scale=s, **options)
                assert np.abs(a - b).max() < 1e-4, (sampler, s)
        unasked = engine.sample(3, **options)  # the plan's classifier_scale is 1, its scale 1: one evaluation a step
        assert unasked.nfe == 10 and (unasked == engine.sample(3, classifier_scale=1, **options)).all()
        assert np.abs(unasked - engine.sample(3, classifier_scale=0, **options)).max() > 1e-6
        assert engine.info()["self_test"]["error"] < 2e-4 and engine.info()["classifier"]


def test_a_module_with_labels_and_a_saved_classifier(parts, tmp_path, run):
    from ddpm_rt.export import export_plan

    batch = torch.export.Dim("batch")
    example = (torch.randn(2, 2, 8, 8), torch.rand(2))
    program = torch.export.export(parts[2], example, dynamic_shapes=({0: batch}, {0: batch}), strict=False)
    torch.export.save(program, tmp_path / "c.pt2")
    export_plan(parts[1], tmp_path / "a.plan", shape=(2, 8, 8), num_classes=CLASSES, classifier=tmp_path / "c.pt2")
    with ddpm_rt.Engine(tmp_path / "a.plan", precision="fp32") as engine:
        assert np.isfinite(engine.sample(2, labels=1, steps=4, scale=2, classifier_scale=3)).all()
        wrong = engine.sample(2, labels=-1, steps=4, classifier_scale=3)  # the null label has no gradient
        assert (wrong == engine.sample(2, labels=-1, steps=4, classifier_scale=0, seeds=wrong.seeds)).all()


def test_what_is_refused(parts, tmp_path):
    from ddpm_rt.export import export_plan

    def refused(error, why, **changes):
        arguments = {"shape": (2, 8, 8), "num_classes": CLASSES, "classifier": parts[2], **changes}
        with pytest.raises(error, match=why):
            export_plan(parts[0], tmp_path / "x.plan", **arguments)
        assert not (tmp_path / "x.plan").exists()

    class Transposed(Classifier):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 2, 2, stride=2)

        def forward(self, x, t):
            return super().forward(self.up(x), t)

    refused(ddpm_rt.OptionError, "logits", num_classes=3)
    refused(ddpm_rt.OptionError, "num_classes", num_classes=None)
    refused(ddpm_rt.PlanError, "torch.export.save", classifier=tmp_path / "none.pt2")
    refused(ddpm_rt.PlanError, "transposed convolution", classifier=Transposed().eval())
    refused(ddpm_rt.OptionError, "split", split=True)
