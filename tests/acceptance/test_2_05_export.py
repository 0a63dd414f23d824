"""Line 5: plans of a checkpoint, of a torch module and of an ONNX file with a card, each checked against its source."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ddpm_rt
import ddpm_rt.export

ROOT = Path(__file__).resolve().parents[2]


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddpm_rt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    options = (
        "--channels 16 --channel-mult 1,2 --res-blocks 1 --groups 4 --patch 2 --steps 2 --batch 4 --sample-every 0"
    )
    found = cli("train", "--data", "mnist5k", "--out", run, *options.split(), "--threads", 1)
    assert found.returncode == 0, found.stderr
    return run


def test_a_checkpoint_becomes_a_plan_by_one_command(checkpoint, tmp_path):
    full, half = tmp_path / "full.plan", tmp_path / "half.plan"
    found = cli("export", checkpoint, "-o", full)
    assert found.returncode == 0, found.stderr
    assert "full.plan" in found.stdout and len(found.stdout.splitlines()) == 1 and found.stderr == ""
    again = cli(
        "export",
        checkpoint / "model.safetensors",
        "-o",
        half,
        "--weights",
        "fp16",
        "--steps",
        7,
        "--scale",
        2,
        "--json",
    )
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert summary["defaults"]["steps"] == 7 and summary["defaults"]["scale"] == 2 and summary["parity"] < 2e-2
    assert half.stat().st_size < 0.65 * full.stat().st_size
    manifest = json.loads(cli("inspect", full, "--json").stdout)["manifest"]
    assert set(manifest["networks"]) == {"temb", "unet"}  # the time embedding is computed once per table
    assert manifest["training"]["config"]["data"] == "mnist5k" and manifest["class_names"] == list("0123456789")
    with ddpm_rt.Engine(full) as a, ddpm_rt.Engine(half) as b:
        one, other = (e.sample(2, labels=[1, 2], seed=0, steps=3, scale=2, output="float") for e in (a, b))
        assert a.info()["self_test"]["status"] == b.info()["self_test"]["status"] == "passed"
        assert b.info()["defaults"]["steps"] == 7
    assert np.abs(np.asarray(one) - np.asarray(other)).max() < 0.1


class Mine(nn.Module):
    """A user's own network."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.label = nn.Embedding(4, 8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t, label):
        h = nn.functional.silu(
            self.norm(self.mix(x)) + (self.label(label) + torch.sin(t / 50)[:, None])[:, :, None, None]
        )
        flat = h.flatten(2).transpose(1, 2)
        flat = flat + self.attend(flat, flat, flat, need_weights=False)[0]
        return self.out(flat.transpose(1, 2).reshape(h.shape))


def test_any_torch_module_becomes_a_plan_that_samples_as_it_does(tmp_path):
    torch.manual_seed(0)
    module = Mine().eval()
    ddpm_rt.export.export_plan(
        module, tmp_path / "unet.plan", shape=(3, 8, 8), schedule="linear", class_names=["cat", "dog", "hen"]
    )
    noise = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with ddpm_rt.Engine(tmp_path / "unet.plan") as engine:
        found = engine.sample(
            3, labels=["cat", "dog", "hen"], scale=1, steps=4, clip="none", latents=noise, output="float"
        )
        assert engine.info()["self_test"]["status"] == "passed"

    def eps(x, t, labels):
        with torch.no_grad():
            return module(
                torch.from_numpy(np.array(x)), torch.from_numpy(np.array(t)), torch.from_numpy(np.array(labels))
            ).numpy()

    with ddpm_rt.Engine.from_callable(eps, (3, 8, 8), num_classes=3) as engine:
        expected = engine.sample(3, labels=[0, 1, 2], scale=1, steps=4, clip="none", latents=noise, output="float")
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() < 1e-3 * np.abs(expected).max()


def test_a_module_that_couples_the_batch_is_refused(tmp_path):
    class Coupled(nn.Module):
        def forward(self, x, t):
            return x - x.mean(0, keepdim=True) + t[:, None] * 0

    with pytest.raises(ddpm_rt.PlanError, match="couples the batch axis"):
        ddpm_rt.export.export_plan(Coupled(), tmp_path / "c.plan", shape=(4,))
    assert not list(tmp_path.iterdir())


def test_any_onnx_file_becomes_a_plan_with_a_card(tmp_path):
    class Plain(nn.Module):
        def forward(self, x, t):
            return x * 0.5 + t[:, None, None, None] * 1e-4

    batch = torch.export.Dim("n")
    program = torch.onnx.export(
        Plain(), (torch.zeros(2, 1, 8, 8), torch.zeros(2)), dynamo=True, input_names=["image", "when"], verbose=False,
        output_names=["noise"], dynamic_shapes=({0: batch}, {0: batch}),
    )  # fmt: skip
    program.save(str(tmp_path / "plain.onnx"), external_data=False)
    without = cli("export", tmp_path / "plain.onnx", "-o", tmp_path / "plain.plan")
    assert without.returncode == 1 and "plain.json" in without.stderr and not (tmp_path / "plain.plan").exists()
    card = json.loads(without.stderr[without.stderr.index("{") :])  # the error shows what to write
    assert card["inputs"] == {"x": "image", "t": "when"}
    card["outputs"] = {"eps": "noise"}
    (tmp_path / "my.json").write_text(json.dumps(card))
    found = cli("export", tmp_path / "plain.onnx", "--card", tmp_path / "my.json", "-o", tmp_path / "plain.plan")
    assert found.returncode == 0, found.stderr
    sampled = cli("sample", tmp_path / "plain.plan", "-n", 2, "--steps", 3, "--seed", 0, "-o", tmp_path / "out.png")
    assert sampled.returncode == 0 and (tmp_path / "out.png").stat().st_size > 0, sampled.stderr


def test_what_cannot_be_exported_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    for source in (tmp_path / "none", tmp_path / "bad.safetensors", tmp_path):
        found = cli("export", source, "-o", tmp_path / "x.plan")
        assert found.returncode == 1 and "Error: " in found.stderr and "Traceback" not in found.stderr
    nowhere = cli("export", ROOT / "examples" / "unet.safetensors", "-o", tmp_path / "no" / "folder" / "x.plan")
    assert nowhere.returncode == 1 and "x.plan" in nowhere.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["bad.safetensors"]
