"""Who may include and import what: docs/design.md, "Rooms"."""

from __future__ import annotations

import ast
import re
import sys

import pytest
from conftest import ROOT

# Lower rooms know nothing of higher ones. A file is in the first room whose pattern it matches.
ROOMS = [
    ("kernels", r"kernels/.*"),
    ("tools", r"csrc/(error|clock|file_io|dynamic_library|cpu|json_field|capi_structs)\..*"),
    ("tables", r"csrc/(schedule|schedule_\w+|solver|solver_\w+)\..*|csrc/solvers/.*"),
    ("plan", r"csrc/(plan|sha256|spec|spec_\w+|native_engine)\..*"),
    ("denoiser interface", r"csrc/denoiser\..*"),
    ("device", r"csrc/device(_\w+)?\..*"),
    ("denoisers", r"csrc/denoisers/.*"),
    ("lane", r"csrc/(tick_plan|embedding_cache|conditions|qualify|runner|runner_\w+|request|lane|lane_\w+|gpu_\w+)\..*"),
    ("engine", r"csrc/(engine|engine_\w+|options)\..*"),
    ("edge", r"csrc/capi.*"),
    ("bindings", r"csrc/bindings.*"),
    ("public", r"csrc/include/.*"),
]
ORDER = {room: i for i, (room, _) in enumerate(ROOMS)}
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("kernels", "csrc")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".h", ".hpp", ".cpp", ".cu", ".cuh")
]
C_HEADERS = {"stddef.h", "stdint.h"}


def room_of(path: str) -> str:
    rooms = [room for room, pattern in ROOMS if re.fullmatch(pattern, path)]
    assert rooms, f"{path} is in no room: name its room here and in docs/design.md"
    return rooms[0]


def includes(path: str) -> list[tuple[str, bool]]:
    """(name, is it one of ours)"""
    found = re.findall(r'^\s*#\s*include\s+(?:<([^>]+)>|"([^"]+)")', (ROOT / path).read_text(), re.MULTILINE)
    return [(ours or theirs, bool(ours)) for theirs, ours in found]


def resolved(path: str, name: str) -> str:
    folder = path.rsplit("/", 1)[0]
    for candidate in (f"{folder}/{name}", f"csrc/{name}", f"csrc/include/{name}", f"kernels/{name}"):
        if candidate in SOURCES:
            return candidate
    raise AssertionError(f"{path} includes {name}, which is nowhere")


@pytest.mark.parametrize("path", SOURCES)
def test_a_file_includes_its_own_room_and_lower_ones(path):
    room = room_of(path)
    for name, is_ours in includes(path):
        if not is_ours:
            continue
        other = room_of(resolved(path, name))
        if room == "public":
            assert other == "public"
        elif room == "bindings":
            assert other in ("bindings", "public"), f"{path} -> {name}: bindings see the public headers only"
        elif room == "kernels":
            assert other == "kernels"
        elif other == "public":
            assert room in ("lane", "engine", "edge") and name == "ddpm_rt/ddpm_rt.h"
        elif room == "denoisers":
            assert other in ("denoisers", "denoiser interface", "device", "plan", "tools")
        else:
            assert other != "denoisers", f"{path} -> {name}: backends are behind denoiser.h"
            assert ORDER[other] <= ORDER[room], f"{path} ({room}) -> {name} ({other})"


def test_a_backend_is_seen_by_its_own_file_only():
    for backend in ("openvino", "onnxruntime", "tensorrt"):
        for path in SOURCES:
            for name, _ in includes(path):
                if backend in name:
                    assert re.fullmatch(rf"csrc/denoisers/{backend}\w*\.(cpp|h)", path), f"{path} includes {name}"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        (r"nlohmann/.*", {"tools", "plan", "lane", "engine"}),
        (r"pybind11/.*|Python\.h", {"bindings"}),
        (r"cuda.*", {"device"}),
        (r"Nv.*|torch/.*|openvino/.*|onnxruntime.*", set()),
    ],
)
def test_libraries_stay_in_their_rooms(library, rooms):
    for path in SOURCES:
        for name, is_ours in includes(path):
            if not is_ours and re.fullmatch(library, name) and path != "csrc/device_cuda.cpp":
                assert room_of(path) in rooms, f"{path} includes <{name}>"


def test_the_cuda_runtime_is_seen_by_one_file():
    for path in SOURCES:
        seen = {name for name, _ in includes(path) if name.startswith("cuda_runtime")}
        assert not seen or path in ("csrc/device_cuda.cpp",), path


