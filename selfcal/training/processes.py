"""Training by several processes at once, started with ``torchrun``.

Every process holds the whole model and all jets, computes its share of each batch, and adds
gradients and denominators to those of the others: the same training as that of one process at the
same batch size, up to the order in which numbers are added.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.errors import Interrupted


@contextmanager
def _with_the_others() -> Iterator[None]:
    """An exchange; that another process is no longer there to take part in it is told as such."""
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL, which have no type for it: a connection was closed
        raise Interrupted(
            "another process of torchrun has ended, or cannot be reached",
            expected="all of them until the end",
            fix="start the same command again: it goes on from the last checkpoint",
        ) from error


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` of ``size``."""

    rank: int
    size: int

    def total(self, tensor: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The sum over all processes, on each of them; without gradient."""
        if self.size == 1:
            return tensor.detach()
        summed = tensor.detach().clone()
        with _with_the_others():
            dist.all_reduce(summed)
        return summed

    def total_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes, in one exchange.

        A parameter without gradient on any of them keeps none: optimisers leave it alone.
        """
        if self.size == 1:
            return
        flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        has_one = torch.stack(
            [part.new_tensor(p.grad is not None) for p, part in zip(parameters, flat, strict=True)]
        )
        summed = self.total(torch.cat([has_one, *flat]))
        first = len(parameters)
        for number, parameter in enumerate(parameters):
            part = summed[first : first + parameter.numel()]
            parameter.grad = part.view_as(parameter) if summed[number] > 0 else None
            first += parameter.numel()

    def equalise(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.size > 1:
            with _with_the_others():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def announce(self, message: str) -> str:
        """The message of the first process, on each of them; it waits for all."""
        if self.size == 1:
            return message
        messages = [message]
        with _with_the_others():
            dist.broadcast_object_list(messages, src=0)
        return messages[0]


ALONE = Processes(0, 1)


def current_processes() -> Processes:
    """Those that have joined (see :func:`joined`), or this one alone."""
    if not dist.is_initialized():
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes of ``torchrun``; alone where there are none.

    GPUs exchange by NCCL, each process on its own; CPUs by gloo.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    try:
        yield current_processes()
    finally:
        dist.destroy_process_group()
