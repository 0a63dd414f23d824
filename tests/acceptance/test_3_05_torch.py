"""GPU issue, line 5: PyTorch runs the network on the device's stream; a plan needs nothing but torch there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ddpm_rt

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "cuda_emulation"))
import emulated

AT = torch.device("cuda") if emulated.has_gpu() else torch.device("cpu")
gpu = pytest.mark.skipif(not emulated.has_gpu(), reason="not run here: it needs an NVIDIA GPU")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 3, 3, padding=1)
        self.label = torch.nn.Embedding(11, 16)

    def forward(self, x, t, labels):
        h = self.first(x) + self.label(labels)[:, :, None, None] + (t / 1000).to(x.dtype)[:, None, None, None]
        return self.last(torch.nn.functional.silu(h))


def engines(module, **given):
    settings = {"shape": (3, 8, 8), "num_classes": 10, "defaults": {"steps": 8, "scale": 3.0}}
    return ddpm_rt.Engine.from_torch(module, **settings, **given)


def plain_loop(module, n: int, labels: np.ndarray, steps: int, scale: float, seed: int) -> np.ndarray:
    """DDIM (2010.02502 eq. 12, eta 0) with guidance in PyTorch, from the same x_T."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = np.arange(steps)[::-1] * (1000 // steps)
    x = torch.stack([torch.from_numpy(ddpm_rt.noise(seed + i, 0, (3, 8, 8))) for i in range(n)]).to(AT).double()
    given, null = (torch.from_numpy(v).to(AT) for v in (labels, np.full_like(labels, 10)))
    for i, now in enumerate(times):
        t = torch.full((n,), float(now), device=AT)
        with torch.no_grad():
            c, u = (module(x.float(), t, l).double() for l in (given, null))
        e = u + scale * (c - u)
        a, b = alpha_bar[now], alpha_bar[times[i + 1]] if i + 1 < steps else 1.0
        x0 = ((x - np.sqrt(1 - a) * e) / np.sqrt(a)).clamp(-1, 1)
        x = np.sqrt(b) * x0 + np.sqrt(1 - b) * (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    return x.cpu().numpy()


def test_a_module_in_the_loop_is_a_loop_around_the_module():
    net, labels = Net().eval().to(AT), np.arange(6) % 10
    wanted = plain_loop(net, 6, labels, 8, 3.0, 40)
    with engines(net, **emulated.device()) as engine:
        got = engine.sample(6, labels=labels, seed=40, output="float")
        assert engine.info()["backend"] == "torch"
    assert np.abs(np.asarray(got) - wanted).max() < (
        2e-2 if AT.type == "cuda" else 1e-4
    )  # there convolutions may use TF32


@pytest.mark.skipif(emulated.has_gpu(), reason="cuDNN may choose another algorithm for another batch")
def test_the_emulated_device_has_the_cpu_engine_s_bits():
    net = Net().eval()
    with engines(net, device="cpu") as engine:
        wanted = np.asarray(engine.sample(6, labels=7, seed=40))
    with engines(net, **emulated.device()) as engine:
        assert (np.asarray(engine.sample(6, labels=7, seed=40)) == wanted).all()


@pytest.mark.slow
def test_a_compiled_function_is_as_good():
    net = Net().eval().to(AT)
    try:
        compiled = torch.compile(net, mode="max-autotune-no-cudagraphs", dynamic=False)
        with torch.no_grad():
            compiled(
                torch.zeros(1, 3, 8, 8, device=AT),
                torch.zeros(1, device=AT),
                torch.zeros(1, dtype=torch.int64, device=AT),
            )
    except RuntimeError as e:  # no compiler, or none for this Python
        pytest.skip(f"torch.compile does not work here: {type(e).__name__}")
    images = []
    for module in (net, compiled):
        with engines(module, max_batch=1, **emulated.device()) as engine:
            images.append(np.asarray(engine.sample(1, labels=3, seed=1, output="float")))
    assert np.abs(images[0] - images[1]).max() < 2e-2


def test_a_plan_runs_with_torch_alone():
    """No onnx, no OpenVINO, no ONNX Runtime is imported or loaded."""
    code = (
        "import sys, ddpm_rt\n"
        f"with ddpm_rt.Engine('digits', precision='fp32', max_batch=8, cache_dir='', **{emulated.device()!r}) as e:\n"
        "    e.sample(2, labels=7, steps=2, seed=0, output='float').tofile(sys.argv[1])\n"
        "    print(e.info()['backend'], e.info()['self_test']['status'])\n"
        "maps = open('/proc/self/maps').read()\n"
        "print({'onnx', 'openvino', 'onnxruntime'} & set(sys.modules), 'openvino' in maps, 'onnxruntime' in maps)"
    )
    file = Path(__file__).with_suffix(".bin")
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=200, check=False
        )
        assert done.stdout.splitlines() == ["torch passed", "set() False False"], done.stdout + done.stderr
        got = np.fromfile(file, np.float32).reshape(2, 1, 28, 28)
    finally:
        file.unlink(missing_ok=True)
    with ddpm_rt.Engine("digits", device="cpu", precision="fp32") as engine:
        wanted = np.asarray(engine.sample(2, labels=7, steps=2, seed=0, output="float"))
    assert np.abs(got - wanted).max() < 1e-3


def test_results_stay_on_the_device_as_tensors():
    with engines(Net().eval().to(AT), **emulated.device()) as engine:
        images = engine.sample(2, labels=1, seed=5, output="torch")
        assert isinstance(images, torch.Tensor) and images.device.type == AT.type
        assert (images.cpu().numpy() == np.asarray(engine.sample(2, labels=1, seed=5, output="float"))).all()


@gpu
def test_the_module_is_captured_once_and_python_is_not_asked_again():
    calls = []

    class Counted(Net):
        def forward(self, x, t, labels):
            calls.append(len(x))
            return super().forward(x, t, labels)

    with engines(Counted().eval().to(AT), **emulated.device()) as engine:
        engine.sample(4, labels=1, seed=5, steps=20)
        calls.clear()
        engine.sample(4, labels=2, seed=6, steps=200)
    assert len(calls) < 20, "a tick in steady state replays a graph"
