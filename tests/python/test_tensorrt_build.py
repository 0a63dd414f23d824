"""`ddpm-rt build` with the real TensorRT-RTX, without a GPU: engines, their cache, plans that hold them, every refusal."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import stat

import numpy as np
import pytest
from conftest import ROOT, write_mixture_plan

import ddpm_rt
from ddpm_rt import _core, backends
from ddpm_rt import plan as plan_module
from ddpm_rt.build import bindings, build, cache, engine
from ddpm_rt.build.status import Status

pytest.importorskip("onnx", reason="the tensorrt extra has it")
LIBRARIES = [found for found in backends.tensorrt_libraries() if found.kind == "tensorrt_rtx" and found.parser]
pytestmark = pytest.mark.skipif(
    not LIBRARIES or not any(map(bindings.importlib.util.find_spec, bindings.MODULES["tensorrt_rtx"])),
    reason='TensorRT-RTX is not installed: pip install "ddpm_rt[tensorrt]"',
)
DIGITS = ROOT / "ddpm_rt" / "models" / "digits.plan"


def has_gpu() -> bool:
    try:
        bindings.ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def toy(path, inputs=("x", "t"), **changes):
    """A plan of eps = w x: a MatMul is the least that an engine can be built of."""
    from onnx import TensorProto, helper, numpy_helper

    ports = {"x": (TensorProto.FLOAT, ["B", 4]), "t": (TensorProto.FLOAT, ["B"])}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["wx"]),
            helper.make_node("Unsqueeze", ["t", "one"], ["column"]),
            helper.make_node("Add", ["wx", "column"], ["eps"]),
        ],
        "toy",
        [helper.make_tensor_value_info(n, *ports[n]) for n in inputs],
        [helper.make_tensor_value_info("eps", *ports["x"])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"), numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    network = {"kind": "onnx", "section": "net", "inputs": {n: n for n in inputs}, "outputs": {"eps": "eps"}}
    manifest = json.loads(_core.Plan(str(write_mixture_plan(path, shape=(1, 1, 4)))).manifest)
    manifest |= {
        "networks": {"net": network},
        "stages": [{"kind": "diffusion", "network": "net"}],
        "conditions": {},
        "class_names": [],
        "sample": {"shape": [4]},
        "defaults": {"steps": 5, "clip": "none"},
    } | changes
    alpha_bar = _core.Plan(str(path)).read("alpha_bar")
    _core.write_plan(str(path), json.dumps(manifest), {"alpha_bar": alpha_bar, "net": model.SerializeToString()})
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A toy's engine, its cache and its plan."""
    folder = tmp_path_factory.mktemp("built")
    plan = toy(folder / "toy.plan")
    return folder, plan, build(plan, precision="fp32", cache_dir=folder / "cache", output=folder / "with.plan")


def test_an_engine_lies_in_the_cache_for_its_owner_alone(built):
    folder, plan, result = built
    (card,) = result["engines"]
    assert (card["network"], card["precision"], card["library"], card["cached"]) == (
        "unet",
        "fp32",
        "tensorrt_rtx",
        False,
    )
    assert card["source"] == next(s["sha256"] for s in _core.Plan(str(plan)).sections if s["name"] == "net")
    assert result["version"] == card["version"] == bindings.library_version(LIBRARIES[0].path)
    at = folder / "cache" / "engines"
    assert stat.S_IMODE(at.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in at.iterdir()} == {0o600} and len(list(at.iterdir())) == 2
    assert json.loads(next(at.glob("*.json")).read_text())["bytes"] == os.path.getsize(card["path"])


def test_the_same_again_is_not_built_and_a_damaged_one_is(built):
    folder, plan, result = built
    with_cache = {"precision": "fp32", "cache_dir": folder / "cache"}
    assert build(plan, **with_cache)["engines"][0]["cached"]
    path = result["engines"][0]["path"]
    whole = pathlib.Path(path).read_bytes()
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(bytes([whole[1000] ^ 1]))
    assert not build(plan, **with_cache)["engines"][0]["cached"]
    assert not build(plan, force=True, **with_cache)["engines"][0]["cached"]


def test_everything_that_decides_the_engine_is_in_its_name(built):
    _, _, result = built
    card = result["engines"][0]
    keys = {cache.key_of(card)}
    for key, other in {"library": "tensorrt", "version": "1", "precision": "bf16", "profiles": [[1, 1, 1]], "source": "0",
                       "network": "temb", "capabilities": ["8.6"], "recipe": 0}.items():  # fmt: skip
        keys.add(cache.key_of({**card, key: other}))
    assert len(keys) == 9


