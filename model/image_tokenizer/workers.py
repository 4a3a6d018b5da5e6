"""The few collectives that training the image tokenizer needs, for one process or for ``torch.distributed``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Workers:
    """All workers of the training; one if no process group is up when it is made."""

    def __init__(self) -> None:
        self._up = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if self._up else 0
        self.world: int = dist.get_world_size() if self._up else 1
        nccl = self._up and dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def sum(self, x: Tensor) -> Tensor:
        """The sum over workers, on each; ``x`` may be overwritten."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over workers, on each; ``x`` may be overwritten."""
        return self.sum(x.contiguous()) / self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any worker."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(int(flag), device=self._device)) > 0)

    def largest(self, number: int) -> int:
        """The largest of all workers' numbers."""
        if self.world == 1:
            return number
        found = torch.tensor(number, device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, x: Tensor) -> Tensor:
        """All workers' rows in order of rank, on each; every worker must give equally many."""
        if self.world == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def first(self, x: Tensor) -> Tensor:
        """The first worker's, on each; ``x`` may be overwritten."""
        if self.world > 1:
            dist.broadcast(x, 0)
        return x

    def barrier(self) -> None:
        """Waits for all."""
        if self.world > 1:
            dist.barrier()
