"""Line 8: Engine and sample from Python, on the digits that ship and on a callable."""

from __future__ import annotations

import os
import pickle
import threading

import numpy as np
import pytest

import ddpm_rt

FAST = {"steps": 4}


@pytest.fixture(scope="module")
def digits():
    with ddpm_rt.Engine("digits") as engine:
        yield engine


def test_the_default_is_uint8_nhwc_with_labels_seeds_and_fingerprint(digits):
    images = digits.sample(n=3, seed=0)
    assert isinstance(images, ddpm_rt.Images) and isinstance(images, np.ndarray)
    assert images.shape == (3, 28, 28, 1) and images.dtype == np.uint8
    assert images.seeds.tolist() == [0, 1, 2] and images.nfe == 100 and images.seconds > 0 and images.fingerprint
    assert ((images < 32) | (images > 224)).mean() > 0.8  # ink on paper
    assert (pickle.loads(pickle.dumps(images)).labels == images.labels).all()


def test_the_plan_s_defaults_are_ddim_50_3(digits):
    defaults = digits.info()["defaults"]
    assert (defaults["sampler"], defaults["steps"], defaults["scale"]) == ("ddim", 50, 3.0)
    assert (digits.sample(1, seed=4) == digits.sample(1, seed=4, sampler="ddim", steps=50, scale=3)).all()


def test_labels_are_drawn_from_the_seed_given_or_none(digits):
    assert (digits.sample(8, seed=0, **FAST).labels == digits.sample(8, seed=0, **FAST).labels).all()
    assert digits.sample(2, labels=7, **FAST).labels.tolist() == [7, 7]
    assert digits.sample(3, labels=["3", None, -1], **FAST).labels.tolist() == [3, -1, -1]
    unconditional = digits.sample(1, labels=-1, seed=0, output="float", **FAST)
    assert not (unconditional == digits.sample(1, labels=3, seed=0, output="float", **FAST)).all()


def test_outputs(digits):
    torch = pytest.importorskip("torch")
    raw = digits.sample(2, seed=1, output="float", **FAST)
    assert raw.shape == (2, 1, 28, 28) and raw.dtype == np.float32
    assert (torch.from_dlpack(digits.sample(2, seed=1, output="dlpack", **FAST)).numpy() == raw).all()
    assert (digits.sample(2, seed=1, output="torch", **FAST).numpy() == raw).all()
    assert digits.sample(2, seed=1, output="pil", **FAST)[1].size == (28, 28)


def test_diffusers_names(digits):
    a = digits.sample(1, class_labels=5, guidance_scale=2.0, num_inference_steps=4, seed=0)
    assert (a == digits.sample(1, labels=5, scale=2.0, steps=4, seed=0)).all()


def test_noise_is_what_the_engine_draws(digits):
    noise = np.stack([ddpm_rt.noise(20 + i, 0, (1, 28, 28)) for i in range(2)])
    a = digits.sample(2, labels=1, seed=20, **FAST)
    assert (digits.sample(2, labels=1, seed=20, latents=noise, **FAST) == a).all()
    assert (digits.sample(2, labels=1, seed=20, x_init=noise, **FAST) == a).all()


def test_info_says_backend_precision_buckets_and_probe(digits):
    digits.sample(4, seed=0)
    info = digits.info()
    assert info["backend"] == "openvino" and info["precision"] in ("fp32", "bf16")
    assert info["buckets"] and info["invariance_probe"] in ("passed", "failed", "pending", "reference")
    assert info["batch_invariant"] is True


@pytest.mark.parametrize("shape", [(6,), (2, 6), (1, 6, 6), (2, 3, 4, 5)])
def test_a_callable_of_rank_1_to_4(shape):
    null, seen = 3, set()

    def eps(x, t, labels):
        assert x.dtype == t.dtype == np.float32 and labels.dtype == np.int64 and x.shape == (len(t), *shape)
        seen.update(labels.tolist())
        return 0.2 * x

    with ddpm_rt.Engine.from_callable(eps, shape=shape, schedule="cosine", num_classes=null) as engine:
        x = engine.sample(5, labels=[0, 1, 2, -1, None], scale=2.0, steps=5)
    assert len(x) == 5 and seen == {0, 1, 2, null}
    assert x.dtype == (np.uint8 if len(shape) == 3 else np.float32)


def test_callback_stop_and_errors(digits):
    rows = []
    digits.sample(2, callback=lambda row, total, x0: rows.append((row, total, x0.shape)), **FAST)
    assert rows[-1] == (8, 8, (2, 1, 28, 28)) and len(rows) == 4
    with pytest.raises(ddpm_rt.CancelledError):
        digits.sample(2, callback=lambda *a: False)
    with pytest.raises(KeyError):
        digits.sample(2, callback=lambda *a: {}["missing"])
    assert len(digits.sample(1, **FAST)) == 1


def test_any_thread(digits):
    expected = [digits.sample(2, seed=i, **FAST) for i in range(3)]
    got: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: digits.sample(2, seed=i, **FAST)})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((got[i] == expected[i]).all() for i in range(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_is_refused(digits):
    pid = os.fork()
    if pid == 0:
        try:
            digits.sample(1)
        except ddpm_rt.DeviceError:
            os._exit(42)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_close_and_context_manager():
    with ddpm_rt.Engine("digits") as engine:
        pass
    with pytest.raises(ddpm_rt.DeviceError, match="closed"):
        engine.sample(1)
    engine.close()


def test_it_is_typed():
    folder = os.path.dirname(ddpm_rt.__file__)
    assert os.path.exists(os.path.join(folder, "py.typed")) and os.path.exists(os.path.join(folder, "_core.pyi"))
