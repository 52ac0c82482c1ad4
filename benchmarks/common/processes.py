"""Data-parallel training in the processes that torchrun starts.

Without torchrun there is one process, and nothing here has an effect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number. Process 0 writes the results."""
    return int(os.environ.get("RANK", "0"))


def lacks_gpus() -> bool:
    """Whether processes would have to share this machine's GPUs, which NCCL refuses."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group, and leave it at the end.

    Each process of a machine has a GPU of its own as torch's current one. Tensors on a GPU travel
    by NCCL, those on a CPU by Gloo.
    """
    if count() == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        # There may be more processes than GPUs if they train on the CPU: see `lacks_gpus`.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def broadcast(content: Any = None) -> Any:
    """Send an object from process 0 to all others."""
    box = [content]
    if count() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def local_batch(batch: Tensor) -> Tensor:
    """This process's part of a batch, or all of it if the batch does not divide evenly.

    The mean of the gradients of unequal parts would not be the gradient of the batch.
    """
    return batch.chunk(count())[rank()] if len(batch) % count() == 0 else batch


def data_parallel(net: nn.Module) -> nn.Module:
    """A net whose gradients are the mean over all processes."""
    return DistributedDataParallel(net) if count() > 1 else net
