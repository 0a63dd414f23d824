"""GPU issue, line 3: the device layer. The GPU part is a library of its own: everything else builds and runs without it."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ddpm_rt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cuda_emulation"))
import emulated

NVCC = shutil.which("nvcc") or next((p for p in ["/usr/local/cuda/bin/nvcc"] if Path(p).exists()), None)
no_gpu = pytest.mark.skipif(emulated.has_gpu(), reason="here a GPU is at hand")


def gaussian(x, t, labels):
    return 0.5 * x


def test_import_engine_and_samples_need_no_gpu_and_load_no_gpu_library():
    code = (
        "import ddpm_rt\n"
        "with ddpm_rt.Engine('digits') as e: print(e.sample(1, steps=2, seed=0).shape, e.info()['device'])\n"
        "maps = open('/proc/self/maps').read()\n"
        "print('libddpm_rt_cuda' in maps, 'libcuda.so' in maps, 'libcudart' in maps)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["(1, 28, 28, 1) cpu", "False False False"], done.stderr


@no_gpu
def test_a_named_gpu_that_is_not_there_is_a_device_error_and_auto_is_the_cpu():
    for device in ("cuda", "cuda:3"):
        with pytest.raises(ddpm_rt.DeviceError, match="device: expected"):
            ddpm_rt.Engine("digits", device=device)
    with ddpm_rt.Engine("digits", device="auto") as engine:
        assert engine.info()["device"] == "cpu"


def test_doctor_speaks_of_the_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_rt", "doctor", "--json"], capture_output=True, text=True, timeout=200, check=False
    )
    gpu = json.loads(done.stdout)["gpu"]
    assert gpu["works"] == emulated.has_gpu()
    assert gpu["works"] or "DeviceError" in gpu["why_not"]
    text = subprocess.run(
        [sys.executable, "-m", "ddpm_rt", "doctor"], capture_output=True, text=True, timeout=200, check=False
    ).stdout
    assert re.search(r"^  GPU +\S", text, re.MULTILINE)


def test_the_same_images_on_the_device_as_on_the_cpu():
    """An elementwise network: on a GPU, and on the emulated device where there is none."""
    torch = pytest.importorskip("torch")
    at = torch.device("cuda") if emulated.has_gpu() else torch.device("cpu")

    def eps(x, t, labels):
        assert x.device.type == at.type
        return 0.5 * x

    given = {"shape": (3, 8, 8), "defaults": {"steps": 9}}
    with ddpm_rt.Engine.from_callable(gaussian, **given) as engine:
        wanted = np.asarray(engine.sample(7, seed=3, sampler="dpmpp_2m", output="float"))
    with ddpm_rt.Engine.from_torch(eps, **given, **emulated.device()) as engine:
        got = np.asarray(engine.sample(7, seed=3, sampler="dpmpp_2m", output="float"))
        assert engine.info()["device"].partition(":")[0] in ("cuda", "emulated")
    assert (got == wanted).all()


def cmake(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not here")
def test_without_nvcc_everything_else_is_configured_and_on_says_what_is_missing(tmp_path):
    """DDPM_RT_NVCC is what find_program sets: NOTFOUND is a machine without nvcc."""
    common = [
        "-S",
        str(ROOT),
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DDDPM_RT_TESTS=OFF",
        "-DDDPM_RT_NVCC=DDPM_RT_NVCC-NOTFOUND",
    ]
    hidden = {
        "PATH": os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "nvcc").exists())
    }
    hidden |= {"CUDA_HOME": str(tmp_path), "CMAKE_FIND_ROOT_PATH": str(tmp_path)}
    common.append("-DCMAKE_SYSTEM_IGNORE_PATH=/usr/local/cuda/bin;/usr/local/bin")
    common.append("-DCMAKE_IGNORE_PATH=/usr/local/cuda/bin;/usr/local/bin")
    done = cmake(*common, "-B", str(tmp_path / "auto"), **hidden)
    assert done.returncode == 0 and "libddpm_rt_cuda is left out" in done.stdout, done.stderr
    done = cmake(*common, "-B", str(tmp_path / "on"), "-DDDPM_RT_CUDA=ON", **hidden)
    assert done.returncode != 0 and "expected nvcc and libcudart_static.a" in done.stderr


def device_code(library: Path) -> set[tuple[str, int]]:
    """("ptx" or "sm", architecture) of each part of a library's fat binaries: a header of 16 bytes, then entries with their
    kind, header bytes, payload bytes and, 28 bytes in, architecture."""
    data, found = library.read_bytes(), set()
    for at in (m.start() for m in re.finditer(re.escape(struct.pack("<IHH", 0xBA55ED50, 1, 16)), data)):
        end = at + 16 + struct.unpack_from("<Q", data, at + 8)[0]
        at += 16
        while at < end <= len(data):
            kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
            found.add(({1: "ptx", 2: "sm"}[kind], struct.unpack_from("<I", data, at + 28)[0]))
            at += header + size
    return found


@pytest.mark.skipif(NVCC is None, reason="nvcc is not here")
@pytest.mark.slow
def test_with_nvcc_the_library_has_code_for_each_gpu_and_needs_no_cuda_library(tmp_path):
    build = tmp_path / "build"
    given = ["-DDDPM_RT_CUDA=ON", "-DDDPM_RT_TESTS=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    done = cmake("-S", str(ROOT), "-B", str(build), *given)
    assert done.returncode == 0, done.stderr
    done = cmake("--build", str(build), "-j2", "--target", "ddpm_rt_cuda")
    assert done.returncode == 0, done.stdout + done.stderr
    library = build / "libddpm_rt_cuda.so"
    assert device_code(library) == {("sm", 80), ("sm", 90), ("sm", 100), ("sm", 120), ("ptx", 120)}
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed and "libcuda.so" not in needed
    if not emulated.has_gpu():
        with pytest.raises(ddpm_rt.DeviceError, match="expected an NVIDIA driver|expected a GPU"):
            ddpm_rt.Engine("digits", device="cuda", cuda_library=library)


def test_nvcc_from_pypi_is_described():
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert "nvidia-cuda-nvcc" in text and "-DDDPM_RT_NVCC=" in text and "-DDDPM_RT_CUDA=ON" in text