def test_the_least_recently_used_go_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 250)
    folder = cache.folder_of(tmp_path)
    cards = [dict.fromkeys(cache.KEYED, i) for i in range(3)]
    for i, card in enumerate(cards):
        path, _ = cache.store(folder, card, bytes(100))
        os.utime(path.with_suffix(".json"), (i, i))
    assert cache.find(folder, cards[1]) and not cache.find(folder, cards[0])
    cache.store(folder, dict.fromkeys(cache.KEYED, 3), bytes(100))
    assert cache.find(folder, cards[1]) and not cache.find(folder, cards[2]), "1 was used after 2"


def test_a_cache_that_others_can_write_is_refused(tmp_path):
    cache.folder_of(tmp_path).chmod(0o777)
    with pytest.raises(ddpm_rt.OptionError, match="cache_dir: .*chmod 700"):
        cache.folder_of(tmp_path)


def test_the_engine_s_own_folder_is_the_same(run, built, tmp_path):
    """A build without --cache-dir is where an Engine without cache_dir looks: its message names the folder."""
    _, plan, _ = built
    home = {"env": {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}}
    done = run("build", plan, "--backend", "tensorrt", "--precision", "fp32", "--json", **home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engines"][0]["path"].startswith(f"{tmp_path}/ddpm_rt/engines/")


def test_a_plan_that_holds_engines_needs_trust_and_stays_a_plan(built):
    folder, plan, result = built
    found = plan_module.inspect(folder / "with.plan", verify=True)
    (card,) = found["manifest"]["engines"]
    section = next(s for s in found["sections"] if s["name"] == card["section"])
    assert section["sha256"] == card["sha256"] == result["engines"][0]["sha256"]
    assert re.search(r"^engine unet +tensorrt_rtx .*fp32", plan_module.render(found), re.MULTILINE)
    with pytest.raises(ddpm_rt.OptionError, match="trust_native: expected true"):
        ddpm_rt.Engine(folder / "with.plan", backend="tensorrt")
    a, b = (ddpm_rt.Engine(p, device="cpu").sample(2, seed=0) for p in (plan, folder / "with.plan"))
    assert (np.asarray(a) == np.asarray(b)).all()


def test_engines_of_several_precisions_gather_in_one_plan(built):
    folder, _, _ = built
    for _ in range(2):  # the second replaces the first's
        build(
            folder / "with.plan", precision="bf16", cache_dir=folder / "cache", output=folder / "two.plan", force=True
        )
    engines = plan_module.inspect(folder / "two.plan")["manifest"]["engines"]
    assert [e["precision"] for e in engines] == ["fp32", "bf16"]
    build(folder / "two.plan", precision="bf16", cache_dir=folder / "cache", output=folder / "two.plan")
    assert len(_core.Plan(str(folder / "two.plan")).sections) == 4


def test_capabilities_by_name(built, tmp_path):
    _, plan, _ = built
    result = build(plan, precision="fp16", capabilities=["8.6", "8.9"], cache_dir=tmp_path)
    assert result["engines"][0]["capabilities"] == ["8.6", "8.9"]


@pytest.mark.parametrize("value", ["1,2", "0,1,2", "2,1,4", "1,8,4", "1,2,x", "", "1,2,9999999", (1, 2), None])
def test_profiles_that_are_none(value):
    with pytest.raises(ddpm_rt.OptionError, match=r"batch_profile: expected LEAST,BEST,MOST"):
        engine.profile_of(value)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"precision": "int8"}, ddpm_rt.OptionError, "precision: expected one of fp16, bf16, fp32"),
        ({"capabilities": ["9.9"]}, ddpm_rt.OptionError, "cc: expected current, 7.5"),
        ({"capabilities": ["current", "8.6"]}, ddpm_rt.OptionError, "cc: expected current alone"),
        ({"profiles": ["4,1,8"]}, ddpm_rt.OptionError, "batch_profile"),
        ({"library": "/no/libnvinfer.so.11"}, ddpm_rt.BackendError, "library: .*no file"),
        ({"library": shutil.__file__}, ddpm_rt.BackendError, "tensorrt"),
    ],
)
def test_refusals(built, tmp_path, options, error, text):
    _, plan, _ = built
    with pytest.raises(error, match=text):
        build(plan, cache_dir=tmp_path, **options)
    assert not list(tmp_path.rglob("*.engine"))


