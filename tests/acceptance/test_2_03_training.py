"""Line 3: `ddpm-rt train` on the bundled digits: trains, resumes exactly, leaves a checkpoint that samples."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

TINY = ["--channels", "8", "--channel-mult", "1,2", "--res-blocks", "1", "--groups", "4", "--patch", "2"]
TINY += ["--batch", "8", "--save-every", "5", "--threads", "1"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "ddpm_rt", "train", "--data", "mnist5k", "--out", str(out), *TINY, *options]


def train(out: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(out, *options), env=ENV, capture_output=True, text=True, timeout=280, check=False)


def test_train_and_resume_on_the_command_line(tmp_path):
    done = train(tmp_path / "a", "--steps", "30", "--sample-every", "30")
    assert done.returncode == 0, done.stderr
    assert "step 30/30 loss" in done.stderr and "\r" not in done.stderr  # a bar is for terminals
    files = {str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert files == {
        "config.json", "log.csv", "loss.png", "model.safetensors", "state.safetensors", "samples/000030.png",
    }  # fmt: skip
    with Image.open(tmp_path / "a" / "samples" / "000030.png") as grid:
        assert grid.size == (10 * 29 - 1, 2 * 29 - 1)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["class_names"] == list("0123456789") and config["images"] == 4500
    log = np.loadtxt(tmp_path / "a" / "log.csv", delimiter=",", skiprows=1)
    assert log[:, 0].tolist() == list(range(1, 31)) and np.isfinite(log).all()

    # The same run, killed after a checkpoint of its own choice, then resumed.
    cut = train(tmp_path / "b", "--steps", "30", "--resume")
    assert cut.returncode == 1 and "resume" in cut.stderr
    process = subprocess.Popen(command(tmp_path / "b", "--steps", "30"), env=ENV, stderr=subprocess.DEVNULL)
    while not (tmp_path / "b" / "state.safetensors").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() != 0
    assert train(tmp_path / "b", "--resume").returncode == 0
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_checkpoint_samples_with_the_reference(tmp_path):
    from ddpm_rt.reference import Schedule, ddim, guided, timesteps
    from ddpm_rt.training.checkpoint import load_checkpoint

    assert train(tmp_path, "--steps", "2", "--sample-every", "0").returncode == 0
    model, cfg = load_checkpoint(tmp_path)
    network = guided(model, torch.tensor([3]), model.cfg.num_classes, 3.0)
    with torch.no_grad():
        x = ddim(network, Schedule.make(**cfg.schedule), torch.zeros(1, 1, 28, 28), timesteps("leading", 1000, 4))
    assert x.shape == (1, 1, 28, 28) and bool(torch.isfinite(x).all())
