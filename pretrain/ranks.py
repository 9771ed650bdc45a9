"""What the ranks of a run share: who they are, sums over them, and errors on which all agree."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from data_prep.errors import InputError

SECONDS_FOR_THE_FIRST = 10


def join() -> None:
    """Join the process group that the launcher describes; alone, be a world of one.

    CUDA takes nccl, a CPU gloo, whose ranks share the machine's cores.
    """
    import deepspeed

    if "RANK" not in os.environ:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        if "OMP_NUM_THREADS" not in os.environ:
            on_this_host = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // on_this_host))
        # An all-reduce for inference that DeepSpeed would compile at the first run; training does not call it, and it
        # needs a compiler that a user's machine may not have.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def leave() -> None:
    """End the process group; without this each rank lingers at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    return dist.get_rank() == 0


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def summed(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over all ranks."""
    values = values.clone()
    dist.all_reduce(values)
    return values


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the first rank alone report an `InputError`, which all ranks meet at about the same time.

    The launcher ends every rank as soon as one has failed, so the others give the first a moment to speak.
    """
    try:
        yield
    except InputError:
        if os.environ.get("RANK", "0") == "0":
            raise
        time.sleep(SECONDS_FOR_THE_FIRST)
        raise SystemExit(2) from None


def raise_together(error: InputError | None) -> None:
    """Raise the first rank's `InputError` on every rank; pass where no rank has one."""
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, str(error) if error else None)
    message = next((message for message in messages if message), None)
    if message:
        raise InputError(message)