def test_a_plan_without_onnx_networks_is_named(mixture_plan, tmp_path):
    with pytest.raises(ddpm_rt.PlanError, match="networks.kind: expected onnx.*gaussian_mixture"):
        build(mixture_plan, cache_dir=tmp_path)


def test_a_graph_that_is_none_is_named(tmp_path):
    plan = toy(tmp_path / "a.plan")
    file = _core.Plan(str(plan))
    _core.write_plan(str(plan), file.manifest, {"alpha_bar": file.read("alpha_bar"), "net": b"not a graph" * 9})
    for precision in ("fp32", "fp16"):
        with pytest.raises(ddpm_rt.PlanError, match="networks.unet: expected"):
            build(plan, precision=precision, cache_dir=tmp_path)


@pytest.mark.parametrize("is_signal", [True, False])
def test_ctrl_c_and_what_on_step_raises_end_a_build(built, tmp_path, is_signal):
    _, plan, _ = built
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    former = signal.getsignal(signal.SIGINT)

    def interrupt(*step):
        if not is_signal:
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt if is_signal else ZeroDivisionError):
            build(plan, precision="fp16", cache_dir=tmp_path, on_step=interrupt)
        assert not list(tmp_path.rglob("*.engine")) and signal.getsignal(signal.SIGINT) == former
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------- no library, another version, no GPU


def test_no_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backends, "tensorrt_libraries", list)
    with pytest.raises(
        ddpm_rt.BackendError, match=r'libnvinfer.so.11 or libtensorrt_rtx.so.1 .*pip install "ddpm_rt\[tensorrt\]"'
    ):
        bindings.load()


def test_no_bindings_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bindings, "MODULES", {"tensorrt": ("no_such",), "tensorrt_rtx": ("no_such_rtx",)})
    with pytest.raises(ddpm_rt.BackendError, match=r"no_such_rtx for .*libtensorrt_rtx.*ddpm_rt\[tensorrt\]"):
        bindings.load()


def test_bindings_of_another_version_say_which():
    with pytest.raises(
        ddpm_rt.BackendError, match=r"expected tensorrt_rtx_bindings of version 1.7.1.116, .*got 1.6.0.9; pip"
    ):
        bindings.check_version("1.6.0.9", "1.7.1.116", "tensorrt_rtx_bindings", "/x/libtensorrt_rtx.so.1")


def test_the_machine_s_library_comes_before_the_wheel_s(monkeypatch, tmp_path):
    for name in (
        "libnvinfer.so.11",
        "libtensorrt_rtx.so.1.6.0",
        "libtensorrt_rtx.so.1.10.0",
        "libtensorrt_onnxparser_rtx.so.1.10.0",
    ):
        (tmp_path / name).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/no/such:{tmp_path}")
    first, second, *rest = backends.tensorrt_libraries()
    assert (first.kind, first.path, first.parser) == ("tensorrt", tmp_path / "libnvinfer.so.11", None)
    assert second.path.name == "libtensorrt_rtx.so.1.10.0" and second.parser.name.endswith(".1.10.0")
    assert LIBRARIES[0].path in [r.path for r in rest]
    with pytest.raises(ddpm_rt.BackendError):  # an empty file is no library
        bindings.load()


def test_the_runtime_names_the_library_and_its_version():
    report = json.loads(_core.examine_tensorrt(str(LIBRARIES[0].path)))
    assert report == {"library": "tensorrt_rtx", "version": bindings.library_version(LIBRARIES[0].path)}
    with pytest.raises(ddpm_rt.BackendError, match="no/such"):
        _core.examine_tensorrt("no/such/libtensorrt_rtx.so.1")


