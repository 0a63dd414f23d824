"""Line 11: README's first screen, its two commands, and its shortest program, run as they are written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MISSION = 'import ddpm_rt; images = ddpm_rt.Engine("unet.plan").sample(n=64, scale=3)'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_first_two_blocks_are_the_two_commands() -> None:
    install, test = blocks("sh")[:2]
    for command in (install, test):
        assert command.count("\n") == 1, "one line each"
        assert command.startswith("python3 -m venv .venv && "), "makes its own environment, and can be run twice"
        assert "activate" not in command, "works from any shell"
    assert "ddpm-rt sample digits" in install and "digits.png" in install
    assert "pytest" in test and "[test]" in test
    assert README.index(install) < README.index(test) < 60 * 40, "both on the first screen"


def test_ci_runs_readmes_text_and_no_copy_of_it() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for k in (1, 2, 3):
        assert f"command_of_readme {k}" in ci
    for command in blocks("sh")[:2]:
        assert command.strip() not in ci
    awk = re.search(r"awk -v k=.*README\.md", ci)
    assert awk is not None
    for k, command in enumerate(blocks("sh")[:3], start=1):
        extracted = subprocess.run(
            ["sh", "-c", awk.group(0).replace('"$1"', str(k))], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert extracted.stdout == command


@pytest.mark.slow
def test_the_shortest_program_is_the_missions_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert MISSION in blocks("python")[0]
    export = shlex.split(blocks("sh")[2])
    assert export[:2] == [".venv/bin/ddpm-rt", "export"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    env = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, "-m", "ddpm_rt", *export[1:]], cwd=tmp_path, env=env, check=True)
    shape = "; print(images.shape, images.dtype, len(set(images.labels.tolist())) > 1, images.std() > 10)"
    program = blocks("python")[0].strip() + shape
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(64, 28, 28, 1) uint8 True True"
