"""The `train` command in processes of its own: kill -9, torchrun, options, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ddpm_rt.cli import main
from ddpm_rt.training.checkpoint import load_checkpoint

TINY = ["--channels", "8", "--channel-mult", "1,2", "--res-blocks", "1", "--attention", "1", "--groups", "4"]
TINY += ["--patch", "2", "--threads", "1"]
RUN = [sys.executable, "-m", "ddpm_rt.training"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "ddpm_rt.training",
]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of six small images."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(["dark", "light"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(128 * k, 128 * k + 128, (10, 14), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def run_here(*arguments: str) -> int:
    """In this process, where no process boundary is under test."""
    torch.set_num_threads(1)
    return main(["train", *map(str, arguments)])


def same_bits(a: Path, b: Path) -> bool:
    x, y = load_file(a), load_file(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_kill_9_then_resume_is_the_run_that_was_never_killed(folder, tmp_path):
    options = [*TINY, "--data", str(folder), "--image-size", "8", "--dropout", "0.1", "--crop", "2", "--flip"]
    options += ["--steps", "60", "--batch", "4", "--save-every", "7", "--sample-every", "50"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*RUN, *options, "--out", str(killed)], env=ENV, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "state.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with safe_open(killed / "state.safetensors", "pt") as f:
        assert 0 < int(f.metadata()["step"]) < 60
    assert run_here("--out", killed, "--resume", "--threads", "1") == 0
    assert run_here(*options, "--out", whole) == 0
    for name in ("state.safetensors", "model.safetensors"):
        assert same_bits(killed / name, whole / name)
    logs = [[line.rsplit(",", 1)[0] for line in (d / "log.csv").read_text().splitlines()] for d in (killed, whole)]
    assert logs[0] == logs[1] and len(logs[0]) == 61


def test_torchrun_on_two_processes_is_one_at_twice_the_batch(folder, tmp_path):
    options = [
        *TINY,
        "--data",
        str(folder),
        "--image-size",
        "8",
        "--steps",
        "10",
        "--warmup",
        "2",
        "--sample-every",
        "0",
    ]
    two = [*TORCHRUN, *options, "--batch", "4", "--out", str(tmp_path / "two")]
    subprocess.run(two, env=ENV, check=True, timeout=240, capture_output=True)
    assert run_here(*options, "--batch", "8", "--out", tmp_path / "one") == 0
    a, b = (load_file(tmp_path / name / "state.safetensors") for name in ("two", "one"))
    assert a.keys() == b.keys()
    worst = max(float((a[k] - b[k]).abs().max()) for k in a if not k.startswith("optimizer.step"))
    assert worst < 1e-6, worst
    moved = float((b["model.stem.weight"] - b["ema.stem.weight"]).abs().max())
    assert moved > 100 * worst  # the steps were not too small to tell
    losses = [np.loadtxt(tmp_path / n / "log.csv", delimiter=",", skiprows=1)[:, 1] for n in ("two", "one")]
    assert np.allclose(*losses, rtol=1e-5)


def test_options_reach_the_config_in_their_order(folder, tmp_path):
    (tmp_path / "c.json").write_text(
        json.dumps({"steps": 3, "lr": 0.5, "model": {"channels": 16, "groups": 8, "res_blocks": 1}})
    )
    out = tmp_path / "out"
    options = [
        "--config",
        tmp_path / "c.json",
        "--data",
        folder,
        "--image-size",
        "8x16",
        "--channel-mult",
        "1",
        "--attention",
        "",
    ]
    options += [
        "--channels",
        "8",
        "--steps",
        "2",
        "--batch",
        "2",
        "--accumulate",
        "2",
        "--schedule",
        "cosine",
        "--loss",
        "hybrid",
    ]
    assert run_here(*options, "--out", out, "--flip", "--ema", "0.9", "--seed", "5", "--label-dropout", "0.2") == 0
    config = json.loads((out / "config.json").read_text())
    model, cfg = load_checkpoint(out)
    assert config["lr"] == 0.5 and (cfg.steps, cfg.batch, cfg.accumulate, cfg.flip, cfg.seed) == (2, 2, 2, True, 5)
    assert cfg.schedule["name"] == "cosine" and cfg.ema == 0.9 and cfg.label_dropout == 0.2 and cfg.images == 12
    unet = model.cfg
    assert (unet.channels, unet.groups, unet.image_size, unet.in_channels) == (8, 8, (8, 16), 1)
    assert unet.attention == () and unet.learned_variance and unet.num_classes == 2
    assert cfg.class_names == ("dark", "light")


def test_resume_refuses_another_run_and_fresh_starts_over(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*TINY, "--data", folder, "--image-size", "8", "--steps", "2", "--batch", "2", "--out", out]
    assert run_here(*TINY, "--data", folder, "--out", out, "--resume") == 1
    assert "resume: expected a run" in capsys.readouterr().err
    assert run_here(*options) == 0
    for field, change in (
        ("lr", ["--lr", "0.5"]),
        ("channels", ["--channels", "16"]),
        ("schedule", ["--schedule", "cosine"]),
    ):
        assert run_here(*options, *change) == 1
        message = capsys.readouterr().err
        assert f"{field}: the run in" in message and "--fresh" in message
    first = load_file(out / "model.safetensors")
    assert run_here(*options, "--steps", "4") == 0  # a longer run may go on
    assert len((out / "log.csv").read_text().splitlines()) == 5
    (folder / "dark" / "0.png").unlink()
    assert run_here("--out", out, "--resume") == 1
    assert "began with 12 images" in capsys.readouterr().err
    assert run_here(*options, "--fresh", "--seed", "1") == 0
    again, cfg = load_file(out / "model.safetensors"), load_checkpoint(out)[1]
    assert cfg.seed == 1 and any(not torch.equal(first[k], again[k]) for k in first)
    assert len((out / "log.csv").read_text().splitlines()) == 3


def test_save_diffusers(folder, tmp_path, capsys):
    options = ["--data", folder, "--image-size", "8", "--steps", "1", "--batch", "2", "--out", tmp_path / "out"]
    options += ["--save-diffusers", tmp_path / "d"]
    assert run_here(*TINY, *options) == 1
    assert "patch: diffusers" in capsys.readouterr().err and not (tmp_path / "d").exists()
    assert run_here(*TINY, *options, "--patch", "1") == 0
    assert json.loads((tmp_path / "d" / "unet" / "config.json").read_text())["num_class_embeds"] == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "data: expected"),
        (["--data", "nowhere"], "data: expected mnist5k or a folder"),
        (["--preset", "cats"], "preset: expected one of digits"),
        (["--config", "none.json"], "config: expected a JSON file"),
        (["--data", "mnist5k", "--steps", "0"], "steps: expected"),
        (["--data", "mnist5k", "--loss", "l1"], "loss: expected one of"),
        (["--data", "mnist5k", "--schedule", "x"], "schedule: "),
        (["--data", "mnist5k", "--channels", "30"], "groups: "),
        (["--data", "mnist5k", "--channel-mult", "1,2,2,2"], "image_size: "),
        (["--data", "mnist5k", "--crop", "-1"], "crop: expected"),
        (["--data", "mnist5k", "--threads", "0"], "threads: expected"),
        (["--data", "mnist5k", "--device", "tpu"], "device: expected"),
        (["--preset", "digits", "--image-size", "16"], "image_size: "),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_here(*options, "--out", tmp_path / "out") == 1
    assert f"OptionError: {message}" in capsys.readouterr().err.replace("model: ", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, message", [("[1]", "config: "), ('{"stepz": 1}', "unknown field 'stepz'"), ("{", "JSON")]
)
def test_bad_config_files_are_named(content, message, tmp_path, capsys):
    (tmp_path / "c.json").write_text(content)
    assert run_here("--config", tmp_path / "c.json", "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert (
        run_here(*TINY, "--data", folder, "--image-size", "8", "--steps", "1", "--out", tmp_path / "file" / "out") == 1
    )
    assert "out: expected folders that can be written" in capsys.readouterr().err
