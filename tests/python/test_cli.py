"""The command line: what it writes, what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios

import numpy as np
import pytest
from conftest import ROOT, write_mixture_plan

import ddpm_rt


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_mixture_plan(tmp_path_factory.mktemp("plans") / "mix.plan", classes=3, shape=(3, 8, 8))


def pixels(path):
    return np.asarray(pytest.importorskip("PIL.Image").open(path))


def test_grid_png_is_what_python_samples(run, plan, tmp_path):
    done = run("sample", plan, "--label", "2", "-n", "6", "--scale", "3", "--seed", "0", "-o", tmp_path / "out.png")
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""
    with ddpm_rt.Engine(plan) as engine:
        engine.sample(6, labels=2, scale=3, seed=0).save(tmp_path / "expected.png")
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_names_lists_and_none_are_labels(run, plan, tmp_path):
    done = run("sample", plan, "--labels", "cat,2,none", "-n", "3", "--seed", "1", "-o", tmp_path / "a.npz", "--json")
    report = json.loads(done.stdout)
    assert report["labels"] == [0, 2, -1] and report["seeds"] == [1, 2, 3] and report["n"] == 3
    loaded = np.load(tmp_path / "a.npz")
    assert loaded["arr_0"].shape == (3, 8, 8, 3) and loaded["arr_0"].dtype == np.uint8
    assert loaded["arr_1"].tolist() == [0, 2, -1]
    assert run("sample", plan, "--label", "-1", "-n", "2", "-o", tmp_path / "b.npz").returncode == 0
    assert np.load(tmp_path / "b.npz")["arr_1"].tolist() == [-1, -1]


def test_outdir_has_one_png_each(run, plan, tmp_path):
    assert run("sample", plan, "-n", "3", "--seed", "5", "--outdir", tmp_path / "made" / "here").returncode == 0
    files = sorted((tmp_path / "made" / "here").iterdir())
    assert [f.name for f in files] == ["000000.png", "000001.png", "000002.png"]
    with ddpm_rt.Engine(plan) as engine:
        expected = engine.sample(3, seed=5)
    assert all((pixels(f) == np.asarray(image)).all() for f, image in zip(files, expected, strict=True))


def test_gif_ends_at_the_images(run, plan, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    done = run(
        "sample",
        plan,
        "-n",
        "4",
        "--seed",
        "0",
        "--steps",
        "12",
        "--gif",
        tmp_path / "walk.gif",
        "-o",
        tmp_path / "a.png",
    )
    assert done.returncode == 0, done.stderr
    gif = Image.open(tmp_path / "walk.gif")
    assert gif.n_frames > 5
    first = np.asarray(gif.convert("RGB"), int)
    gif.seek(gif.n_frames - 1)
    last = np.asarray(gif.convert("RGB"), int)
    final = pixels(tmp_path / "a.png").astype(int)
    assert last.shape == final.shape and np.abs(last - final).mean() < 8 < np.abs(first - final).mean()


def test_engine_and_sampler_flags_reach_the_engine(run, plan, tmp_path):
    done = run(
        "sample", plan, "--sampler", "ddim", "--eta", "0.5", "--steps", "7", "--clip", "none", "--grid", "trailing",
        "--threads", "1", "--max-batch", "2", "--no-batch-invariant", "--seed", "3", "-n", "2", "-o", tmp_path / "a.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ddpm_rt.Engine(plan) as engine:
        expected = engine.sample(2, eta=0.5, steps=7, clip="none", grid="trailing", seed=3)
    assert (np.load(tmp_path / "a.npz")["arr_0"] == expected).all()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--label", "3"], 1, "OptionError: labels"),
        (["--label", "walrus"], 1, "OptionError: labels"),
        (["--steps", "0"], 1, "OptionError: steps"),
        (["--scale", "nan"], 1, "OptionError: scale"),
        (["-n", "0"], 1, "OptionError: n"),
        (["-n", "4097"], 2, "generate"),
        (["--sampler", "magic"], 2, "invalid choice"),
        (["--steps", "many"], 2, "invalid int"),
        (["--unheard-of"], 2, "unrecognized"),
        (["-o", "b.jpg"], 1, "OptionError: output"),
        (["-o", "missing/folder/b.png"], 1, "OptionError: path"),
    ],
)
def test_errors_have_a_name_a_code_and_leave_nothing(run, plan, tmp_path, arguments, code, text):
    done = run("sample", plan, "-o", "a.png", *arguments, cwd=tmp_path)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_output_is_a_usage_error(run, plan):
    done = run("sample", plan)
    assert done.returncode == 2 and "-o FILE" in done.stderr


def test_a_missing_plan_is_a_plan_error(run, tmp_path):
    done = run("sample", "nowhere.plan", "-o", tmp_path / "a.png")
    assert done.returncode == 1 and done.stderr.startswith("ddpm-rt: PlanError: plan: expected")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_unwritable_folder_is_found_before_the_work(run, plan, tmp_path):
    done = run("sample", plan, "-n", "4000", "--steps", "1000", "-o", "/proc/a.png")
    assert done.returncode == 1 and "OptionError: path" in done.stderr
    (tmp_path / "file").write_text("")
    done = run("sample", plan, "--outdir", tmp_path / "file" / "sub")
    assert done.returncode == 1 and "OptionError: outdir" in done.stderr


@pytest.mark.parametrize("command", ["sample", "train", "export", "build", "inspect", "evaluate", "doctor"])
def test_help_teaches_with_examples(run, command):
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout.lower() and f"ddpm-rt {command}" in done.stdout
    assert command in run("--help").stdout


def test_help_imports_nothing_heavy(run):
    code = (
        "import sys; from ddpm_rt.cli import main\ntry: main(['sample', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'openvino', 'onnxruntime', 'PIL', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    assert run(python=code).stderr.strip() == "[]"


def test_version_and_cmake_dir(run):
    assert run("--version").stdout.strip() == f"ddpm_rt {ddpm_rt.__version__}"
    folder = run("--cmake-dir").stdout.strip()
    assert os.path.exists(os.path.join(folder, "ddpm_rtConfig.cmake"))


def test_usage_errors_exit_2(run):
    assert run("conjure").returncode == 2 and run("sample").returncode == 2 and run().returncode == 0


def test_a_missing_extra_is_named(run, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run("train", "--data", "mnist5k", "--out", tmp_path / "out", "--steps", "1", env=environment)
    assert done.returncode == 1 and 'pip install "ddpm_rt[train]"' in done.stderr and "Traceback" not in done.stderr


def test_doctor_says_what_works(run):
    done = run("doctor", "--json")
    report = json.loads(done.stdout)
    assert report["backends"]["analytic"]["works"] and report["threads"] >= 1
    assert set(report["backends"]) == {"openvino", "onnxruntime", "analytic", "tensorrt"}
    for backend in report["backends"].values():
        assert backend["works"] or backend["why_not"]
    assert report["packages"]["numpy"]["version"] == np.__version__
    text = run("doctor").stdout
    assert "backends" in text and ddpm_rt.__version__ in text


def test_a_bar_is_drawn_on_a_terminal_only(plan, tmp_path):
    command = [
        sys.executable,
        "-m",
        "ddpm_rt",
        "sample",
        str(plan),
        "-n",
        "400",
        "--sampler",
        "ddpm",
        "--max-batch",
        "1",
    ]
    command += ["-o", str(tmp_path / "a.png")]
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    process = subprocess.Popen(command, cwd=ROOT, stderr=child, stdout=subprocess.PIPE)
    os.close(child)
    drawn = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        drawn += data
    assert process.wait() == 0 and process.stdout.read() == b""
    assert b"mix" in drawn and b"/400000" in drawn
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert piped.stderr == b"" and piped.stdout == b""
