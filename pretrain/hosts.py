"""The hosts of a run as DeepSpeed's launcher has them: their names, and its connections to them.

The launcher tells neither to the ranks, but both to the process on each host that starts its ranks: on the command line
of the parent.
"""

import base64
import json
from pathlib import Path

import psutil

WORLD = "--world_info="
OF_THIS_RUN = (WORLD, "--master_addr=", "--master_port=")


def of_ranks() -> list[str] | None:
    """Name of each rank's host, in the order of ranks; None where this process was not started by `deepspeed`."""
    slots = _slots(_parent())
    return slots and [host for host, devices in slots.items() for _ in devices]


def hang_up(lost: set[int]) -> None:
    """End the launcher's connections to the hosts of `lost` ranks, where it runs on this host.

    ssh does not see that a host is gone, unless its ServerAliveInterval is set, and the launcher would wait for it.
    """
    parent = _parent()
    slots, rank = _slots(parent) or {}, 0
    run = [argument for argument in parent if argument.startswith(OF_THIS_RUN)]
    for number, devices in enumerate(slots.values()):
        if lost.issuperset(range(rank, rank + len(devices))):
            _end_ssh({*run, f"--node_rank={number}"})
        rank += len(devices)


def _end_ssh(arguments: set[str]) -> None:
    """Terminate the ssh processes of this host whose command line holds all arguments."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if Path(command[0]).name == "ssh" and arguments.issubset(" ".join(command).split()):
            try:
                process.terminate()
            except psutil.Error:  # has ended by itself, or is another user's
                continue


def _parent() -> list[str]:
    """The command line of the process that started this one; empty where it cannot be told."""
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []  # none where a container was entered to start this process
    except psutil.Error:  # not to be read, as another user's
        return []


def _slots(command: list[str]) -> dict[str, list[int]] | None:
    """By host, its devices in use, as the launcher's command line has them."""
    world = next((argument.removeprefix(WORLD) for argument in command if argument.startswith(WORLD)), None)
    return world and json.loads(base64.urlsafe_b64decode(world))
