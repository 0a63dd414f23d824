"""What a user installs: the clone's root does not shadow the build; the wheel is small, complete and runs by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import ddpm_rt
from ddpm_rt import _core, plan_files

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import ddpm_rt; print(ddpm_rt.__version__)"],
        ["-m", "ddpm_rt", "--version"],
        ["-m", "pytest", "--collect-only", "-q", "tests/python/test_packaging.py"],
    ],
    ids=["import", "python -m ddpm_rt", "python -m pytest"],
)
def test_it_works_from_the_clone_s_root(command):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ddpm_rt.__version__ in done.stdout or "test_it_works_from_the_clone_s_root" in done.stdout


@pytest.mark.parametrize("script", ["pytest", "ddpm-rt"])
def test_installed_scripts_work_from_the_clone_s_root(script):
    command = [str(Path(sys.executable).with_name(script))]
    command += ["--collect-only", "-q", "tests/python/test_packaging.py"] if script == "pytest" else ["--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_it_works_from_elsewhere_and_prints_nothing_of_its_own(tmp_path):
    code = "import ddpm_rt; ddpm_rt.Engine"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_version():
    version = PYPROJECT["project"]["version"]
    assert ddpm_rt.__version__ == _core.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_an_unbuilt_source_folder_says_what_to_do(tmp_path):
    copy = tmp_path / "ddpm_rt"
    copy.mkdir()
    for file in (ROOT / "ddpm_rt").glob("*.py"):
        (copy / file.name).write_text(file.read_text())
    done = subprocess.run(
        [sys.executable, "-S", "-m", "ddpm_rt", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 1 and "pip install -e ." in done.stderr and "Traceback" not in done.stderr


def test_stubs_cover_the_extension():
    stub = (ROOT / "ddpm_rt" / "_core.pyi").read_text()
    declared = set(re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE))
    assert declared == {name for name in dir(_core) if not name.startswith("_")}
    for kind in ("Engine", "Request", "Plan"):
        body = re.search(rf"^class {kind}:\n((?:    .*\n|\n)+)", stub, re.MULTILINE)[1]
        methods = set(re.findall(r"^    def (\w+)", body, re.MULTILINE)) - {"__init__"}
        assert methods == {name for name in dir(getattr(_core, kind)) if not name.startswith("_")}
    assert (ROOT / "ddpm_rt" / "py.typed").exists()


def test_every_public_name_exists_and_is_listed():
    assert all(getattr(ddpm_rt, name) is not None for name in ddpm_rt.__all__)
    assert set(ddpm_rt.__all__) <= set(dir(ddpm_rt))
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        ddpm_rt.Engin  # noqa: B018


def test_headers_and_cmake_files_lie_beside_the_extension():
    folder = Path(_core.__file__).parent
    assert (folder / "include" / "ddpm_rt" / "ddpm_rt.h").is_file()
    assert (folder / "lib" / "cmake" / "ddpm_rt" / "ddpm_rtConfig.cmake").is_file()


def glibc_needed(wheel: Path) -> int:
    """N of the manylinux_2_N tag that the wheel's libraries are fit for."""
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(r"\"manylinux_2_(\d+)_x86_64\"", shown)[1])


def made_wheel(folder: Path) -> Path:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_wheel_samples_by_itself(tmp_path):
    """pip wheel, then a folder with nothing but the wheel's files, numpy and a backend on the path. DDPM_RT_TEST_WHEEL: made before."""
    wheel = Path(os.environ.get("DDPM_RT_TEST_WHEEL") or made_wheel(tmp_path))
    assert wheel.stat().st_size <= 20e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"ddpm_rt/py.typed", "ddpm_rt/_core.pyi", "ddpm_rt/include/ddpm_rt/ddpm_rt.hpp"} <= set(names)
    libraries = {n.rpartition("/")[2] for n in names if "libddpm_rt" in n}
    assert {"libddpm_rt.so"} <= libraries <= {"libddpm_rt.so", "libddpm_rt_cuda.so"}  # with nvcc, its part too
    assert not [n for n in names if n.startswith(("tests/", "csrc/", "bench/"))]
    for name in plan_files.shipped():
        assert f"ddpm_rt/models/{name}.plan" in names
    assert glibc_needed(wheel) <= 35  # README states manylinux_2_35
    kernels = {file.name for file in (ROOT / "kernels").glob("*_triton.py")}
    assert {n.rpartition("/")[2] for n in names if "/_triton/" in n} == {"__init__.py", *kernels} and len(kernels) > 2
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport ddpm_rt\nassert ddpm_rt.__file__.startswith(sys.argv[1])\n"
        "e = ddpm_rt.Engine.from_callable(lambda x, t, l: 0.1 * x, (1, 4, 4))\nprint(e.sample(2, steps=3, seed=0).shape)\n"
        "z = ddpm_rt.kernels.triton.noise(5, 0, (1, 4), device='cpu')\n"
        "from ddpm_rt.kernels._triton import philox_triton as p\nassert p.__file__.startswith(sys.argv[1])\n"
        "assert (z[0].numpy() == ddpm_rt.noise(5, 0, (4,))).all()\n"
    )
    # -S: without this environment's editable install
    packages = Path(__import__("numpy").__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(packages), "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip() == "(2, 4, 4, 1)", done.stderr
