"""Line 7: one command checks and measures a GPU into one JSON file, and docs/gpu.md's figures are those of the committed files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATED = ("--device", "emulated")


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu_report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)


def test_runs_merge_into_one_file_per_device_and_driver(tmp_path):
    out = tmp_path / "report.json"
    for sections in ("kernels,replays", "peaks,step,graph_forms"):
        done = report(*EMULATED, "--sections", sections, "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no time means anything" in done.stdout
    (name, entry), *others = json.loads(out.read_text()).items()
    assert name == "emulated device, driver 13.0" and not others
    assert set(entry["sections"]) == {"kernels", "replays", "peaks", "step", "graph_forms"}
    assert all("result" in s for s in entry["sections"].values())
    assert entry["sections"]["kernels"]["result"]["samples_checked"] > 400
    assert {"date", "commit"} <= set(entry["facts"])


def test_behind_the_budget_nothing_starts(tmp_path):
    out = tmp_path / "report.json"
    assert report(*EMULATED, "--budget", 0, "--sections", "kernels", "--out", out).returncode == 0
    assert json.loads(out.read_text())["emulated device, driver 13.0"]["sections"]["kernels"] == {"not_run": "budget"}


def test_an_unknown_section_is_refused():
    done = report(*EMULATED, "--sections", "kernels,nosuch")
    assert done.returncode == 2 and "nosuch" in done.stderr and "graph_forms" in done.stderr


def test_the_page_has_the_figures_of_the_committed_files():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert report("--docs").returncode == 0
    assert (ROOT / "docs" / "gpu.md").read_text() == page, "python -m bench.gpu_report --docs"
    assert "has not run on a GPU" in page or list((ROOT / "bench" / "gpu_results").glob("*.json"))


def test_without_a_gpu_the_report_says_so():
    if any(Path(p).exists() for p in ("/proc/driver/nvidia/version", "/dev/dxg")):
        pytest.skip("here a GPU is at hand")
    done = report("--sections", "peaks")
    assert done.returncode == 1 and "device: expected" in done.stderr and "--device emulated" in done.stderr
    assert "Traceback" not in done.stderr
