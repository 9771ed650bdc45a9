"""Memory of the device that a rank trains on, a GPU or the host's: what is free, and what a piece of work takes.

On a CPU that is resident memory as Linux counts it; on other systems it is not known.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from pretrain import ranks

PROCESS = Path("/proc/self")
MEMORY = Path("/proc/meminfo")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def device_name() -> str:
    """The GPU's name and memory, or cpu."""
    if not ranks.on_cuda():
        return "cpu"
    properties = torch.cuda.get_device_properties(ranks.device())
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def free_memory(ranks_on_host: int) -> int | None:
    """Bytes that this rank may still allocate, None where that is not known. Ranks on a CPU share the host's alike."""
    if ranks.on_cuda():
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    try:
        available = [_bytes(MEMORY, "MemAvailable"), *_left_in_control_groups()]
    except OSError:
        return None
    return min(available) // ranks_on_host


class Meter:
    """Peaks of pieces of work, beside what is allocated when it is made. Raises `OSError` where they are not known."""

    def __init__(self):
        release()
        self.before = _allocated()

    def peak(self, work: Callable[[], object]) -> int | None:
        """Bytes; None where the device has not the memory."""
        _restart_peak()
        return _peak() - self.before if fits(work) else None


def fits(work: Callable[[], object], held: int = 0) -> bool:
    """False where the device has not the memory for a piece of work, with `held` bytes occupied beside it."""
    try:
        occupied = torch.empty(held, dtype=torch.uint8, device=ranks.device())
        work()
        del occupied
        if ranks.on_cuda():
            torch.cuda.synchronize()
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the allocator of a CPU has no type of its own
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        return False
    return True


def release() -> None:
    """Give back what is cached, and begin the peak that a run reports anew."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: what is freed stays in the process until then
    if trim:
        trim(0)
    if ranks.on_cuda():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _allocated() -> int:
    return torch.cuda.memory_allocated() if ranks.on_cuda() else _bytes(PROCESS / "status", "VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if ranks.on_cuda() else _bytes(PROCESS / "status", "VmHWM")


def _restart_peak() -> None:
    """Begin the peak anew with what is allocated now; of a process Linux does so on the 5."""
    if ranks.on_cuda():
        torch.cuda.reset_peak_memory_stats()
    else:
        (PROCESS / "clear_refs").write_text("5")


def _left_in_control_groups() -> list[int]:
    """Bytes left under the limit of each control group (version 2) that this process is in; file cache is not used."""
    own = next((line for line in (PROCESS / "cgroup").read_text().splitlines() if line.startswith("0::")), "0::/")
    group = CONTROL_GROUPS / own.removeprefix("0::").strip("/")
    left = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(CONTROL_GROUPS):
            break
        limit = folder / "memory.max"
        if limit.is_file() and limit.read_text().strip() != "max":
            used = int((folder / "memory.current").read_text()) - _bytes(folder / "memory.stat", "inactive_file", 1)
            left.append(int(limit.read_text()) - used)
    return left


def _bytes(path: Path, name: str, unit: int = 1024) -> int:
    """A named number of a file of Linux's, kB unless `unit` says otherwise. Raises `OSError` where it is not there."""
    for line in path.read_text().splitlines():
        fields = line.replace(":", " ").split()
        if fields[0] == name:
            return int(fields[1]) * unit
    raise OSError(f"{path}: no {name}")
