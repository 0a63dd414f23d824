"""Line 1: the CUDA step and guidance kernels on device tensors of any DLPack producer, on the caller's stream.

The device is the emulated one (tests/cuda_emulation); its producer here is a class of twenty lines that is neither numpy nor torch.
"""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import kernels

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cuda_emulation"))
sys.path.insert(0, str(ROOT))
import emulated

from bench.gpu_abi import Api

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Gpu:
    """The emulated device's memory and one stream of it. `where` is what kernels are told besides their tensors."""

    def __init__(self):
        library = emulated.library()
        self.api = Api(library)
        self.stream = self.api.create_stream()
        self.where = {"stream": self.stream, "cuda_library": library}

    def tensor(self, values, device: int = 0):
        return Tensor(self, np.ascontiguousarray(values), device)

    def zeros(self, shape, dtype):
        return self.tensor(np.zeros(shape, dtype))

    def numpy(self, tensor):
        self.api.check(self.api.synchronize_stream(self.stream))
        return tensor.host.copy()


class Tensor:
    """A producer: device memory with `shape`, __dlpack__ and __dlpack_device__, and nothing else."""

    def __init__(self, gpu, values, device):
        data = ctypes.c_void_p()
        gpu.api.check(gpu.api.allocate(ctypes.byref(data), max(64, values.nbytes)))
        raw = (ctypes.c_char * values.nbytes).from_address(data.value)
        self.host = np.frombuffer(raw, values.dtype).reshape(values.shape)  # the emulated device's memory is the host's
        self.host[...] = values
        self.view, self.device, self.asked = self.host, device, []

    @property
    def shape(self):
        return self.view.shape

    def transposed(self, *axes):
        other = object.__new__(Tensor)
        other.__dict__ = self.__dict__ | {"view": self.view.transpose(*axes)}
        return other

    def __dlpack_device__(self):
        return (2, self.device)

    def __dlpack__(self, stream=None):
        self.asked.append(stream)
        capsule = self.view.__dlpack__()
        managed = _capsule_pointer(capsule, b"dltensor")
        ctypes.cast(managed + 8, ctypes.POINTER(ctypes.c_int32))[0] = 2  # DLTensor.device.device_type: kDLCUDA
        return capsule


@pytest.fixture(scope="module")
def gpu():
    return Gpu()


def normals(shape, *, k):
    return ddpm_rt.noise(5, 0, shape, stream=100 + k)


@pytest.mark.parametrize(
    ("sampler", "options", "shape"),
    [
        ("ddim", {"steps": 6}, (3, 3, 8, 8)),
        ("ddpm", {"steps": 6, "variance": "fixed_large"}, (2, 5, 7)),
        ("dpmpp_2m", {"steps": 6}, (3, 4, 4)),
        ("unipc", {"steps": 6, "guidance_rescale": 0.7}, (2, 3, 4, 4)),
        ("euler_ancestral", {"steps": 5, "threshold": (0.9, 2.0)}, (2, 2, 3, 5)),
    ],
)
def test_a_loop_on_the_device_has_the_bits_of_the_loop_on_the_cpu(gpu, sampler, options, shape):
    rows = ddpm_rt.rows(sampler, **options)
    start = normals(shape, k=0)
    x, on_gpu = start.copy(), gpu.tensor(start)
    state, kept = kernels.State(x), kernels.State(on_gpu, gpu.zeros)
    for i in range(len(rows)):
        cond, uncond = normals(shape, k=2 * i + 1), normals(shape, k=2 * i + 2)
        kernels.step(x, cond, rows, eps_uncond=uncond, scale=2.5, seeds=9, index=i, state=state)
        outputs = gpu.tensor(cond), gpu.tensor(uncond)
        done = kernels.step(
            on_gpu, outputs[0], rows, eps_uncond=outputs[1], scale=2.5, seeds=9, index=i, state=kept, **gpu.where
        )
        assert done is on_gpu and outputs[0].asked == [gpu.stream]
        assert (gpu.numpy(on_gpu) == x).all(), i
        assert (gpu.numpy(kept.input) == state.input).all() and (gpu.numpy(kept.x0) == state.x0).all()
    assert not (x == start).any() and np.isfinite(x).all()


def test_half_precision_and_channels_last_outputs(gpu):
    shape = (3, 4, 6, 8)
    rows = ddpm_rt.rows("ddpm", 10)
    start, cond, uncond = normals(shape, k=0), *(normals(shape, k=k).astype(np.float16) for k in (1, 2))
    expected = kernels.step(
        start.copy(), cond.astype(np.float32), rows, eps_uncond=uncond.astype(np.float32), scale=1.5, seeds=[4, 5, 6]
    )
    for last in (False, True):
        given = [
            gpu.tensor(v.transpose(0, 2, 3, 1)).transposed(0, 3, 1, 2) if last else gpu.tensor(v)
            for v in (cond, uncond)
        ]
        assert given[0].shape == shape
        x = gpu.tensor(start)
        out = gpu.tensor(np.full(shape, np.nan, np.float32))
        done = kernels.step(x, given[0], rows, eps_uncond=given[1], scale=1.5, seeds=[4, 5, 6], out=out, **gpu.where)
        assert done is out and (gpu.numpy(out) == expected).all() and (gpu.numpy(x) == start).all()


