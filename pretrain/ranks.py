"""What the ranks of a run share: who they are, sums over them, and errors on which all agree."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from data_prep.errors import InputError

SECONDS_FOR_THE_FIRST = 10


def join() -> None:
    """Join the process group that the launcher describes; alone, be a world of one.

    CUDA takes nccl, a CPU gloo, whose ranks share the machine's cores.
    """
    if "RANK" not in os.environ:
        for several in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"):
            if int(os.environ.get(several, 1)) > 1:
                raise InputError(
                    f"{several} is {os.environ[several]}, but no rank is named; start the ranks by deepspeed"
                )
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if on_cuda():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        if "OMP_NUM_THREADS" not in os.environ:
            on_this_host = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // on_this_host))
        # An all-reduce for inference that DeepSpeed would compile at the first run; training does not call it, and it
        # needs a compiler that a user's machine may not have.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def leave() -> None:
    """End the process group; without this each rank lingers at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_cuda() -> bool:
    """True where DeepSpeed runs on CUDA; `DS_ACCELERATOR=cpu` keeps it off."""
    return get_accelerator().device_name() == "cuda"


def is_first() -> bool:
    return dist.get_rank() == 0


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda() else torch.device("cpu")


def summed(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over all ranks."""
    values = values.clone()
    dist.all_reduce(values)
    return values


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the first rank alone report an `InputError`, which all ranks meet at about the same time.

    The launcher ends every rank as soon as one has failed, so the others give the first a moment to speak; a rank that
    is still there after it met an error of its own.
    """
    try:
        yield
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            raise
        time.sleep(SECONDS_FOR_THE_FIRST)
        raise InputError(f"rank {rank} on {socket.gethostname()}: {error}") from None


def check_agreement(value: str, what: str) -> None:
    """Raise `InputError` where `value` differs between ranks, as on nodes without a common file system."""
    values: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(values, value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(
                f"{what}: rank 0 sees {values[0]}, rank {rank} sees {other}; all nodes must share the folder"
            )


def raise_together(error: InputError | None) -> None:
    """Raise the first rank's `InputError` on every rank; pass where no rank has one."""
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, str(error) if error else None)
    message = next((message for message in messages if message), None)
    if message:
        raise InputError(message)
