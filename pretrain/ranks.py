"""What the ranks of a run share: who they are, sums over them, and errors on which all agree."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from data_prep.errors import InputError, one_line
from pretrain import hosts, pre_emption
from pretrain.faults import RunError, fault_of
from pretrain.heartbeat import Fault, Heart, Member, Monitor
from pretrain.slurm import from_slurm

# One host may read Python and PyTorch from a cold network disk, another from its cache.
SECONDS_TO_JOIN = "GENEBERT_SECONDS_TO_JOIN", 120.0
SECONDS_TO_ANSWER = timedelta(seconds=30)  # of a store that listens
# For what one rank does while the others wait; a rank that is lost is seen by its heartbeat. NCCL, too, ends a process
# where another's is lost, but, in PyTorch 2.11, only 60 s after it has seen that.
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
    if "RANK" not in os.environ and not {"-h", "--help"} & set(sys.argv):
        os.environ |= from_slurm(os.environ)
    with pre_emption.obeyed():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            with _alone():
                yield
            return
        try:
            _heart = _meet()
            _heart.wait_for_all()
            yield
            leave()
        except SystemExit:  # as --help does, on all ranks
            _heart.leave()
            raise
        except BaseException as error:
            if not _heart:
                _fail_before_meeting(fault_of(error))
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


def _fail_before_meeting(fault: Fault) -> NoReturn:
    """End this process alone, with a line on each host."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(fault.trace + fault.line(), file=sys.stderr, flush=True)
    os._exit(fault.code)  # a thread may still wait for the store


def _meet() -> Heart:
    """Rank 0 starts the monitor; the others find it by the store that the launcher's MASTER_ADDR and MASTER_PORT name,
    through which the process group will be joined, too.

    Raises `RunError` where they do not find it, and `InputError` where the environment is no rank's.
    """
    rank, world_size, local_rank, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    address, host = os.environ.get("MASTER_ADDR"), socket.gethostname()
    if not address:
        raise InputError("RANK is set, but not MASTER_ADDR; start the ranks by deepspeed, torchrun or srun")
    within = _seconds_to_join()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own store
    key = f"genebert/monitor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    instead = "give another --master_port, or MASTER_PORT"

    def store(is_master: bool) -> dist.Store:
        return dist.TCPStore(
            *(address, port, world_size),
            is_master=is_master,
            timeout=SECONDS_TO_ANSWER,
            wait_for_workers=False,
            multi_tenant=True,  # shared with the process group's
        )

    def found() -> dict:
        of_rank_0 = store(is_master=False)
        of_rank_0.set_timeout(timedelta(seconds=within))
        return json.loads(of_rank_0.get(key))

    if rank == 0:
        global _store  # goes with its last reference
        try:
            _store = store(is_master=not agent)
        except (OSError, dist.DistError) as error:
            raise RunError(f"port {port} of {host} cannot be used: {one_line(error)}; {instead}") from None
        monitor = Monitor(world_size, HEARTBEAT_TIMEOUT, within, hosts.of_ranks())
        _store.set(key, json.dumps({"port": monitor.port, "token": monitor.token}))
        return monitor
    here, there = f"rank {rank} on {host}", f"{address}, port {port}"
    try:
        _wait_for(address, port, within)
        answer = _aside(found, within)
        connection = socket.create_connection((address, answer["port"]), within)
        # Where rank 0 is lost, one rank of each host says so; on its own host, the second.
        return Member(connection, rank, answer["token"], HEARTBEAT_TIMEOUT, speaks=local_rank == 0 or rank == 1)
    except dist.DistError as error:
        what = f"what answers at {there}, is not rank 0: {one_line(error)}; another program may have it: {instead}"
        raise RunError(f"{here}: {what}") from None
    except OSError as error:
        raise RunError(f"{here}: rank 0 cannot be reached at {there}: {one_line(error)}") from None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise InputError(
            f"{name} is {value or 'not set'}, not a number; start the ranks by deepspeed, torchrun or srun"
        )
    return int(value)


def _seconds_to_join() -> float:
    name, default = SECONDS_TO_JOIN
    value = os.environ.get(name, str(default))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise InputError(f"{name}={value}: give a number of seconds")
    return seconds


def _aside(call: Callable[[], dict], within: float) -> dict:
    """What `call` gives, from a thread: PyTorch's store hears no signal as it waits, and prints the C++ stack of each
    attempt that fails, which is kept back. Raises `TimeoutError` after `within` seconds."""
    answer: Future[dict] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        threading.Thread(target=run, daemon=True).start()
        return answer.result(within)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _wait_for(address: str, port: int, within: float) -> None:
    """Return once the port listens. Raises `OSError` after `within` seconds; PyTorch's own wait is loud."""
    until = time.monotonic() + within
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


def gathered_rows(rows: torch.Tensor) -> torch.Tensor:
    """[n, ...] of each rank, as many on all, as [ranks * n, ...] in the order of ranks."""
    everywhere = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everywhere, rows.contiguous())
    return everywhere


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


def before_failing(call: Callable[[], None]) -> None:
    """Have the first rank, of several, call this from another thread before a fault ends the run."""
    if _heart:
        _heart.before_failing = call


def saved(step: int) -> None:
    """From here on, the line that ends a run names the step from which the next one goes on."""
    if _heart:
        _heart.hint = f"; step {step} is saved: the same command goes on from there"