@pytest.mark.skipif(has_gpu(), reason="here a GPU can load the engine")
def test_without_a_gpu_a_whole_engine_is_a_device_error_and_a_damaged_one_a_plan_error(built):
    library = str(LIBRARIES[0].path)
    data = pathlib.Path(built[2]["engines"][0]["path"]).read_bytes()
    with pytest.raises(ddpm_rt.DeviceError, match="cudaError 35"):
        _core.examine_tensorrt(library, data)
    for damaged in (b"", data[:40], data[: len(data) // 2], b"x" * len(data), bytes([data[0] ^ 1]) + data[1:]):
        with pytest.raises(ddpm_rt.PlanError):
            _core.examine_tensorrt(library, damaged)


@pytest.mark.skipif(has_gpu(), reason="here a GPU runs it")
def test_without_a_gpu_the_engine_says_so(built):
    folder, plan, _ = built
    with pytest.raises(ddpm_rt.DdpmError, match="GPU|cuda"):
        ddpm_rt.Engine(plan, backend="tensorrt", cache_dir=folder / "cache")
    with ddpm_rt.Engine(plan, cache_dir=folder / "cache") as opened:  # auto: the CPU, though an engine is at hand
        assert opened.info()["backend"] == "openvino"


@pytest.mark.skipif(has_gpu(), reason="here a GPU is at hand")
def test_current_needs_a_gpu(built, tmp_path):
    with pytest.raises(ddpm_rt.DeviceError, match=r"cc: expected an NVIDIA driver.*--cc 8.6,8.9"):
        build(built[1], capabilities=["current"], cache_dir=tmp_path)


# ------------------------------------------------------------------------------------------- raw engines, the command


def test_a_raw_engine_needs_a_card_and_trust(built, tmp_path):
    raw = tmp_path / "net.engine"
    shutil.copy(built[2]["engines"][0]["path"], raw)
    with pytest.raises(ddpm_rt.PlanError, match=r'net.json: expected a JSON file(.|\n)*"engine": \{\n *"library"'):
        ddpm_rt.Engine(raw)
    card = {
        "inputs": {"x": "x", "t": "t"},
        "outputs": {"eps": "eps"},
        "sample": {"shape": [4]},
        "schedule": "linear",
        "prediction": "eps",
        "engine": {"library": "tensorrt_rtx", "precision": "fp32", "version": built[2]["version"]},
    }
    raw.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ddpm_rt.OptionError, match="trust_native"):
        ddpm_rt.Engine(raw)
    with pytest.raises(ddpm_rt.DeviceError, match="expected a GPU for a compiled engine, got cpu"):
        ddpm_rt.Engine(raw, trust_native=True, device="cpu")
    for key, value in {"library": "trt", "precision": "int8", "version": 1, "capabilities": "8.6"}.items():
        raw.with_suffix(".json").write_text(json.dumps(card | {"engine": card["engine"] | {key: value}}))
        with pytest.raises(ddpm_rt.PlanError, match=rf"engine\.{key}: expected"):
            ddpm_rt.Engine(raw, trust_native=True)


def test_the_command_prints_what_it_made(run, built, tmp_path):
    _, plan, _ = built
    done = run(
        "build",
        plan,
        "--backend",
        "tensorrt",
        "--cache-dir",
        tmp_path,
        "--batch-profile",
        "1,2,8",
        "-o",
        tmp_path / "y.plan",
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert re.search(r"unet +fp16 +1 to 8 rows +[\d.]+ MB", done.stdout) and "y.plan" in done.stdout
    again = run("build", plan, "--backend", "tensorrt", "--cache-dir", tmp_path, "--batch-profile", "1,2,8")
    assert "in the cache" in again.stdout


def test_progress_is_one_line_that_is_cleaned(capsys):
    status = Status(shown=True)
    status.update("unet", "Timing graph nodes", 1, 4)
    assert capsys.readouterr().err == "", "not in the first half second"
    status._start -= 1
    status.update("unet", "Timing graph nodes", 3, 4)
    status.close()
    written = capsys.readouterr().err
    assert (
        written.startswith("\runet: Timing graph nodes 3/4 [1 s]") and written.endswith(" \r") and "\n" not in written
    )
    Status().update("unet", "Timing graph nodes", 3, 4)  # no terminal here
    assert capsys.readouterr().err == ""


def test_doctor_says_where_and_which(run):
    report = json.loads(run("doctor", "--json").stdout)["backends"]["tensorrt"]
    assert report["libraries"][0]["version"] == bindings.library_version(LIBRARIES[0].path)
    assert report["libraries"][0]["path"] == str(LIBRARIES[0].path)
    text = run("doctor").stdout
    assert str(LIBRARIES[0].path) in text and f"tensorrt_rtx {report['libraries'][0]['version']}" in text


def test_nothing_has_to_be_set_to_find_the_library(run):
    """Python without LD_LIBRARY_PATH and from another folder: the wheel alone is enough."""
    code = "from ddpm_rt.build import bindings; rt = bindings.load(); print(rt.version, rt.module.__name__)"
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    done = run(python=code, env=env, cwd="/")
    assert done.returncode == 0 and done.stdout.startswith("1."), done.stderr
