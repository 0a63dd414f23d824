"""The GPU report on the emulated device: it finds what is wrong; and its tables are those of its figures."""

from __future__ import annotations

import json
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


def test_no_figure_of_an_emulated_device_is_shown():
    sections = {"tax": {"seconds": 1, "result": {"digits 1": {"tax": 1.5}}}}
    entry = {"facts": {"name": "emulated", "kind": "emulated"}, "sections": sections}
    assert gpu_text.markdown({"emulated device, driver 13.0": entry}) == gpu_text.NONE_YET


def test_a_report_of_a_gpu_becomes_tables():
    facts = {"name": "GPU", "kind": "cuda", "torch": "2.11", "runtime": "13.0", "commit": "abc", "date": "2030-01-01"}
    spread = {"median": 1.5, "least": 1.0, "most": 2.0}
    sections = {
        "tax": {"seconds": 1, "result": {"digits 1": {"tax": spread}}},
        "whole": {"seconds": 1, "error": "Failed: no"},
    }
    text = gpu_text.markdown({"GPU, driver 1": {"facts": facts, "sections": sections}})
    assert "### GPU, driver 1" in text and "| digits 1 | tax 1.5 (1 to 2) |" in text and "Failed: `Failed: no`" in text
