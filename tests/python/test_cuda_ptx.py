"""What nvcc makes of kernels/step_cuda.cu: no contraction, whose bits no test on a CPU would see, and no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

NVCC = shutil.which("nvcc") or next((str(p) for p in [Path("/usr/local/cuda/bin/nvcc")] if p.exists()), None)
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not here")


def flags() -> list[str]:
    """Those of the build, cmake/DdpmRtCuda.cmake."""
    text = (ROOT / "cmake" / "DdpmRtCuda.cmake").read_text()
    found = re.search(r"set\(DDPM_RT_NVCC_FLAGS (.*?) -Werror", text, re.DOTALL).group(1)
    return [flag for flag in found.split() if not flag.startswith(("-ccbin", "$"))]


@pytest.fixture(scope="module")
def ptx_file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ptx") / "step_cuda.ptx"
    source = ROOT / "kernels" / "step_cuda.cu"
    subprocess.run([NVCC, *flags(), "-arch=compute_120", "-ptx", str(source), "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def kernels(ptx_file) -> dict[str, str]:
    """PTX by kernel."""
    parts = re.split(r"\.entry (\w+)\(", ptx_file.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_build_says_how_to_round():
    assert {"-fmad=false", "-prec-sqrt=true", "-prec-div=true", "-ftz=false"} <= set(flags())


def test_no_product_is_contracted_into_a_sum(kernels):
    assert len(kernels) > 30
    for name, ptx in kernels.items():
        # A packed product and sum of two float32 each is contracted by some assemblers, whatever they are told.
        fused = re.findall(r"\b(?:fma|mad)\.[\w.]*f32|\b\w+\.[\w.]*f32x2", ptx)
        if "mixture" not in name:  # which calls the library's logarithm, of float64
            fused += re.findall(r"\b(?:fma|mad)\.[\w.]*f64", ptx)
        loose = re.findall(r"\b(?:add|sub|mul)\.f(?:32|64)\b", ptx)  # without .rn the assembler may contract
        rough = re.findall(r"\b\w+\.(?:approx|full|ftz)[\w.]*f32", ptx)
        assert not (fused or loose or rough), f"{name}: {[*fused, *loose, *rough][:3]}"


def test_no_kernel_spills(ptx_file):
    done = subprocess.run(
        [NVCC, "-arch=sm_120", "-Xptxas", "-v", "-cubin", str(ptx_file), "-o", str(ptx_file.with_suffix(".cubin"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    spilled = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert len(spilled) > 30 and set(spilled) == {"0"}
