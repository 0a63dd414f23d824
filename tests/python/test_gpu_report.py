"""The GPU report on the emulated device: it runs, it finds what is wrong, it keeps what it has; and docs/gpu.md says what it found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "cuda_emulation"))
import emulated

from bench import gpu_checks, gpu_lanes, gpu_report, gpu_setup, gpu_text


@pytest.fixture(scope="module")
def ctx():
    return gpu_setup.Context("emulated", emulated.library(), None)


def test_a_dry_run_writes_its_sections_and_keeps_earlier_ones(tmp_path):
    out = tmp_path / "report.json"
    for sections in ("kernels,replays", "peaks,step,graph_forms"):
        command = [
            sys.executable,
            "-m",
            "bench.gpu_report",
            "--device",
            "emulated",
            "--sections",
            sections,
            "--out",
            str(out),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no time means anything" in done.stdout
    (name, entry), *others = json.loads(out.read_text()).items()
    assert name == "emulated device, driver 13.0" and not others
    assert set(entry["sections"]) == {"kernels", "replays", "peaks", "step", "graph_forms"}
    assert all("result" in s for s in entry["sections"].values())
    assert entry["sections"]["kernels"]["result"]["samples_checked"] > 400
    assert (
        gpu_text.markdown(json.loads(out.read_text())) == gpu_text.NONE_YET
    )  # no figure of an emulated device is shown


def test_behind_the_budget_nothing_starts(tmp_path):
    out = tmp_path / "report.json"
    assert gpu_report.main(["--device", "emulated", "--budget", "0", "--sections", "kernels", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["emulated device, driver 13.0"]["sections"]["kernels"] == {"not_run": "budget"}


def test_a_section_that_fails_is_a_result_and_the_status(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    right = gpu_lanes.LaneCase.advance
    monkeypatch.setattr(
        gpu_lanes.LaneCase, "advance", lambda case: [right(case) for _ in range(2)]
    )  # beyond the table's rows
    monkeypatch.setattr(gpu_checks, "mixture", lambda *args: 1 / 0)
    assert gpu_report.main(["--device", "emulated", "--sections", "replays,loop,peaks", "--out", str(out)]) == 1
    sections = json.loads(out.read_text())["emulated device, driver 13.0"]["sections"]
    assert sections["loop"]["error"].startswith("ZeroDivisionError") and "result" in sections["peaks"]


@pytest.mark.parametrize("where", ["x", "in", "padding"])
def test_the_check_of_kernels_finds_one_wrong_number(ctx, monkeypatch, where):
    right = gpu_lanes.LaneCase.step

    def wrong(case, *needs):
        right(case, *needs)
        ctx.wait()
        if where == "x":
            case.state["x"][0, 0] += 0.01
        elif where == "in":
            case.in_list[-1, -1] = 7.0
        else:
            case.state["x"][0, -1] = 0.0

    monkeypatch.setattr(gpu_lanes.LaneCase, "step", wrong)
    with pytest.raises(gpu_setup.Failed):
        gpu_checks.kernels(ctx)


def test_a_report_of_a_gpu_becomes_tables():
    facts = {"name": "GPU", "kind": "cuda", "torch": "2.11", "runtime": "13.0", "commit": "abc", "date": "2030-01-01"}
    spread = {"median": 1.5, "least": 1.0, "most": 2.0}
    sections = {
        "tax": {"seconds": 1, "result": {"digits 1": {"tax": spread}}},
        "whole": {"seconds": 1, "error": "Failed: no"},
    }
    text = gpu_text.markdown({"GPU, driver 1": {"facts": facts, "sections": sections}})
    assert "### GPU, driver 1" in text and "| digits 1 | tax 1.5 (1 to 2) |" in text and "Failed: `Failed: no`" in text


def test_the_figures_of_the_page_are_those_of_the_files():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert gpu_text.with_figures(page, gpu_text.figures(ROOT)) == page, "python -m bench.gpu_report --docs"
    assert "has not run on a GPU" in page or list((ROOT / "bench" / "gpu_results").glob("*.json"))


def test_without_a_gpu_the_report_says_so():
    if emulated.has_gpu():
        pytest.skip("here a GPU is at hand")
    command = [sys.executable, "-m", "bench.gpu_report", "--sections", "peaks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "device: expected" in done.stderr and "--device emulated" in done.stderr
    assert "Traceback" not in done.stderr
