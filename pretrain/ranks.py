"""What the ranks of a run share: who they are, sums over them, and errors on which all agree."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from data_prep.errors import InputError, one_line
from pretrain import hosts, pre_emption
from pretrain.faults import fault_of
from pretrain.heartbeat import FAILED, Heart, Member, Monitor
from pretrain.slurm import from_slurm

# One host may read Python and PyTorch from a cold network disk, another from its cache.
SECONDS_TO_JOIN = 120.0
# For what one rank does while the others wait; a rank that is lost is seen by its heartbeat.
MOST_OF_A_COLLECTIVE = timedelta(minutes=30)

HEARTBEAT_TIMEOUT = 60.0

_heart: Heart | None = None  # of a run of several ranks
_store: dist.Store | None = None  # held by its first rank


@contextmanager
def together() -> Iterator[None]:
    """Within, what ends one rank ends all, by one line that names it; SIGTERM and Ctrl-C do, too. Several ranks end
    their processes on leaving.

    Alone, an `InputError`, Ctrl-C or a bug is left to the caller. Ends the process group that `join` joined.
    """
    global _heart
    if "RANK" not in os.environ:
        os.environ |= from_slurm(os.environ)
    with pre_emption.obeyed():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            with _alone():
                yield
            return
        _heart = _meet(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        try:
            _heart.wait_for_all()
            yield
            leave()
        except SystemExit:  # as --help does, on all ranks
            _heart.leave()
            raise
        except BaseException as error:
            _heart.fail(fault_of(error))
        _heart.leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # taking down all that was imported costs seconds, of which a scheduler gives few after SIGTERM


@contextmanager
def _alone() -> Iterator[None]:
    try:
        yield
    except (InputError, KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        fault = fault_of(error)
        if fault.trace:
            raise
        print(fault.line(), file=sys.stderr)
        raise SystemExit(fault.code) from None
    finally:
        leave()


def _meet(rank: int, world_size: int) -> Heart:
    """Rank 0 starts the monitor; the others find it by the store that the launcher's MASTER_ADDR and MASTER_PORT name,
    through which the process group will be joined, too. Ends the process where they do not find it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own store
    key = f"genebert/monitor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    first_here = int(os.environ["LOCAL_RANK"]) == 0
    try:
        if rank > 0:
            _wait_for(address, port)
        store = dist.TCPStore(
            *(address, port, world_size),
            is_master=rank == 0 and not agent,
            timeout=timedelta(seconds=SECONDS_TO_JOIN),
            wait_for_workers=False,
            multi_tenant=True,  # shared with the process group's
        )
        if rank == 0:
            monitor = Monitor(world_size, HEARTBEAT_TIMEOUT, SECONDS_TO_JOIN, hosts.of_ranks())
            store.set(key, json.dumps({"port": monitor.port, "token": monitor.token}))
            global _store
            _store = store  # goes with its last reference
            return monitor
        found = json.loads(store.get(key))
        connection = socket.create_connection((address, found["port"]), SECONDS_TO_JOIN)
        # Where rank 0 is lost, one rank of each host says so; on its own host, the second.
        return Member(connection, rank, found["token"], HEARTBEAT_TIMEOUT, speaks=first_here or rank == 1)
    except (OSError, dist.DistError) as error:
        if rank == 0:
            message = (
                f"port {port} of {socket.gethostname()} cannot be used: {one_line(error)}; give another --master_port"
            )
        else:
            message = f"rank {rank} on {socket.gethostname()}: rank 0 cannot be reached at {address}: {one_line(error)}"
        if first_here:
            print(f"error: {message}", file=sys.stderr)
        raise SystemExit(FAILED) from None


def _wait_for(address: str, port: int) -> None:
    """Return once the port listens. Raises `OSError` after SECONDS_TO_JOIN; PyTorch's own wait is loud."""
    until = time.monotonic() + SECONDS_TO_JOIN
    while True:
        try:
            socket.create_connection((address, port), max(0.1, until - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def join(timeout: float = HEARTBEAT_TIMEOUT) -> None:
    """Join the process group that the launcher describes. timeout: seconds of silence after which a rank is given up.

    CUDA takes nccl, a CPU gloo, whose ranks share the machine's cores.
    """
    if "RANK" not in os.environ:
        for several in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
            if int(os.environ.get(several, 1)) > 1:
                raise InputError(
                    f"{several} is {os.environ[several]}, but no rank is named; start the ranks by deepspeed"
                )
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if _heart:
        _heart.timeout = timeout
    if on_cuda():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        if "OMP_NUM_THREADS" not in os.environ:
            on_this_host = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // on_this_host))
        # An all-reduce for inference that DeepSpeed would compile at the first run; training does not call it, and it
        # needs a compiler that a user's machine may not have.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False, timeout=MOST_OF_A_COLLECTIVE)


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


def say(message: str) -> None:
    """Print, on the first rank alone."""
    if is_first():
        print(message, flush=True)


def gathered(value: object) -> list:
    """Every rank's value, in the order of ranks."""
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_agreement(value: object, what: str) -> None:
    """Raise `InputError` where `value` differs between ranks, as on nodes without a common file system."""
    values = gathered(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(
                f"{what}: rank 0 sees {values[0]}, rank {rank} sees {other}; all nodes must share the folder"
            )


def raise_together(error: InputError | None) -> None:
    """Raise the first rank's `InputError` on every rank; pass where no rank has one."""
    where = f"rank {dist.get_rank()} on {socket.gethostname()}: " if dist.get_world_size() > 1 else ""
    message = next((message for message in gathered(f"{where}{error}" if error else None) if message), None)
    if message:
        raise InputError(message)


def saved(step: int) -> None:
    """From here on, the line that ends a run names the step from which the next one goes on."""
    if _heart:
        _heart.hint = f"; step {step} is saved: the same command goes on from there"
