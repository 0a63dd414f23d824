"""The engine: a plan, or a denoiser of your own, and the loop in C++ that samples from it."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from . import _core, call, devices, images, lifetime, likelihood, options, plan_files
from .editing import Inversion
from .errors import BackendError, DeviceError, NumericError, OptionError
from .progress import Progress
from .tables import Table

_SLICE_SECONDS = 0.02  # how long a wait may keep a signal waiting


class Engine(Inversion):
    """Samples from a plan file. Callable from any thread; a context manager; the GIL is free while it works.

        with ddpm_rt.Engine("digits") as engine:
            images = engine.sample(16, labels=7, scale=3, seed=0)

    Args:
        plan: a path, or the name of a plan that comes with the package ("digits"). A raw .onnx file needs a card.
        device: "auto", "cpu", "cuda" or "cuda:N". auto takes a GPU where TensorRT or PyTorch can run the plan there.
        backend: "auto", "openvino", "onnxruntime", "analytic" or, on a GPU, "tensorrt" or "torch". `info()["backend"]` says
            which was taken.
        precision: "auto", "fp32", "bf16" or "fp16".
        threads: of the network; None: the least of affinity, cgroup quota and physical cores.
        max_batch: images resident at a time; None: chosen.
        batch_invariant: an image's bits do not depend on its neighbours; None: True on the CPU, False on a GPU.
        cache_dir: folder of compiled networks; None: the user's cache folder; "": none.
        card: JSON manifest for a model file that is not a plan; None: NAME.json beside it.
        cuda_library: path of the GPU part of ddpm_rt; None: as installed.
        tensorrt_library: path of libnvinfer.so.11 or libtensorrt_rtx.so.1; None: one on this machine, else in a package.
        trust_native: load machine code that a plan embeds; only for files from a source you trust.

    Raises:
        PlanError, BackendError, DeviceError, OptionError: the message names the field, what was expected, what was found.
    """

    def __init__(
        self,
        plan: str | os.PathLike[str],
        device: str = "auto",
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        *,
        max_batch: int | None = None,
        batch_invariant: bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        card: str | os.PathLike[str] | None = None,
        cuda_library: str | os.PathLike[str] | None = None,
        tensorrt_library: str | os.PathLike[str] | None = None,
        trust_native: bool = False,
        **unknown: Any,
    ) -> None:
        if not isinstance(trust_native, bool):
            raise OptionError(f"trust_native: expected True or False, got {trust_native!r}")
        for name in unknown:
            raise options.unknown(name, [r["name"] for r in options.table() if r["scope"] == "engine"], "Engine")
        given = call.engine_options(
            device,
            backend,
            precision,
            threads,
            max_batch,
            batch_invariant,
            cache_dir,
            cuda_library,
            tensorrt_library,
            trust_native,
        )
        with plan_files.located(plan, card) as path:
            self._open(devices.open_plan(str(path), device, backend, precision, given))

    @classmethod
    def from_callable(
        cls,
        fn: Callable[[np.ndarray, np.ndarray, np.ndarray | None], Any],
        shape: Sequence[int],
        schedule: str | Sequence[float] | Mapping[str, Any] = "linear",
        prediction: str = "eps",
        num_classes: int | None = None,
        *,
        class_names: Sequence[str] | None = None,
        max_batch: int | None = None,
        data_range: tuple[float, float] = (-1.0, 1.0),
        role: str | None = None,
        time_scale: float = 1.0,
        time: str | None = None,
        variance: str = "fixed",
        classifier: bool = False,
        defaults: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        name: str = "callable",
    ) -> Engine:
        """The same loop over a function of yours.

        Args:
            fn: fn(x, t, labels) -> eps. x, eps float32 [B, *shape]; t float32 [B]; labels int64 [B] with `num_classes` as the
                null label, or None without classes. B varies. Called from one thread; what it raises becomes the `__cause__`
                of a BackendError; calling back into this engine is an OptionError.
            shape: of one sample, rank 1 to 4; images are [C, H, W].
            schedule: a name, betas [T], or {"name", "T"}, {"betas"}, {"alpha_bar"}; in continuous time "vp", "sub_vp", "ve", "flow",
                "edm", or a mapping with that name and its numbers (`ddpm_rt.kernels.noise_model`).
            prediction: what fn returns: "eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean", "edm" or
                "consistency" (docs/samplers.md).
            data_range: of the clean data, for clipping and uint8.
            role: "image", "latent" or "vector"; None: image for rank 3, else vector.
            time_scale: fn's t is time_scale times the schedule's time.
            time: or of "sigma", "log_sigma", "log_half_sigma"; None: the schedule's usual one.
            variance: "learned" (log variance) or "learned_range" (Nichol & Dhariwal 2102.09672 eq. 15): the first axis of what fn
                returns is twice as long, the variance behind the prediction.
            classifier: behind that follows d log p(label | x) / dx, of x's shape, for `classifier_scale`.
            defaults: sampler, steps, scale, eta, clip, grid, variance, compat, sampler_options, guidance_rescale,
                guidance_interval, threshold, classifier_scale, clip_range.
            scheduler: a diffusers scheduler_config with `_class_name`, in place of schedule, prediction, time and variance: what
                that scheduler does, its defects included, is what a call does unasked (docs/importing.md). fn is what diffusers
                calls the model: a flow's t is in 0 .. num_train_timesteps.

        Warns:
            UserWarning: once for each defect that `scheduler` or `compat` reproduces.
        """
        if not callable(fn):
            raise OptionError(f"fn: expected a function of (x, t, labels), got {type(fn).__name__}")
        if scheduler is not None:
            from .importers.scheduler import read

            settings = read(scheduler)
            call.expect_own_schedule(schedule, prediction, variance, time, time_scale)
            schedule, prediction, variance = settings.schedule, settings.prediction, settings.variance
            time, time_scale, defaults = settings.time, settings.time_scale, settings.defaults_with(defaults)
        text, alpha_bar = call.callable_model(
            schedule, shape, name=name, prediction=prediction, num_classes=num_classes, class_names=class_names, role=role,
            data_range=data_range, time=time, time_scale=time_scale, defaults=defaults, variance=variance, classifier=classifier,
        )  # fmt: skip
        given = call.engine_options("cpu", "auto", "auto", None, max_batch, None, None, None)
        self = cls.__new__(cls)
        self._open(
            _core.Engine.from_callable(
                text, alpha_bar, fn, tuple(shape), call.output_shape(shape, variance, classifier), given
            )
        )
        if scheduler is not None:
            call.warn_of_defects({}, self._model, self._warned, 3)
        return self

    @classmethod
    def from_torch(
        cls,
        module: Callable[..., Any],
        shape: Sequence[int],
        schedule: str | Sequence[float] | Mapping[str, Any] = "linear",
        prediction: str = "eps",
        num_classes: int | None = None,
        *,
        device: str = "auto",
        channels_last: bool = False,
        class_names: Sequence[str] | None = None,
        max_batch: int | None = None,
        batch_invariant: bool | None = None,
        cuda_library: str | os.PathLike[str] | None = None,
        data_range: tuple[float, float] = (-1.0, 1.0),
        role: str | None = None,
        time_scale: float = 1.0,
        time: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        name: str = "torch",
    ) -> Engine:
        """The same loop over a PyTorch module; on a GPU the loop runs there too and reads and writes the module's tensors.

        Arguments that `from_callable` has too mean the same.

        Args:
            module: module(x, t, labels) -> eps, a torch.nn.Module in eval mode or a function; eager, or compiled without CUDA
                graphs of its own (mode "max-autotune-no-cudagraphs"). x, eps [B, *shape] in the dtype of its parameters
                (float32, float16 or bfloat16); t float32 [B]; labels int64 [B], or None without classes. On a GPU it is
                captured into the loop's CUDA graph once per B (a power of 2): it must not decide on values of tensors.
            device: "auto": where the module's parameters are. "cuda:N" for a function over tensors there.
            channels_last: x comes in torch.channels_last memory.

        Raises:
            DeviceError: no GPU where one is named. OptionError: a module on another device than the named one.
        """
        from . import torch_denoiser

        if not callable(module):
            raise OptionError(f"module: expected a module or function of (x, t, labels), got {type(module).__name__}")
        text, alpha_bar = call.callable_model(
            schedule, shape, name=name, prediction=prediction, num_classes=num_classes, class_names=class_names, role=role,
            data_range=data_range, time=time, time_scale=time_scale, defaults=defaults,
        )  # fmt: skip
        device, at = devices.of_module(module, device, cuda_library)
        given = call.engine_options(device, "auto", "auto", None, max_batch, batch_invariant, None, cuda_library)
        has_labels = bool(json.loads(text)["num_classes"])
        fn, networks = None, []
        if at is None:
            fn = torch_denoiser.on_host(module)
        else:
            networks = [torch_denoiser.of_module(module, shape, at, channels_last, has_labels)]
        self = cls.__new__(cls)
        self._open(_core.Engine.from_callable(text, alpha_bar, fn, tuple(shape), tuple(shape), given, networks))
        return self

    def _open(self, core: _core.Engine) -> None:
        self._core = core
        self._pid = os.getpid()
        self._close_core = weakref.finalize(self, lifetime.close, core, self._pid)  # also runs before the interpreter exits
        self._lock = threading.Lock()
        self._running = 0
        self._guides: list[Engine] = []
        self._warned: set[str] = set()
        lifetime.engines.add(self)
        info = self.info()
        self._model = call.Model(
            name=info["name"],
            shape=tuple(info["shape"]),
            role=info["role"],
            range=tuple(info["range"]),
            class_names=tuple(info["class_names"]),
            device=info["device"],
            defaults=info["defaults"],
            schedule=info["schedule"],
            prediction=info["prediction"],
            conditions=info["conditions"],
        )

    def sample(
        self,
        n: int = 1,
        *,
        labels: Any = None,
        scale: float | None = None,
        w: float | None = None,
        steps: int | None = None,
        sampler: str | Table | None = None,
        eta: float | None = None,
        clip: str | None = None,
        variance: str | None = None,
        grid: str | None = None,
        compat: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        threshold: tuple[float, float] | None = None,
        cond: Mapping[str, Any] | None = None,
        negative: Any = None,
        guide: Engine | None = None,
        classifier_scale: float | None = None,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        latents: Any = None,
        x_init: Any = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        jump_length: int | None = None,
        resamples: int | None = None,
        x0_every: int | None = None,
        output: str | None = None,
        on_error: str = "raise",
        progress: bool | None = None,
        callback: Callable[[int, int, np.ndarray], bool | None] | None = None,
        **aliases: Any,
    ) -> Any:
        """n samples: uint8 [n, H, W, C] for images, else float32 [n, *shape], as `ddpm_rt.Images`.

        diffusers' names are accepted too: num_inference_steps, guidance_scale, class_labels, output_type.

        Args:
            labels: a class number or name, repeated; or n of them; -1, or None inside a list, is unconditional. None: each
                image's class is drawn from its seed.
            scale: guidance s of u + s (c - u) (Ho & Salimans 2207.12598 eq. 6 with s = 1 + w); 1: conditional only.
            w: Ho & Salimans' weight, scale = 1 + w.
            steps: between noise levels; one network evaluation each with most samplers.
            sampler: one of `ddpm_rt.samplers()`, with its citation there and in docs/samplers.md; or a `ddpm_rt.Table`.
            eta: share of the noise of an ancestral step, 0 to 1 (DDIM eq. 16).
            clip: "none", "keep_eps" or "rederive".
            variance: "fixed_small" or "fixed_large", DDPM section 3.2; "learned", "learned_range" for networks that have them.
            grid: one of `ddpm_rt.grids()`, "ddimN", or section counts such as "10,15,20".
            compat: "diffusers", "guided-diffusion", "k-diffusion" or "edm": every convention of that project at once.
            sampler_options: of the one sampler and its grid, {"order": 3, "final_sigma": "sigma_min", ...}.
            guidance_rescale: phi of Lin et al. 2305.08891 section 3.4, 0 to 1.
            guidance_interval: (lo, hi]: noise levels sigma / alpha that are guided; elsewhere the scale is 1 (2404.07724).
            threshold: (p, cap) of dynamic thresholding (Imagen 2205.11487 section 2.3), in place of the clip.
            cond: the plan's conditions by name (docs/conditions.md): float32, one for all images or n of them; sequences of own lengths.
            negative: labels in the null label's place, one or n of them; or a mapping as cond, in place of null values.
            guide: an engine whose network takes the null label's place (autoguidance 2406.02507), with the same labels.
            classifier_scale: weight of a classifier's gradient, of a plan that has one (2105.05233).
            seed: image i uses seed + i mod 2^64. None: a fresh one, in the result's `.seeds`.
            seeds: one per image, instead of seed.
            latents: unit noise to start from, float32 [n, *shape], multiplied by the sampler's initial sigma.
            x_init: the first state exactly, float32 [n, *shape].
            image: uint8 [n, H, W, C] or float32 [n, *shape] in the data's range, one or n; for strength and mask (docs/editing.md).
            strength: image to image: only the last floor(steps * strength) steps are taken, 0 to 1 (2108.01073).
            mask: 1 keeps image, 0 is painted anew (RePaint 2201.09865): bool or float32 [H, W], [n, H, W] or [n, *shape].
            jump_length: of mask: levels that RePaint goes back at a time.
            resamples: of mask: how often each stretch is passed; 1 never goes back.
            x0_every: every k-th prediction, counted back from the last, is in the result's `.x0` float32 [n, predictions, *shape].
            output: "uint8", "float" (the final state, never clamped), "pil", "torch" (on the engine's device) or "dlpack".
            on_error: "raise" a NumericError if an image is not finite, or "keep" it and list it in `.bad`.
            progress: a bar; None: on a terminal, after half a second.
            callback: callback(row, rows, x0) after every row; x0 float32 [m, *shape], read-only, the predictions of the images
                in flight. Returning False cancels; what it raises is raised here.

        Raises:
            OptionError, ShapeError: before anything runs. NumericError, BackendError, DeviceError.
        """
        given = dict(locals())
        return given.pop("self")._run(given, given.pop("aliases"))

    def _run(self, given: dict[str, Any], aliases: Mapping[str, Any], invert: int | None = None) -> Any:
        core = self._open_core()
        given = options.resolve_aliases("sample", given, aliases)
        kind = call.output_kind(given["output"], self._model)
        arguments = {**call.arguments_of(given, self._model), "invert": invert}
        watcher = call.checked_callback(given["callback"])
        guiding = self._guided_by(given["guide"])
        out, target = call.allocate(arguments["n"], self._model, kind)
        bar = Progress(given["progress"], self._model.name)
        sampler = given["sampler"]
        request = core.submit(target, self._model.shape, arguments, watcher, guiding)
        with self._lock:
            self._running += 1
        try:
            call.warn_of_defects(given, self._model, self._warned, 4)
            self._wait(request, bar)
            return self._wrap(out, request, kind, arguments, sampler)
        except NumericError as e:
            if e.images is None:  # not the callback's own
                e.images = self._wrap(out, request, kind, arguments, sampler)
                e.bad = e.images.bad
            raise
        finally:
            bar.close()
            del request  # while this call still counts as running: releasing it gives up the GIL once more
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    core.forget_denoiser_error()

    bits_per_dim = likelihood.bits_per_dim

    def _guided_by(self, guide: Engine | None) -> _core.Engine | None:
        if guide is not None and not isinstance(guide, Engine):
            raise OptionError(f"guide: expected a ddpm_rt.Engine, got {type(guide).__name__}")
        if guide is not None and guide not in self._guides:
            self._guides.append(guide)  # its network runs in this engine too, as long as this one lives
        return None if guide is None else guide._open_core()

    def _wait(self, request: _core.Request, bar: Progress) -> None:
        """Waits in short slices, so that signals are seen between them; raises what the request failed with."""
        try:
            while not request.wait(_SLICE_SECONDS):
                bar.update(*request.progress())
        except BackendError as e:
            raise e from self._core.denoiser_error(str(e))
        except BaseException:  # Ctrl-C: at once; the tick in progress ends by itself and writes nothing of this request
            request.cancel()
            raise
        finally:
            del request  # a traceback keeps this frame

    def _wrap(self, out: Any, request: _core.Request, kind: str, arguments: Mapping[str, Any], sampler: Any) -> Any:
        provenance = call.provenance(request.result(), self.info(), self._model, sampler, arguments["scale"])
        return images.wrapped(out, kind, provenance)

    def info(self) -> dict[str, Any]:
        """Backend, versions, precision, threads, buckets, invariance probe, shape, schedule, defaults, fingerprint."""
        return json.loads(self._open_core().info())

    def close(self) -> None:
        """Cancels what runs and ends the engine's threads. A second call does nothing."""
        if self._pid == os.getpid():
            self._close_core()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ddpm_rt.Engine {self._model.name!r} {list(self._model.shape)}{'' if self._close_core.alive else ', closed'}>"

    def _open_core(self) -> _core.Engine:
        if self._pid != os.getpid():
            raise DeviceError(
                f"engine: expected the process that opened it ({self._pid}), got a fork of it ({os.getpid()}); "
                "open an engine in the child"
            )
        return self._core
