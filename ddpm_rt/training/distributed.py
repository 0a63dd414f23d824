"""What torchrun's processes share: the gradients, and nothing else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import torch
from torch import distributed as dist
from torch import nn


@dataclasses.dataclass(frozen=True)
class Group:
    """This process's place among those of the run. One process is a group of one, without any communication."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Group:
        """Joins the processes that torchrun started (RANK and WORLD_SIZE in the environment), or stands alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([g.reshape(-1) for g in grads]))
        for g, part in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(part.view_as(g))

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
