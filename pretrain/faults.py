"""What can end a run: an exception as one line, and numbers that are no longer finite."""

import math
import socket
import traceback

import torch
import torch.distributed as dist

from data_prep.errors import InputError, one_line
from pretrain.heartbeat import INTERRUPTED, TERMINATED, Fault
from pretrain.pre_emption import Terminated

BAD_INPUT = 2


class RunError(Exception):
    """The run cannot go on. The message says why in one line; exit code 1."""


def fault_of(error: BaseException) -> Fault:
    """What ranks say of an exception. A trace goes with it where the exception is a bug."""
    if isinstance(error, InputError):
        return Fault(str(error), BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        return Fault("interrupted", INTERRUPTED)
    if isinstance(error, Terminated):
        return Fault("ended by SIGTERM before its first step", TERMINATED)
    if isinstance(error, RunError):
        return Fault(str(error))
    if isinstance(error, RuntimeError) and "connectFullMesh" in str(error):
        return Fault(
            "gloo does not reach the other ranks: name this host's network interface in ~/.deepspeed_env, as in "
            f"GLOO_SOCKET_IFNAME=eth0 ({one_line(error)})"
        )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return Fault(f"could not exchange data with the other ranks: {one_line(error)}", follows=True)
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return Fault(f"lost a process that reads data: {one_line(error)}; if memory is short, give fewer --workers")
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out"):
        return Fault(f"waited too long for data: {one_line(error)}; the storage of --shards hangs or is too slow")
    if isinstance(error, OSError) and str(error):
        return Fault(" ".join(str(error).split()))
    if isinstance(error, torch.OutOfMemoryError):
        return Fault(f"{one_line(error)}; give a smaller --micro_batch, or --activation_checkpointing")
    if isinstance(error, (OSError, MemoryError)):
        return Fault(one_line(error))
    return Fault(one_line(error), trace="".join(traceback.format_exception(error)))


def check_finite(step: int, metrics: dict[str, float], *of_this_rank: torch.Tensor) -> None:
    """Raise `RunError` on all ranks where a metric, the same on all of them, is not finite.

    of_this_rank: what its own samples gave; the error names the ranks where that is not finite.
    """
    if all(map(math.isfinite, metrics.values())):
        return
    names = ", ".join(name for name, value in metrics.items() if not math.isfinite(value))
    finite = all(bool(values.isfinite().all()) for values in of_this_rank)
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, None if finite else f"rank {dist.get_rank()} on {socket.gethostname()}")
    first = [where for where in every if where]
    where = "all ranks" if len(first) == len(every) else ", ".join(first)
    raise RunError(
        f"step {step}: no longer finite: {names}{f', on {where} already the outputs' if first else ''}; this step is "
        "not saved; look for a learning rate that is too high, or samples whose binding is not finite"
    )
