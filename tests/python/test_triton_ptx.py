"""What the Triton kernels compile to, without a GPU: no contraction where bits are promised, no spills, wide accesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_rt
from ddpm_rt.kernels._tensors import expect_rounding

PROGRAM = Path(__file__).with_name("triton_ptx.py")
pytestmark = pytest.mark.slow  # a minute of compiling

EXACT = {"step_kernel", "cfg_combine_kernel", "normals_kernel"}


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = json.loads(done.stdout)
    return [
        (f"{name}: {one['kernel']}", one | {"triton": made["triton"]})
        for name, launched in made["launches"].items()
        for one in launched
    ]


def of(launches, *words, exact=None):
    chosen = [
        (name, one)
        for name, one in launches
        if all(word in name for word in words) and (exact is None or (one["kernel"] in exact))
    ]
    assert chosen
    return chosen


def test_triton_compiles_every_variant_for_every_architecture(launches):
    assert {one["kernel"] for _, one in launches} == EXACT | {"statistics_kernel", "groupnorm_silu_kernel"}
    for arch in ("sm_80", "sm_100", "sm_120"):
        assert len(of(launches, arch)) == 4


def test_triton_never_contracts_where_bits_are_promised(launches):
    for name, one in of(launches, exact=EXACT):
        bad = [op for op in one["ptx"] if op.startswith("fma") or (op.startswith("mad") and ".f" in op)]
        assert not bad, f"{name}: {bad}"
        loose = [op for op in one["ptx"] if ".ftz" in op or ".approx" in op or ".full" in op]
        assert not loose, f"{name}: {loose}"
        sums = ("add", "sub", "mul", "sqrt")
        rounded = [op for op in one["ptx"] if op.endswith((".f32", ".f32x2")) and op.split(".")[0] in sums]
        assert rounded and all(".rn." in op for op in rounded), f"{name}: {rounded}"


def test_triton_s_machine_code_contracts_nothing_either(launches):
    """Without noise there is no square root, whose own refinement is made of fused operations. Where the assembler does
    fuse, the front refuses the GPU."""
    for name, one in of(launches, "quiet"):
        fused = [op for op in one["sass"] if op.startswith("FFMA")]
        if "sm_100" in name or "sm_120" in name:
            try:
                expect_rounding((10, 0), one["triton"])
            except ddpm_rt.BackendError:
                continue
        assert not fused, f"{name}: {fused}"


def test_triton_spills_nothing(launches):
    for name, one in launches:
        assert one["stack"] == 0 and not {"STL", "LDL"} & {op.split(".")[0] for op in one["sass"]}, name
        assert one["registers"] <= 168, f"{name}: {one['registers']}"  # three blocks of 128 threads on an SM


def test_triton_moves_whole_vectors_where_memory_is_flat(launches):
    """Four elements at once: 16 bytes of float32, 8 of a half; nothing by way of shared memory."""
    for name, one in of(launches, "step flat"):
        stores = {op for op in one["ptx"] if op.startswith("st.global")}
        assert stores <= {"st.global.v4.b32", "st.global.v2.b32"} and one["shared"] == 0, f"{name}: {stores}"
        assert one["ptx"].get("ld.global.v4.b32", 0) >= 2 and "ld.global.b16" not in one["ptx"], name


def test_triton_groupnorm_reads_and_writes_vectors(launches):
    for name, one in of(launches, "norm fp16:"):
        assert "ld.global.b16" not in one["ptx"] and "st.global.b16" not in one["ptx"], name
