"""Start-up as a user feels it: whole processes."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from .compare_rounds import seconds


def run(*args: str) -> None:
    subprocess.run([sys.executable, *args], check=True, capture_output=True)


def test_import(benchmark) -> None:
    """`import ddpm_rt` beside `import numpy`, which it needs; and what must not come with it."""
    lean = "import sys, ddpm_rt; assert not {'torch', 'openvino', 'onnxruntime', 'PIL'} & set(sys.modules)"
    run("-c", lean)
    own, floor = [], []
    for _ in range(7):
        own.append(seconds(lambda: run("-c", "import ddpm_rt")))
        floor.append(seconds(lambda: run("-c", "pass")))
    benchmark.extra_info["import_ms"] = round(1e3 * (statistics.median(own) - statistics.median(floor)), 1)
    benchmark.pedantic(lambda: run("-c", "import ddpm_rt"), rounds=3)


def test_first_digit(benchmark, tmp_path) -> None:
    """A new process until the PNG of one digit is on disk; the peak memory of such a process."""
    out = tmp_path / "digit.png"

    def first() -> None:
        run("-m", "ddpm_rt", "sample", "digits", "--label", "7", "--seed", "0", "-o", str(out))

    first()
    assert out.stat().st_size > 100
    benchmark.extra_info["first_png_s"] = round(statistics.median(seconds(first) for _ in range(5)), 3)
    benchmark.extra_info["peak_mb"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1)
    benchmark.pedantic(first, rounds=2)
