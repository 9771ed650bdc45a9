"""Who a process is among the tasks that Slurm's `srun` started, in the variables that PyTorch and DeepSpeed read."""

import re
from collections.abc import Mapping

from data_prep.errors import InputError

FIRST_PORT, PORTS = 10_000, 20_000  # below those that Linux gives to outgoing connections
BETWEEN_STEPS = 7919  # ports; jobs on one host often have numbers that follow on each other


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task; empty where it is alone.

    MASTER_ADDR is the host of the first task, and MASTER_PORT follows from the job's and the step's number, so that
    those on one host do not meet; either stays as it is where it is set. A task that sees a single GPU
    (`--gpus-per-task=1`) counts as alone on its host, and takes that.
    Raises `InputError` where several tasks were asked for and this process is none of them.
    """
    n_tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    if int(n_tasks) == 1:
        return {}
    if "SLURM_PROCID" not in environment:
        raise InputError(
            f"Slurm made room for {n_tasks} tasks, and this process is none: start it by srun or deepspeed"
        )
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    master = environment.get("MASTER_ADDR") or (first_host(hosts) if hosts else None)
    if not master:
        raise InputError("SLURM_STEP_NODELIST is not set; name the host of the first task as MASTER_ADDR")
    job, step = (int(environment.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = environment.get("MASTER_PORT") or FIRST_PORT + (job + step * BETWEEN_STEPS) % PORTS
    gpus = environment.get("CUDA_VISIBLE_DEVICES", "")
    if gpus and "," not in gpus:
        local_rank, on_this_host = 0, 1
    else:
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "1"
        by_host, host = tasks_by_host(tasks), int(environment.get("SLURM_NODEID", 0))
        if host >= len(by_host):
            raise InputError(
                f"SLURM_NODEID is {host}, but SLURM_STEP_TASKS_PER_NODE has no such host ({tasks}); start it by srun"
            )
        local_rank, on_this_host = environment.get("SLURM_LOCALID", 0), by_host[host]
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": n_tasks,
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(on_this_host),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
    }


def first_host(hosts: str) -> str:
    """First name of a list in Slurm's short form: `gpu[007-010,12],login1` begins with gpu007."""
    first = re.match(r"([^,\[]|\[[^]]*\])+", hosts)[0]
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first)


def tasks_by_host(tasks: str) -> list[int]:
    """Tasks of each host, from Slurm's short form: `8(x3),4` is 8, 8, 8, 4."""
    counts = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(number)] * int(times or 1)
    return counts
