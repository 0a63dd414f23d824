"""TensorRT: engines built ahead of time without a GPU, what is in them, and every refusal; with a GPU, the images too.

Needs what `pip install "ddpm_rt[tensorrt,export]"` installs.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import ddpm_rt

PRECISIONS = ("fp32", "fp16", "bf16")
NAMES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16"}
# MB of the networks' engine: weights, and kernels by the hundred. Measured with TensorRT-RTX 1.7.1, with room around.
SIZES = {
    "digits": {"fp32": (2, 25), "fp16": (1, 20), "bf16": (1, 20)},
    "cifar10": {"fp32": (135, 200), "fp16": (70, 120), "bf16": (70, 120)},
}
SHAPES = {"digits": "1,28,28", "cifar10": "3,32,32"}


def doctor() -> dict:
    done = cli("doctor", "--json")
    return json.loads(done.stdout)["backends"]["tensorrt"]


def cli(*arguments: object, **keywords) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ddpm_rt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **keywords)


REPORT = doctor()
pytestmark = pytest.mark.skipif(
    not any(lib["version"] and lib["kind"] == "tensorrt_rtx" for lib in REPORT["libraries"]),
    reason='TensorRT-RTX is not installed: pip install "ddpm_rt[tensorrt]"',
)


def has_gpu() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


gpu = pytest.mark.skipif(not has_gpu(), reason="not run here: it needs an NVIDIA GPU")
no_gpu = pytest.mark.skipif(has_gpu(), reason="here a GPU is at hand")


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> dict:
    """The shipped digits by name, and DDPM's 35.7 M-parameter CIFAR-10 network with labels and random weights."""
    torch = pytest.importorskip("torch", reason="the export extra makes the U-Net's plan")
    from ddpm_rt.export import export_plan
    from ddpm_rt.reference.unet import UNet, UNetConfig

    torch.manual_seed(0)
    net = UNet(UNetConfig(film=False, num_classes=10)).eval()
    count = sum(p.numel() for p in net.parameters())
    assert 35e6 < count < 37e6
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    path = tmp_path_factory.mktemp("plans") / "cifar10.plan"
    export_plan(net, path, shape=(3, 32, 32), schedule="linear", num_classes=10, defaults={"scale": 1.0})
    return {"digits": "digits", "cifar10": path}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def built(plan, precision: str, cache, *more: object) -> tuple[dict, str]:
    """The command's report, and what the library said."""
    done = cli("build", plan, "--backend", "tensorrt", "--precision", precision, "--cache-dir", cache, "--json", *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def layers(said: str) -> list[dict]:
    """Of the last network that was built: name and kind of each layer, and the element types of its inputs and outputs."""
    found = []
    for line in said.rpartition("Layers:")[2].splitlines():
        if match := re.match(
            r"Name: (\S+), LayerType: (\w+), Inputs: (.*?), Constants: .*, Outputs: (.*), Tactic", line
        ):
            name, kind, inputs, outputs = match.groups()
            types = [set(re.findall(r"Datatype: (\w+)", text)) for text in (inputs, outputs)]
            found.append({"name": name, "kind": kind, "types": types})
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_true_engine_is_built_without_a_gpu(plans, cache, name, precision):
    start = time.monotonic()
    report, said = built(plans[name], precision, cache, "--force", "--verbose", "--batch-profile", "1,16,128")
    temb, unet = report["engines"]
    print(f"{name} {precision}: {unet['bytes'] / 1e6:.1f} MB, {time.monotonic() - start:.1f} s")
    assert (temb["network"], temb["precision"], unet["network"], unet["precision"]) == (
        "temb",
        "fp32",
        "unet",
        precision,
    )
    least, most = SIZES[name][precision]
    assert least <= unet["bytes"] / 1e6 <= most

    found = layers(said)
    convolutions = [layer for layer in found if layer["kind"] == "correlation"]
    norms = [layer for layer in found if re.search("Inor|Gnor", layer["name"])]  # instance and group normalisation
    assert len(convolutions) >= 20 and len(norms) >= 10, sorted({layer["kind"] for layer in found})
    assert all(types == {NAMES[precision]} for layer in convolutions for types in layer["types"])
    assert all("Float" in layer["types"][1] for layer in norms)
    ports = re.findall(r"Name: (\w+), IOMode: (\w+), DataType: (\w+), Dimensions: \[-1,([\d,]+)\], .*kLINEAR", said)
    (rows,) = (p for p in ports if p[:3] == ("rows", "Input", "Float"))
    wide = [("x", "Input", NAMES[precision], SHAPES[name]), ("eps", "Output", NAMES[precision], SHAPES[name])]
    assert sorted(set(ports[-3:])) == sorted([*wide, rows])

    data = pathlib.Path(unet["path"]).read_bytes()
    if not has_gpu():  # all of it is read and found whole before CUDA is asked for
        with pytest.raises(ddpm_rt.DeviceError, match="cudaError 35"):
            ddpm_rt._core.examine_tensorrt(report["library_path"], data)
    with pytest.raises(ddpm_rt.PlanError):
        ddpm_rt._core.examine_tensorrt(report["library_path"], data[:-1])


@pytest.mark.timeout(600)
def test_by_name_by_path_and_from_the_cache(plans, cache):
    built("digits", "fp16", cache)
    again, _ = built("digits", "fp16", cache)
    assert all(e["cached"] for e in again["engines"])


@pytest.mark.timeout(600)
def test_a_plan_with_its_engine(cache, tmp_path):
    target = tmp_path / "y.plan"
    report, _ = built("digits", "fp16", cache, "-o", target)
    inspected = json.loads(cli("inspect", target, "--verify", "--json").stdout)
    held = {e["network"]: e for e in inspected["manifest"]["engines"]}
    assert set(held) == {"unet", "temb"} and held["unet"]["version"] == report["version"]
    with pytest.raises(ddpm_rt.OptionError, match="trust_native: expected true"):
        ddpm_rt.Engine(target, backend="tensorrt")
    with ddpm_rt.Engine(target, device="cpu") as a, ddpm_rt.Engine("digits", device="cpu") as b:
        same = [np.asarray(e.sample(2, labels=7, seed=0, steps=10)) for e in (a, b)]
    assert (same[0] == same[1]).all()


@pytest.mark.timeout(600)
@no_gpu
def test_without_a_gpu_the_engine_is_whole_and_says_what_is_missing(cache, tmp_path):
    target = tmp_path / "y.plan"
    built("digits", "fp16", cache, "-o", target)
    with pytest.raises(ddpm_rt.DdpmError, match=r"(?i)gpu|cuda"):
        ddpm_rt.Engine(target, backend="tensorrt", trust_native=True)
    with ddpm_rt.Engine(target, trust_native=True) as engine:
        assert engine.info()["backend"] != "tensorrt"
    assert not REPORT["works"] and "GPU" in REPORT["why_not"]
    done = cli("sample", "digits", "--backend", "tensorrt", "-o", tmp_path / "a.png")
    assert done.returncode == 1 and "Traceback" not in done.stderr and re.search("GPU|cuda", done.stderr)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--batch-profile 16,1,128", "OptionError: batch_profile: expected LEAST,BEST,MOST"),
        ("--cc 9.9", "OptionError: cc: expected current, 7.5"),
        ("--library /no/libtensorrt_rtx.so.1", "BackendError: library: expected"),
    ],
)
def test_refusals_name_what_is_expected(tmp_path, options, text):
    done = cli("build", "digits", "--backend", "tensorrt", "--cache-dir", tmp_path, *options.split())
    assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr


