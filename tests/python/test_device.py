"""device="cuda" from Python, on the emulated device: the same bits as the CPU engine, and every error a user can meet."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, write_mixture_plan

import ddpm_rt

sys.path.insert(0, str(ROOT / "tests" / "cuda_emulation"))
import emulated

from ddpm_rt import BackendError, DeviceError, OptionError, _core, devices

SHAPE = (2, 4, 6)
SETTINGS = {"num_classes": 3, "defaults": {"steps": 6, "scale": 2.5}}


def eps(x, t, labels):
    """Element by element, so that every batch and memory format gives the same bits."""
    return 0.3 * x + 0.01 * labels.to(x.dtype).reshape(-1, 1, 1, 1) + 1e-4 * t.to(x.dtype).reshape(-1, 1, 1, 1)


@pytest.fixture
def on_device():
    with ddpm_rt.Engine.from_torch(eps, SHAPE, device="cuda", cuda_library=emulated.library(), **SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def on_cpu():
    with ddpm_rt.Engine.from_torch(eps, SHAPE, device="cpu", **SETTINGS) as engine:
        yield engine


def both(on_device, on_cpu, n: int, **options):
    options = {"output": "float", "seed": 11, "steps": 6, **options}
    a, b = on_device.sample(n, **options), on_cpu.sample(n, **options)
    assert (a.labels == b.labels).all() and (a.seeds == b.seeds).all() and a.nfe == b.nfe
    return np.asarray(a), np.asarray(b)


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(s.name, marks=pytest.mark.slow if s.name == "langevin" else ()) for s in ddpm_rt.samplers()],
)
def test_every_sampler_gives_the_cpu_s_bits(on_device, on_cpu, sampler):
    a, b = both(on_device, on_cpu, 5, sampler=sampler, labels=[0, 1, 2, -1, 1])
    assert (a == b).all() and np.isfinite(a).all()


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 1.0},
        {"scale": 0.0, "output": "uint8"},
        {"guidance_rescale": 0.7},
        {"guidance_interval": (0.5, 5.0)},
        {"threshold": (0.9, 2.0)},
        {"sampler": "ddpm", "clip": "keep_eps", "variance": "fixed_large"},
        {"latents": np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)},
        {"seeds": [2**64 - 1, 5, 5, 0], "seed": None},
        {"image": np.linspace(-1, 1, 48, dtype=np.float32).reshape(SHAPE), "strength": 0.7},
    ],
    ids=lambda o: next(iter(o)),
)
def test_every_option_gives_the_cpu_s_bits(on_device, on_cpu, options):
    a, b = both(on_device, on_cpu, 4, **options)
    assert (a == b).all()


def test_inversion_gives_the_cpu_s_bits_and_what_is_not_built_says_so(on_device, on_cpu):
    pictures = np.random.default_rng(0).uniform(-1, 1, (3, *SHAPE)).astype(np.float32)
    for iterations in (1, 2):
        found = [e.invert(pictures, steps=5, labels=1, iterations=iterations) for e in (on_device, on_cpu)]
        assert (np.asarray(found[0]) == np.asarray(found[1])).all()
    with pytest.raises(OptionError, match="mask.*GPU"):
        on_device.sample(3, image=pictures, mask=np.ones(SHAPE, bool))
    with pytest.raises(OptionError, match="x0_every.*GPU"):
        on_device.sample(3, x0_every=1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_module_gets_tensors_of_its_own_dtype_and_memory_format(channels_last, dtype):
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.3, dtype=dtype))

        def forward(self, x, t, labels):
            seen.append(
                (
                    x.dtype,
                    t.dtype,
                    labels.dtype,
                    x.is_contiguous(memory_format=torch.channels_last),
                    torch.is_grad_enabled(),
                )
            )
            return self.gain * x

    net = Net()
    lib = emulated.library()
    with ddpm_rt.Engine.from_torch(
        net, SHAPE, device="cuda", cuda_library=lib, channels_last=channels_last, **SETTINGS
    ) as engine:
        info = engine.info()
        a = engine.sample(3, seed=1, output="float", labels=0)
    assert (info["backend"], info["device"]) == ("torch", "emulated:0")
    assert info["precision"] == {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    assert set(seen) == {(dtype, torch.float32, torch.int64, channels_last, False)}
    with ddpm_rt.Engine.from_torch(net, SHAPE, device="cpu", **SETTINGS) as engine:
        assert (np.asarray(a) == np.asarray(engine.sample(3, seed=1, output="float", labels=0))).all()


def test_images_do_not_depend_on_their_batch_nor_on_how_many_fit():
    lib = emulated.library()
    with ddpm_rt.Engine.from_torch(eps, SHAPE, device="cuda", cuda_library=lib, max_batch=4, **SETTINGS) as engine:
        many = engine.sample(11, seed=50, output="float")
        for i in (0, 4, 10):
            assert (engine.sample(1, seed=50 + i, output="float")[0] == many[i]).all()


def test_threads_share_the_device(on_device, on_cpu):
    got = {}

    def work(k):
        got[k] = np.asarray(on_device.sample(2, seed=k, steps=3 + k % 3, scale=1 + k, output="float", labels=k % 3))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(6):
        wanted = on_cpu.sample(2, seed=k, steps=3 + k % 3, scale=1 + k, output="float", labels=k % 3)
        assert (got[k] == np.asarray(wanted)).all()


def test_previews_and_cancelling(on_device, on_cpu):
    seen = {"a": [], "b": []}
    for name, engine in (("a", on_device), ("b", on_cpu)):
        engine.sample(3, seed=2, callback=lambda row, rows, x0, keep=seen[name]: keep.append((row, rows, x0.copy())))
    assert [s[:2] for s in seen["a"]] == [s[:2] for s in seen["b"]] and len(seen["a"]) == 6
    assert all((p[2] == q[2]).all() for p, q in zip(seen["a"], seen["b"], strict=True))
    with pytest.raises(ddpm_rt.CancelledError):
        on_device.sample(2, seed=2, callback=lambda row, rows, x0: row < 2)
    assert on_device.sample(1, seed=0).shape == (1, 4, 6, 2)


@pytest.mark.parametrize("kind", ["torch", "dlpack"])
def test_results_as_tensors(on_device, kind):
    got = on_device.sample(3, seed=4, output=kind)
    tensor = got if isinstance(got, torch.Tensor) else torch.from_dlpack(got)
    assert (tensor.cpu().numpy() == np.asarray(on_device.sample(3, seed=4, output="float"))).all()


def test_what_a_module_raises_is_the_cause_and_spoils_nothing_else(on_cpu):
    class Stop(Exception):
        pass

    mood = []

    def moody(x, t, labels):
        if mood:
            raise Stop("not this one")
        return eps(x, t, labels)

    with ddpm_rt.Engine.from_torch(moody, SHAPE, device="cuda", cuda_library=emulated.library(), **SETTINGS) as engine:
        engine.sample(1)
        mood.append("bad")
        with pytest.raises(BackendError, match="not this one") as caught:
            engine.sample(2, labels=2, scale=1.0)
        assert isinstance(caught.value.__cause__, Stop)
        mood.clear()
        a = engine.sample(2, labels=1, scale=1.0, seed=3, output="float")
    assert (np.asarray(a) == np.asarray(on_cpu.sample(2, labels=1, scale=1.0, seed=3, output="float"))).all()


@pytest.mark.parametrize("wrong", [lambda x, t, labels: x[:, :1], lambda x, t, labels: 1.0])
def test_a_wrong_result_is_refused(wrong):
    with (
        ddpm_rt.Engine.from_torch(wrong, SHAPE, device="cuda", cuda_library=emulated.library(), **SETTINGS) as engine,
        pytest.raises(BackendError, match=r"expected eps of shape \[\d+, 2, 4, 6\]"),
    ):
        engine.sample(1)


# ------------------------------------------------------------------------------------------------------------ plans


def test_a_mixture_runs_as_a_graph_and_gives_the_cpu_s_images(tmp_path):
    plan = write_mixture_plan(tmp_path / "m.plan", shape=(3, 4, 4))
    with ddpm_rt.Engine(plan) as cpu:
        wanted = np.asarray(cpu.sample(6, seed=1, steps=20, output="float"))
    before = {k: emulated.control(k) for k in ("launch_graph", "step", "to_device")}
    with ddpm_rt.Engine(plan, device="cuda:1", cuda_library=emulated.library()) as engine:
        got = np.asarray(engine.sample(6, seed=1, steps=20, output="float"))
        info = engine.info()
    launched = {k: emulated.control(k) - v for k, v in before.items()}
    assert np.abs(got - wanted).max() < 1e-5
    assert info["device"] == "emulated:1" and info["backend"] == "analytic"
    assert launched["launch_graph"] >= 18, launched  # of 20 ticks: a list of calls is captured when it is seen again
    assert launched["to_device"] < 20, launched  # in steady state nothing is uploaded


def test_the_digits_on_the_device_are_the_digits_on_the_cpu():
    options = {"labels": [3, 1, 4, 1, 5], "seed": 9, "steps": 4, "output": "float"}
    with ddpm_rt.Engine("digits", device="cpu", precision="fp32") as engine:
        wanted = np.asarray(engine.sample(5, **options))
    given = {"device": "cuda", "cuda_library": emulated.library(), "max_batch": 8, "cache_dir": ""}
    for precision, tolerance in (("fp32", 2e-4), ("auto", 0.05)):
        with ddpm_rt.Engine("digits", precision=precision, **given) as engine:
            got = np.asarray(engine.sample(5, **options))
            info = engine.info()
        assert np.abs(got - wanted).max() < tolerance
        assert info["self_test"]["status"] == "passed" and info["backend"] == "torch"
        assert info["precision"] == ("fp32" if precision == "fp32" else "fp16")  # auto: the first that passes


def test_an_engine_s_torch_is_missing_or_its_plan_beyond_it(monkeypatch, tmp_path):
    given = {"device": "cuda", "cuda_library": emulated.library(), "cache_dir": ""}

    def missing(device, found):
        raise BackendError("backend: expected PyTorch, got none: pip install torch")

    monkeypatch.setattr(devices, "torch_device", missing)
    for backend in ("auto", "torch"):
        with pytest.raises(BackendError, match="pip install torch"):
            ddpm_rt.Engine("digits", backend=backend, **given)
    with ddpm_rt.Engine(write_mixture_plan(tmp_path / "m.plan"), **given) as engine:  # which needs none
        assert engine.sample(1).shape == (1, 4, 4, 1)


def test_a_plan_of_its_own_networks_needs_no_torch_at_all(run, mixture_plan):
    code = (
        "import sys, ddpm_rt\n"
        "with ddpm_rt.Engine(sys.argv[1], device='cuda', cuda_library=sys.argv[2]) as e: print(e.sample(2, seed=1).shape)\n"
        "print('torch' in sys.modules)"
    )
    done = run(mixture_plan, emulated.library(), python=code)
    assert done.stdout.split("\n")[:2] == ["(2, 4, 4, 1)", "False"], done.stderr


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.skipif(emulated.has_gpu(), reason="here a GPU is at hand")
def test_without_a_gpu_everything_else_works_and_the_error_names_what_is_missing():
    for open_engine in (
        lambda: ddpm_rt.Engine("digits", device="cuda"),
        lambda: ddpm_rt.Engine.from_torch(eps, SHAPE, device="cuda:0", **SETTINGS),
        lambda: _core.device_info("cuda", ""),
    ):
        with pytest.raises(DeviceError, match=r"device: expected .*cuda:0, got none"):
            open_engine()
    with ddpm_rt.Engine("digits", device="auto") as engine:
        assert engine.info()["device"] == "cpu"


def test_named_devices_that_are_not_there(tmp_path):
    lib = emulated.library()
    with pytest.raises(DeviceError, match=r"expected cuda:0 to cuda:1, got cuda:7"):
        ddpm_rt.Engine.from_torch(eps, SHAPE, device="cuda:7", cuda_library=lib)
    for name in ("gpu", "cuda:", "cuda:x", "CUDA"):
        with pytest.raises(OptionError, match="device: expected"):
            ddpm_rt.Engine.from_torch(eps, SHAPE, device=name, cuda_library=lib)
    text = tmp_path / "not_a_library.so"
    text.write_text("no")
    with pytest.raises(DeviceError, match="expected the GPU part of ddpm_rt"):
        ddpm_rt.Engine("digits", device="cuda", cuda_library=text)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("devices", 0, "expected a GPU"),
        ("capability", 7, r"expected compute capability 8.0 or later, got 7"),
        ("device_error", 35, "expected a driver for CUDA 13.0 or later, got one for CUDA 12.2"),
        ("device_error", 999, "error 999 of emulated"),
    ],
)
def test_machines_that_will_not_do(setting, value, message):
    was = {name: emulated.control(name) for name in (setting, "driver")}
    emulated.control("driver", 12020)
    emulated.control(setting, value)
    try:
        with pytest.raises(DeviceError, match=message):
            ddpm_rt.Engine.from_torch(eps, SHAPE, device="cuda", cuda_library=emulated.library())
    finally:
        for name, old in was.items():
            emulated.control(name, old)


@pytest.mark.parametrize("kind", ["step", "apply", "finish", "to_device"])
def test_a_call_that_fails_is_that_call_s_error_and_the_next_works(on_device, on_cpu, kind):
    on_device.sample(1)
    emulated.control(f"fail {kind}", 1)
    with pytest.raises(DeviceError, match="expected success, got error 719 of emulated"):
        on_device.sample(2, seed=1)
    a, b = both(on_device, on_cpu, 2)
    assert (a == b).all()


def test_what_the_device_does_not_do_yet_is_refused_before_it_runs(on_device, on_cpu):
    with pytest.raises(OptionError, match="negative: expected it unset on a GPU"):
        on_device.sample(1, negative=1)
    with pytest.raises(OptionError, match="guide: expected two engines on the CPU"):
        on_device.sample(1, guide=on_cpu)


def test_a_module_elsewhere_is_refused():
    net = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(OptionError, match="module: expected its parameters on one CPU or GPU"):
        ddpm_rt.Engine.from_torch(net, SHAPE)
    with pytest.raises(OptionError, match="module: expected a module or function"):
        ddpm_rt.Engine.from_torch(3, SHAPE)


def test_facts_of_a_device():
    facts = json.loads(_core.device_info("cuda:1", emulated.library()))
    assert facts["kind"] == "emulated" and facts["compute_capability"] == "9.0" and facts["driver"] == "13.0"
    assert devices.facts("cpu", "auto", None) is None
    with pytest.raises(OptionError, match="device: expected"):
        devices.facts(3, "auto", None)