def test_rare_operands(gpu):
    shape = (2, 3, 8)
    rows = ddpm_rt.rows("ddim", 10).copy()
    rows["flags"][3] |= ddpm_rt.row.BLEND | ddpm_rt.row.VLB | ddpm_rt.row.GRAD
    for name, value in {"ky": 0.5, "kz": 0.25, "ge": 0.125, "vx": 0.75, "v0": -0.5, "lq": -1.0, "lp": -0.5}.items():
        rows[name][3] = value
    names = ("eps_guide", "grad", "known", "mask", "x0_true")
    arrays = {name: normals(shape, k=10 + k) for k, name in enumerate(names)}
    arrays["mask"] = (arrays["mask"] > 0).astype(np.float32)
    x, eps = normals(shape, k=0), normals(shape, k=1)
    on_gpu, given = gpu.tensor(x), {name: gpu.tensor(v) for name, v in arrays.items()}
    state, kept = kernels.State(x), kernels.State(on_gpu, gpu.zeros)
    same = {"seeds": 3, "index": 3, "scale2": 0.3}
    kernels.step(x, eps, rows, state=state, **same, **arrays)
    kernels.step(on_gpu, gpu.tensor(eps), rows, state=kept, **same, **given, **gpu.where)
    assert (gpu.numpy(on_gpu) == x).all()
    assert (gpu.numpy(kept.kl) == state.kl).all() and (state.kl != 0).all()


def test_cfg_combine(gpu):
    shape = (3, 5, 4)
    c, u = normals(shape, k=1), normals(shape, k=2)
    for rescale in (0.0, 0.6):
        expected = kernels.cfg_combine(c, u, [1.0, 3.0, 7.5], rescale=rescale)
        out = gpu.zeros(shape, "float32")
        assert (
            kernels.cfg_combine(gpu.tensor(c), gpu.tensor(u), [1.0, 3.0, 7.5], rescale=rescale, out=out, **gpu.where)
            is out
        )
        assert (gpu.numpy(out) == expected).all()
    half = [gpu.tensor(v.astype(np.float16)) for v in (c, u)]
    kernels.cfg_combine(*half, 3.0, out=half[1], **gpu.where)
    error = np.abs(gpu.numpy(half[1]).astype(float) - (u + 3 * (c - u)))
    assert error.max() < 2.0**-10 * 16


def test_many_calls_at_once_on_two_streams(gpu):
    """More calls than packets in flight, of two shapes, before anything is waited for."""
    rows = ddpm_rt.rows("ddpm", 40)
    other = gpu.api.create_stream()
    ours, expected = [], []
    for stream, shape in ((gpu.stream, (4, 3, 4)), (other, (2, 7, 5))):
        where = gpu.where | {"stream": stream}
        x = normals(shape, k=0)
        on_gpu, eps = gpu.tensor(x), normals(shape, k=1)
        on_device = gpu.tensor(eps)
        for i in range(30):
            kernels.step(x, eps, rows, seeds=1, index=i)
            kernels.step(on_gpu, on_device, rows, seeds=1, index=i, **where)
        ours.append(on_gpu)
        expected.append(x)
    gpu.api.check(gpu.api.synchronize_stream(other))
    for tensor, x in zip(ours, expected, strict=True):
        assert (gpu.numpy(tensor) == x).all()


def test_bad_tensors_are_typed_errors_and_change_nothing(gpu):
    shape, rows = (2, 3, 4), ddpm_rt.rows("ddpm", 10)
    x, eps = gpu.tensor(normals(shape, k=0)), gpu.tensor(normals(shape, k=1))
    before = gpu.numpy(x)

    def refused(error, match, *arguments, **given):
        with pytest.raises(error, match=match):
            kernels.step(*arguments, **{"seeds": 0, **given}, **gpu.where)

    refused(ddpm_rt.DeviceError, "eps: expected a tensor on cuda:0", x, normals(shape, k=1), rows)
    refused(ddpm_rt.DeviceError, "eps: expected a tensor on cuda:0", x, gpu.tensor(normals(shape, k=1), device=1), rows)
    refused(ddpm_rt.ShapeError, "eps: expected float32 or float16 or bfloat16", x, gpu.zeros(shape, "float64"), rows)
    refused(ddpm_rt.ShapeError, "eps.*\\[2, 3, 4\\]", x, gpu.zeros((2, 4, 3), "float32"), rows)
    refused(ddpm_rt.ShapeError, "eps: expected a tensor", x, None, rows)
    refused(ddpm_rt.ShapeError, "contiguous", x.transposed(0, 2, 1), gpu.zeros((2, 4, 3), "float32"), rows)
    refused(ddpm_rt.ShapeError, "one dtype", x, eps, rows, eps_uncond=gpu.zeros(shape, "float16"))
    refused(ddpm_rt.ShapeError, "seeds: expected 2", x, eps, rows, seeds=[1, 2, 3])
    refused(ddpm_rt.OptionError, "eps: expected memory of its own", x, x, rows)
    refused(ddpm_rt.OptionError, "index", x, eps, rows, index=10)
    with pytest.raises(ddpm_rt.OptionError, match="zeros"):
        kernels.State(x)
    assert math.isfinite(before.sum()) and (gpu.numpy(x) == before).all()


def test_without_a_gpu_the_error_says_what_is_missing(gpu):
    if emulated.has_gpu():
        pytest.skip("here a GPU is at hand")
    x = gpu.tensor(normals((1, 4), k=0))
    with pytest.raises(ddpm_rt.DeviceError, match="expected"):
        kernels.step(x, gpu.tensor(normals((1, 4), k=1)), ddpm_rt.rows("ddpm", 10), seeds=0)
