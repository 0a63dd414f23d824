"""Line 10: the command line, on the digits that ship."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import ddpm_rt


def cli(line: str, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ddpm_rt", *line.split()]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_issue_s_own_line(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    done = cli("sample digits --label 7 -n 16 --scale 3 --seed 0 -o out.png", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    picture = Image.open(tmp_path / "out.png")
    assert picture.size == (4 * 30 + 2, 4 * 30 + 2) and picture.mode == "L"
    assert picture.text["plan"] == "digits" and picture.text["steps"] == "50" and picture.text["seed"] == "0"
    assert picture.text["labels"] == ",".join(["7"] * 16)
    with ddpm_rt.Engine("digits") as engine:
        first = engine.sample(1, labels=7, scale=3, seed=0)
    assert (np.asarray(picture)[2:30, 2:30] == first[0, ..., 0]).all()


def test_outdir_npz_gif_and_json(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    done = cli("sample digits -n 3 --steps 6 --seed 1 --outdir d -o a.npz --gif g.gif --json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    loaded = np.load(tmp_path / "a.npz")
    assert loaded["arr_0"].shape == (3, 28, 28, 1) and loaded["arr_1"].tolist() == report["labels"]
    assert report["seeds"] == [1, 2, 3] and report["backend"] == "openvino"
    for i in range(3):
        assert (np.asarray(Image.open(tmp_path / "d" / f"{i:06d}.png")) == loaded["arr_0"][i, ..., 0]).all()
    assert 5 <= Image.open(tmp_path / "g.gif").n_frames <= 7  # equal frames are merged


def test_inspect_and_doctor():
    done = cli("inspect digits --verify --json")
    assert done.returncode == 0 and json.loads(done.stdout)["verified"] is True
    report = json.loads(cli("doctor --json").stdout)
    assert report["backends"]["openvino"]["works"] and "digits" in report["models"]


@pytest.mark.slow
def test_train_export_sample(tmp_path):
    """The three commands in a row, on a handful of steps."""
    train = (
        "train --data mnist5k --out run --steps 2 --batch 2 --channels 8 --channel-mult 1,1 --res-blocks 1 --groups 4"
    )
    done = cli(f"{train} --sample-every 0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert cli("export run -o tiny.plan --steps 5", cwd=tmp_path).returncode == 0
    assert cli("sample tiny.plan -n 2 -o t.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("sample digits --label 11 -o a.png", 1, "OptionError: labels"),
        ("sample digits -n 5000 -o a.png", 2, "generate"),
        ("sample digits -o no/such/folder/a.png", 1, "OptionError: path"),
        ("sample digit -o a.png", 1, "PlanError: plan"),
        ("inspect missing.plan", 1, "PlanError: plan"),
        ("sample", 2, "usage"),
    ],
)
def test_errors(tmp_path, line, code, text):
    done = cli(line, cwd=tmp_path)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
