"""GPU issue, line 6: a tick is a graph, seen from outside: the same images with and without, and no uploads in steady state."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import ddpm_rt

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "cuda_emulation"))
import emulated

only_emulated = pytest.mark.skipif(emulated.has_gpu(), reason="counts the emulated device's calls")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A closed-form mixture, whose denoiser is a kernel: everything on the device."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
    from conftest import write_mixture_plan

    return write_mixture_plan(tmp_path_factory.mktemp("plan") / "mixture.plan", shape=(3, 4, 4))


def on_device(plan):
    return ddpm_rt.Engine(plan, **emulated.device())


@pytest.mark.parametrize(
    ("sampler", "options"), [("ddim", {}), ("ddpm", {}), ("heun", {}), ("unipc", {}), ("ddim", {"scale": 4.0})]
)
def test_the_loop_on_the_device_is_the_loop_on_the_cpu(plan, sampler, options):
    options = {"sampler": sampler, "steps": 12, "seed": 3, "labels": [0, 1, -1, 1, 0], "output": "float", **options}
    with ddpm_rt.Engine(plan, device="cpu") as engine:
        wanted = np.asarray(engine.sample(5, **options))
    with on_device(plan) as engine:
        assert np.abs(np.asarray(engine.sample(5, **options)) - wanted).max() < 1e-4


def test_a_first_tick_outside_a_graph_and_every_replay_give_the_same_bits(plan):
    """A list of calls is captured when it is seen again, so that the first call of two steps runs piece by piece."""
    with on_device(plan) as engine:
        runs = [np.asarray(engine.sample(4, seed=9, steps=2, output="float")) for _ in range(6)]
    assert all((run == runs[0]).all() for run in runs)


def test_an_image_does_not_depend_on_its_batch_or_slot(plan):
    with on_device(plan) as engine:
        many = np.asarray(engine.sample(40, seed=100, steps=6, output="float"))
        for i in (0, 17, 39):
            assert (np.asarray(engine.sample(1, seed=100 + i, steps=6, output="float"))[0] == many[i]).all()


def test_requests_that_come_and_go_change_nobody_s_bits(plan):
    with on_device(plan) as engine:
        wanted = {k: np.asarray(engine.sample(1 + k % 4, seed=k, steps=4 + 3 * k, output="float")) for k in range(8)}
        got = {}

        def work(k):
            got[k] = np.asarray(engine.sample(1 + k % 4, seed=k, steps=4 + 3 * k, output="float"))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all((got[k] == wanted[k]).all() for k in range(8))


@only_emulated
def test_in_steady_state_a_tick_is_one_launch_and_nothing_is_uploaded(plan):
    names = ("launch_graph", "step", "to_device", "allocate", "synchronize")
    with on_device(plan) as engine:
        engine.sample(4, seed=0, steps=20)
        counts = {}
        for steps in (50, 150):
            before = {name: emulated.control(name) for name in names}
            engine.sample(4, seed=0, steps=steps)
            counts[steps] = {name: emulated.control(name) - before[name] for name in names}
    more = {name: counts[150][name] - counts[50][name] for name in names}
    assert more["launch_graph"] == 100  # a launch for each further tick
    assert more["to_device"] == more["allocate"] == more["synchronize"] == 0


@only_emulated
@pytest.mark.parametrize("kind", ["capture", "instantiate"])
def test_a_tick_that_cannot_be_captured_is_launched_piece_by_piece(plan, kind):
    with on_device(plan) as engine:
        wanted = np.asarray(engine.sample(4, seed=5, steps=9, output="float"))
    with on_device(plan) as engine:
        engine.sample(4, seed=5, steps=1)
        emulated.control(f"fail {kind}", 1)
        assert (np.asarray(engine.sample(4, seed=5, steps=9, output="float")) == wanted).all()
    emulated.control(f"fail {kind}", 0)
