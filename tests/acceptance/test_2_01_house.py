"""Line 1: the tree, its licence and build, the house as built, and a test that keeps the import rules."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "CMakeLists.txt",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/design.md",
    ".ci/run",
]
FOLDERS = [
    "ddpm_rt",
    "csrc",
    "csrc/include/ddpm_rt",
    "csrc/denoisers",
    "kernels",
    "tests/cpp",
    "tests/python",
    "tests/acceptance",
    "bench",
    "docs",
    "examples",
]


@pytest.mark.parametrize("name", FILES + FOLDERS)
def test_the_tree_is_there(name):
    path = ROOT / name
    assert (path.is_dir() and any(path.iterdir())) or path.stat().st_size > 100


def test_licence_and_build():
    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Version 2.0" in (ROOT / "LICENSE").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requires = " ".join(project["build-system"]["requires"])
    assert "scikit-build-core" in requires and "pybind11" in requires
    assert importlib.metadata.metadata("ddpm_rt")["License-Expression"] == "Apache-2.0"
    assert importlib.metadata.version("ddpm_rt") == project["project"]["version"]


def test_the_design_page_describes_this_tree():
    page = (ROOT / "docs" / "design.md").read_text()
    assert 'The walk: `Engine("digits").sample' in page
    named = set(re.findall(r"`([\w/]+/)[\w*{}., `]*`?", page.split("## The walk")[0]))
    assert {"kernels/", "csrc/denoisers/", "ddpm_rt/", "ddpm_rt/reference/"} <= named
    for folder in named:
        assert (ROOT / folder).is_dir() or (ROOT / "ddpm_rt" / folder).is_dir(), f"docs/design.md names {folder}"


def test_the_import_rules_are_kept_by_a_test_that_sees_every_file():
    text = (ROOT / "tests" / "python" / "test_import_rules.py").read_text()
    assert "def test_a_file_includes_its_own_room_and_lower_ones" in text
    pattern = [re.compile(p) for p in re.findall(r'\("[\w ]+", r"([^"]+)"\)', text)]
    for folder in ("kernels", "csrc"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in (".h", ".hpp", ".cpp", ".cu"):
                assert any(p.fullmatch(name) for p in pattern), f"{name} is in no room"


def test_no_source_file_is_a_warehouse():
    """Files stay near 300 lines."""
    for folder in ("kernels", "csrc", "ddpm_rt"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".h", ".hpp", ".cpp", ".py"):
                assert len(path.read_text().splitlines()) <= 400, path
