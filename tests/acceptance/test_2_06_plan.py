"""Line 6: the plan file as docs/plan_format.md has it, read here by code of its own; `ddpm-rt inspect`."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_rt

HEADER = struct.Struct("<8sIIQQQQI12x")
ENTRY = struct.Struct("<64sQQ32s16x")


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddpm_rt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def read(data: bytes) -> tuple[dict, list[tuple[str, bytes]]]:
    """Manifest and sections of a plan; asserts everything that the format fixes."""
    magic, version, header, size, manifest_at, manifest_bytes, table_at, count = HEADER.unpack(data[:64])
    assert (magic, version, header, size, table_at) == (b"DDPMPLAN", 1, 64, len(data), 96)
    manifest = data[manifest_at : manifest_at + manifest_bytes]
    table = data[96 : 96 + 128 * count]
    assert manifest_at == 96 + 128 * count
    assert data[64:96] == hashlib.sha256(data[:64] + manifest + table).digest()
    sections, end = [], manifest_at + manifest_bytes
    for k in range(count):
        name, offset, length, digest = ENTRY.unpack(table[128 * k : 128 * (k + 1)])
        assert offset == -(-end // 4096) * 4096 and not any(data[end:offset])
        body = data[offset : offset + length]
        assert hashlib.sha256(body).digest() == digest
        sections.append((name.rstrip(b"\0").decode(), body))
        end = offset + length
    assert end == len(data)
    return json.loads(manifest), sections


def write(manifest: dict, sections: list[tuple[str, bytes]], version: int = 1) -> bytes:
    text = json.dumps(manifest).encode()
    table, bodies, end = b"", b"", 96 + 128 * len(sections) + len(text)
    for name, body in sections:
        offset = -(-end // 4096) * 4096
        table += ENTRY.pack(name.encode(), offset, len(body), hashlib.sha256(body).digest())
        bodies += bytes(offset - end) + body
        end = offset + len(body)
    header = HEADER.pack(b"DDPMPLAN", version, 64, end, 96 + len(table), len(text), 96, len(sections))
    return header + hashlib.sha256(header + text + table).digest() + table + text + bodies


@pytest.fixture(scope="module")
def digits() -> bytes:
    found = cli("inspect", "digits", "--json")
    assert found.returncode == 0, found.stderr
    return Path(json.loads(found.stdout)["path"]).read_bytes()


def test_the_shipped_plan_is_laid_out_as_specified_and_says_all_of_version_1(digits):
    manifest, sections = read(digits)
    assert manifest["format"] == manifest["row_version"] == manifest["rng_version"] == 1 and manifest["requires"] == []
    assert [s["kind"] for s in manifest["stages"]] == ["diffusion"]
    assert manifest["stages"][0]["inputs"] == {"x": "state", "t": "time", "label": "request"}
    assert manifest["conditions"]["label"] == {
        "dtype": "int64", "shape": [], "max_length": None, "mask": False, "role": "class", "classes": 10, "null": 10
    }  # fmt: skip
    assert manifest["class_names"] == [str(d) for d in range(10)]
    assert manifest["sample"] == {"shape": [1, 28, 28], "role": "image", "range": [-1, 1], "uint8": "round"}
    assert {"section", "T"} <= set(manifest["schedule"]) and manifest["time"] == {"type": "index", "scale": 1.0}
    assert manifest["prediction"] == "eps" and manifest["variance"] == "fixed"
    assert set(manifest["self_test"]["tolerance"]) == {"fp32", "fp16", "bf16"}
    assert manifest["defaults"].items() >= {"sampler": "ddim", "steps": 50, "scale": 3.0}.items()
    assert manifest["licence"] and manifest["sources"] and isinstance(manifest["card"], str)
    network = manifest["networks"][manifest["stages"][0]["network"]]
    assert network["output_slices"] == {"mean": [0, 1], "variance": None} and network["guided_channels"] == [0, 1]
    named = {n["section"] for n in manifest["networks"].values()} | {manifest["schedule"]["section"]}
    assert named | {manifest["self_test"]["section"]} == {name for name, _ in sections}
    alpha_bar = struct.unpack("<1000d", dict(sections)["alpha_bar"])
    assert alpha_bar[0] == pytest.approx(1 - 1e-4, rel=1e-12) and alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-3)


def test_inspect_shows_the_plan_and_verify_reads_every_byte(digits, tmp_path):
    path = tmp_path / "copy.plan"
    path.write_bytes(digits)
    manifest, sections = read(digits)
    text = cli("inspect", path, "--verify")
    assert text.returncode == 0 and "verified" in text.stdout and "Traceback" not in text.stderr
    for word in ("digits", "[1, 28, 28]", "linear", "steps 50", "scale 3.0", "unet.onnx", manifest["licence"]):
        assert word in text.stdout, word
    found = json.loads(cli("inspect", path, "--verify", "--json").stdout)
    assert found["manifest"] == manifest and found["verified"] and found["bytes"] == len(digits)
    assert [(s["name"], s["bytes"], s["sha256"]) for s in found["sections"]] == [
        (name, len(body), hashlib.sha256(body).hexdigest()) for name, body in sections
    ]


def test_one_flipped_bit_anywhere_is_found(digits, tmp_path):
    """In the header, the table, the manifest: on opening. In a section or the padding: by --verify."""
    path = tmp_path / "bad.plan"
    manifest_at, manifest_bytes = struct.unpack("<QQ", digits[24:40])
    first = struct.unpack("<Q", digits[96 + 64 : 96 + 72])[0]
    in_section, in_padding = first + 1000, manifest_at + manifest_bytes + 1
    for at in (0, 8, 16, 64, 100, manifest_at + 5, in_section, in_padding):
        damaged = bytearray(digits)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        found = cli("inspect", path, "--verify")
        assert found.returncode == 1 and "PlanError" in found.stderr and "Traceback" not in found.stderr, at
        if at < first - 4096:
            with pytest.raises(ddpm_rt.PlanError):
                ddpm_rt.Engine(path)


def test_truncated_foreign_and_newer_plans_are_refused(digits, tmp_path):
    manifest, sections = read(digits)
    assert read(write(manifest, sections))[0] == manifest  # this test's own writer, by its own reader
    cases = {
        "empty": b"",
        "short": digits[:50],
        "cut": digits[:-1],
        "longer": digits + b"\0",
        "png": b"\x89PNG\r\n\x1a\n" + digits[8:],
        "version": write(manifest, sections, version=2),
        "requires": write(manifest | {"requires": ["cascade"]}, sections),
        "rows": write(manifest | {"row_version": 2}, sections),
        "stages": write(manifest | {"stages": manifest["stages"] * 2}, sections),
        "no schedule": write({k: v for k, v in manifest.items() if k != "schedule"}, sections),
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.plan"
        path.write_bytes(data)
        with pytest.raises(ddpm_rt.PlanError, match=r"expected .*(got|found)"):
            ddpm_rt.Engine(path)


def test_a_plan_of_another_writer_with_unknown_keys_runs(digits, tmp_path):
    manifest, sections = read(digits)
    path = tmp_path / "other.plan"
    path.write_bytes(write(manifest | {"producer": "a test", "mood": {"cheerful": True}}, sections))
    with ddpm_rt.Engine(path) as engine, ddpm_rt.Engine("digits") as own:
        a, b = (e.sample(1, labels=7, seed=3, steps=3) for e in (engine, own))
    assert (a == b).all()
    assert json.loads(cli("inspect", path, "--json").stdout)["manifest"]["mood"] == {"cheerful": True}


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    found = cli("inspect", "digitz")
    assert found.returncode == 1 and "PlanError" in found.stderr and "digits" in found.stderr