def test_the_libraries_are_found_by_themselves(tmp_path):
    """No LD_LIBRARY_PATH, another folder: doctor names each library's path and version."""
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    text = cli("doctor", env=env, cwd=tmp_path).stdout
    for library in REPORT["libraries"]:
        assert library["path"] in text and library["version"] in text


@gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_on_a_gpu_are_the_cpu_s(cache, precision):
    built("digits", precision, cache)
    with ddpm_rt.Engine("digits", device="cpu", precision="fp32") as cpu:
        wanted = np.asarray(cpu.sample(16, labels=list(range(10)) + [7] * 6, seed=0, output="float"))
    with ddpm_rt.Engine("digits", device="cuda", backend="tensorrt", precision=precision, cache_dir=cache) as engine:
        assert engine.info()["backend"] == "tensorrt"
        got = np.asarray(engine.sample(16, labels=list(range(10)) + [7] * 6, seed=0, output="float"))
        again = np.asarray(engine.sample(16, labels=list(range(10)) + [7] * 6, seed=0, output="float"))
    assert (got == again).all()
    error = np.abs(got - wanted).mean() / np.abs(wanted).mean()
    print(f"{precision}: {error:.3g}")
    assert error < {"fp32": 0.02, "fp16": 0.1, "bf16": 0.3}[precision]
