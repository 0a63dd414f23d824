"""A lane of the GPU step over torch's memory: slots, tables, lists and registers, and what float64 says of one row of them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

import ddpm_rt
from ddpm_rt import row as r
from ddpm_rt.reference import step as reference

from .gpu_abi import ACTIVE, ALL_NEEDS, NEEDS, NO_PLACE, PREVIEW, ROW_BYTES, TYPES, Lane, Network, Slot, Tensor
from .gpu_setup import Context

COND, UNCOND, GUIDE = range(3)


class LaneCase:
    """`count` samples [channels, pixels] at the first of two rows; x, history, anchor, outputs are normal numbers, what the
    step writes is NaN. roles: which of cond, uncond, guide each sample evaluates, the same for all or a list."""

    def __init__(
        self, ctx: Context, rows: np.ndarray, *, count: int, channels: int, pixels: int, dtype: str = "fp32", nhwc: bool = False,
        roles: Any = (COND,), registers: bool = True, seed: int = 0, order: np.ndarray | None = None, fill: bool = True,
    ) -> None:  # fmt: skip
        torch, self.ctx, self.rows = ctx.torch, ctx, np.ascontiguousarray(rows)
        self.count, self.channels, self.pixels, self.n = count, channels, pixels, channels * pixels
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
        self.nhwc, self.roles = nhwc, roles if isinstance(roles, list) else [tuple(roles)] * count
        self.order = np.arange(count) if order is None else order  # sample of each slot
        learned = int(self.rows["flags"][0]) & (r.LEARNED_VAR | r.LEARNED_RANGE)
        self.out_channels = channels * (2 if learned else 1)
        generator = torch.Generator(device=ctx.at).manual_seed(seed)

        def normal(*shape: int) -> Any:
            return torch.randn(shape, device=ctx.at, generator=generator) if fill else torch.zeros(shape, device=ctx.at)

        self.stride = -(-self.n // 64) * 64
        self.places = {}
        for sample, used in enumerate(self.roles):
            for role in used:
                self.places[sample, role] = len(self.places)
        rows_of_list = max(1, len(self.places))
        self.eps = normal(rows_of_list, self.out_channels, pixels).to(self.dtype)  # canonical; lists have their own order
        flags = int(self.rows["flags"][0])
        self.grad = normal(rows_of_list, channels, pixels).to(self.dtype) if flags & r.GRAD else None
        per_slot = {name: normal(count, self.stride) for name in ("x", "h0", "h1", "h2", "anchor")[: 5 if registers else 1]}
        extra = ("known", "mask", "x0_true") if flags & (r.BLEND | r.VLB) else ()
        per_slot |= {name: normal(count, self.stride) for name in extra}
        if "mask" in per_slot:
            per_slot["mask"] = per_slot["mask"].clamp(0, 1)
        self.samples = {k: v[:, : self.n].clone() if fill else None for k, v in per_slot.items()}
        index = torch.as_tensor(self.order, device=ctx.at)
        self.state = {k: v[index].contiguous() if fill else v for k, v in per_slot.items()}
        if fill:
            for v in self.state.values():
                v[:, self.n :] = float("nan")
        if registers:
            self.state["preview"] = torch.full((count, self.stride), float("nan"), device=ctx.at)
        self.kl = torch.full((count, len(rows)), float("nan"), dtype=torch.float64, device=ctx.at)
        self.status = torch.zeros(count, dtype=torch.int32, device=ctx.at)
        self.out_list = self._as_list(self.eps)
        self.in_list = torch.full((rows_of_list, channels * pixels), float("nan"), device=ctx.at).to(self.dtype)
        self.grad_list = None if self.grad is None else self._as_list(self.grad)
        self.table = torch.frombuffer(bytearray(self.rows.tobytes()), dtype=torch.uint8).to(ctx.at)
        scratch = ctx.api.scratch_bytes(count, self.n)
        self.scratch = torch.zeros(max(1, scratch), dtype=torch.uint8, device=ctx.at)
        self.lane, self.slots = self._lane(TYPES[dtype], registers), None
        self.install()

    def _as_list(self, values: Any) -> Any:
        return (values.transpose(1, 2) if self.nhwc else values).contiguous()

    def _lane(self, kind: int, registers: bool) -> Lane:
        lane = Lane()
        lane.slot_count, lane.channels, lane.pixels, lane.stride = self.count, self.channels, self.pixels, self.stride
        lane.x, lane.status, lane.scratch = self.state["x"].data_ptr(), self.status.data_ptr(), self.scratch.data_ptr()
        if registers:
            for k in range(3):
                lane.history[k] = self.state[f"h{k}"].data_ptr()
            lane.anchor, lane.preview = self.state["anchor"].data_ptr(), self.state["preview"].data_ptr()
        network = Network()
        network.input = Tensor(self.in_list.data_ptr(), kind, self.nhwc, self.channels, self.n)
        network.out = Tensor(self.out_list.data_ptr(), kind, self.nhwc, self.out_channels, self.out_channels * self.pixels)
        if self.out_channels > self.channels:
            shift = (self.channels if self.nhwc else self.n) * self.out_list.element_size()
            network.variance = Tensor(self.out_list.data_ptr() + shift, kind, self.nhwc, self.out_channels, 2 * self.n)
        if self.grad_list is not None:
            network.grad = Tensor(self.grad_list.data_ptr(), kind, self.nhwc, self.channels, self.n)
        self.times = self.ctx.torch.zeros(len(self.eps), device=self.ctx.at)
        network.t = self.times.data_ptr()
        lane.network[0] = lane.network[1] = network
        return lane

    def seed(self, sample: int) -> int:
        return 1000 + sample

    def scale(self, sample: int) -> tuple[float, float]:
        return 1.5 + 0.25 * (sample % 8), 0.25

    def install(self) -> None:
        """Every slot at its first row."""
        slots = (Slot * self.count)()
        is_last = len(self.rows) == 1
        for i, sample in enumerate(map(int, self.order)):
            slot = slots[i]
            slot.table, slot.row_count, slot.flags = self.table.data_ptr(), len(self.rows), ACTIVE
            if "preview" in self.state:
                slot.flags |= PREVIEW
            slot.seed = self.seed(sample)
            slot.scale, slot.scale2 = self.scale(sample)
            for role in range(3):
                slot.places[role] = slot.next[role] = self.places.get((sample, role), NO_PLACE)
                if is_last:
                    slot.next[role] = NO_PLACE
            at = 4 * i * self.stride
            if "known" in self.state:
                slot.known, slot.mask, slot.x0_true = (self.state[k].data_ptr() + at for k in ("known", "mask", "x0_true"))
                slot.kl = self.kl.data_ptr() + 8 * i * len(self.rows)
        data = self.ctx.torch.frombuffer(bytearray(bytes(slots)), dtype=self.ctx.torch.uint8).to(self.ctx.at)
        if self.slots is None:
            self.slots = data
            self.lane.slots = data.data_ptr()
        else:
            self.slots.copy_(data)
        self.ctx.wait()

    # ---- running

    def step(self, needs: int = ALL_NEEDS) -> None:
        self.ctx.api.check(self.ctx.api.step(ctypes.byref(self.lane), needs, self.ctx.stream))

    def advance(self) -> None:
        self.ctx.api.check(self.ctx.api.advance(ctypes.byref(self.lane), self.ctx.stream))

    def needs(self) -> int:
        """gpu_needs of kernels/step_gpu.h, of the first row."""
        row, flags = self.rows[0], int(self.rows["flags"][0])
        evaluates = not flags & r.NO_EVAL
        needs = NEEDS["pair"] if evaluates and any({COND, UNCOND} <= set(roles) for roles in self.roles) else 0
        needs |= NEEDS["noise"] if row["wx"][7] != 0 else 0
        uses = "preview" in self.state or flags & (r.PUSH | r.KEEP) or bool((row["wx"][3:7] != 0).any())
        needs |= NEEDS["registers"] if uses else 0
        rare = r.THRESHOLD | r.RESCALE | r.LEARNED_VAR | r.LEARNED_RANGE | r.GRAD | r.BLEND | r.NORM | r.VLB
        needs |= NEEDS["rare"] if flags & rare or (evaluates and any(GUIDE in roles for roles in self.roles)) else 0
        for name, flag in (("rescale", r.RESCALE), ("norm", r.NORM), ("threshold", r.THRESHOLD), ("vlb", r.VLB)):
            needs |= NEEDS[name] if flags & flag else 0
        return needs

    # ---- results, by sample

    def result(self) -> dict[str, np.ndarray]:
        self.ctx.wait()
        back = np.argsort(self.order)
        found = {k: v.cpu().numpy()[back] for k, v in self.state.items()}
        inputs = self.in_list.float().reshape(len(self.in_list), *((self.pixels, self.channels) if self.nhwc else (self.channels, -1)))
        inputs = inputs.transpose(1, 2) if self.nhwc else inputs
        return found | {"in": inputs.cpu().numpy(), "kl": self.kl.cpu().numpy()[back], "status": self.status.cpu().numpy()[back]}

    def expected(self, sample: int) -> reference.Result:
        """reference/step.py in float64, from the numbers that the lists hold."""
        shape, row = (self.channels, self.pixels), self.rows[0]

        def of(name: str) -> np.ndarray:
            return self.samples[name][sample].cpu().numpy().astype(np.float64).reshape(shape)

        def output(role: int, values: Any) -> np.ndarray | None:
            place = self.places.get((sample, role))
            return None if place is None or values is None else values[place].float().cpu().numpy().astype(np.float64)

        seed, index = self.seed(sample), int(row["noise_index"])
        lone = COND if (sample, COND) in self.places else UNCOND
        given = {k: of(k) for k in ("mask", "known", "x0_true")} if "known" in self.samples else {}
        evaluations = reference.Evaluations(
            *(output(role, self.eps) for role in (COND, UNCOND, GUIDE)),
            z=ddpm_rt.noise(seed, index, shape, stream=1).astype(np.float64),
            grad=output(lone, self.grad),
            z_known=ddpm_rt.noise(seed, index, shape, stream=2).astype(np.float64),
            **given,
        )
        scale, scale2 = self.scale(sample)
        state = reference.State(of("x"), tuple(of(f"h{k}") for k in range(3)), of("anchor"))
        next_row = self.rows[1] if len(self.rows) > 1 else None
        return reference.execute(row, next_row, state, evaluations, scale=scale, scale2=scale2)


assert ROW_BYTES == r.ROW.itemsize