def test_public_headers_need_the_standard_library_only():
    for name, is_ours in includes("csrc/include/ddpm_rt/ddpm_rt.h"):
        assert not is_ours and name in C_HEADERS
    for header in ("ddpm_rt.hpp", "ddpm_rt_plan.hpp"):
        for name, is_ours in includes(f"csrc/include/ddpm_rt/{header}"):
            assert name.startswith("ddpm_rt") if is_ours else re.fullmatch(r"[a-z_]+", name)


def test_leaves_of_the_kernels():
    for leaf in ("kernels/hd.h", "kernels/step.h"):
        assert not [name for name, is_ours in includes(leaf) if is_ours]


# ------------------------------------------------------------------------------------------------------- Python

MODULES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "ddpm_rt").rglob("*.py"))]
KERNELS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "kernels").glob("*.py"))]
INSIDE_FUNCTIONS = ["ddpm_rt/torch_denoiser.py"]  # imports torch; the front door imports it inside functions alone
HEAVY = {
    "torch",
    "triton",
    "openvino",
    "onnxruntime",
    "PIL",
    "matplotlib",
    "diffusers",
    "onnx",
    "onnxscript",
    "scipy",
    "mlxtend",
}


def imports(path: str, everywhere: bool) -> set[str]:
    """Modules that a file imports, by full name; at its top level only, or anywhere in it."""
    tree = ast.parse((ROOT / path).read_text())
    package = path.removesuffix("/__init__.py").removesuffix(".py").split("/")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else _top(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def _top(tree: ast.Module):
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield from ast.walk(node) if isinstance(node, (ast.If, ast.Try, ast.With)) else [node]


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def is_front_door(path: str) -> bool:
    return path.count("/") == 1 or path.startswith("ddpm_rt/kernels/")


@pytest.mark.parametrize("path", [m for m in MODULES if is_front_door(m)])
def test_the_front_door_imports_no_framework(path):
    names = imports(path, everywhere=False)
    assert path in INSIDE_FUNCTIONS or not roots(names) & HEAVY
    assert not names & {file.removesuffix(".py").replace("/", ".") for file in INSIDE_FUNCTIONS}
    # The shared libraries are opened by path; importing a backend's package beside ours would load a second copy.
    assert not roots(imports(path, everywhere=True)) & {"openvino", "onnxruntime"}


@pytest.mark.parametrize("path", [m for m in MODULES if m.startswith("ddpm_rt/reference/")])
def test_the_reference_knows_nothing_of_the_engine(path):
    ours = {name for name in imports(path, everywhere=True) if name.startswith("ddpm_rt")}
    assert all(name.startswith(("ddpm_rt.reference", "ddpm_rt.row")) or name == "ddpm_rt" for name in ours), ours
    assert "ddpm_rt._core" not in ours and "ddpm_rt.engine" not in ours and "ddpm_rt.Engine" not in ours
    assert roots(imports(path, everywhere=True)) <= {"ddpm_rt", "torch", "numpy", *sys.stdlib_module_names}


def test_only_the_front_door_touches_the_extension():
    for path in MODULES:
        if "ddpm_rt._core" in imports(path, everywhere=True):
            assert is_front_door(path) or path.startswith(("ddpm_rt/export/", "ddpm_rt/build/")), path


@pytest.mark.parametrize("path", KERNELS)
def test_triton_kernels_know_triton_and_each_other_only(path):
    siblings = {file.removesuffix(".py").replace("/", ".") for file in KERNELS}
    for name in imports(path, everywhere=True):
        assert name.split(".")[0] == "triton" or name in siblings or name.rpartition(".")[0] in siblings, name


def test_importing_the_package_loads_nothing_heavy_and_is_quick(run):
    code = (
        "import sys, time; start = time.perf_counter(); import ddpm_rt; seconds = time.perf_counter() - start\n"
        "print(seconds, *sorted(set(sys.modules) & {modules!r}))"
    ).format(modules=HEAVY | {"numpy"})
    seconds, *loaded = min((run(python=code).stdout.split() for _ in range(3)), key=lambda words: float(words[0]))
    assert float(seconds) <= 0.150 and not set(loaded) & HEAVY


def test_making_an_engine_loads_nothing_heavy_either(run, mixture_plan):
    code = (
        "import sys, ddpm_rt\nwith ddpm_rt.Engine(sys.argv[1]) as e: e.sample(2).save(sys.argv[2])\n"
        f"print(*sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = run(mixture_plan, mixture_plan.with_name("a.png"), python=code)
    assert done.returncode == 0 and done.stdout.split() == [], done.stderr
