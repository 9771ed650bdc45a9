"""Speed, memory and errors of the kernels, as CSV on stdout, the machine first.

    python tests/bench/kernels.py
    python tests/bench/kernels.py infonce

On a CUDA device the Triton kernels: after seven minutes nothing new is measured. Elsewhere the references, at small
sizes, in some three.

`errors`: what the loss and its gradients lose against fp64, in ours and in eager code whose products are in the dtype
and the rest in fp32. `masking`: tokens/s, and bytes that cross to the GPU, beside transformers' collator and NumPy.
`infonce`: time and memory of forward + backward beside eager, compiled and checkpointed code, open_clip and Inf-CL
(`pip install open_clip_torch inf-cl`; where one is missing or fails, its row says why). Time is that of a call, with
what the GPU waits for the host; gpu_busy_ms is without. Memory is the peak of a call, beyond what was there before.
Lines `# goal` say which goals hold.
"""

# ruff: noqa: E402
import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities
from triton.testing import do_bench

sys.path[0] = str(Path(__file__).parents[2])  # this file has the package's name, and its folder would come first

from kernels import dispatch
from tests.bench import infonce, masking
from tests.bench.machine import describe_machine
from tests.bench.print_csv import Row, print_csv

PACKAGES = ("torch", "triton", "numpy", "transformers", "open_clip_torch", "inf-cl")
BENCHES = {  # the quick ones first: what the time does not suffice for is left out
    "errors": (lambda device, _: infonce.errors(device), infonce.error_goals),
    "masking": (masking.bench, masking.goals),
    "infonce": (infonce.bench, infonce.goals),
}
QUANTILES = [0.2, 0.5, 0.8]
TOTAL_S = 420  # after which nothing new is measured
CALL_S = 30  # what takes longer is not measured
REPEATS_S = 5  # calls that take longer, all together, are not repeated
FEWEST_CALLS = {"cuda": 8, "cpu": 3}  # `do_bench` makes one, five, one and one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", choices=tuple(BENCHES), help="default: all")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(describe_machine(PACKAGES))
    try:
        print(f"# ours on {device}: {dispatch.chosen(device)}", flush=True)
    except ValueError as error:
        parser.error(str(error))
    measure = Measure(TOTAL_S)
    for name in [arguments.bench] if arguments.bench else BENCHES:
        bench, goals = BENCHES[name]
        print(f"# {name}", flush=True)
        rows = print_csv(bench(device, measure))
        for text, figures, fulfils in goals(rows):
            verdict = "holds" if all(map(fulfils, figures.values())) else "does not hold"
            listed = "; ".join(f"{where}: {figure:.3g}" for where, figure in figures.items())
            print(f"# goal: {text}: {f'{verdict} ({listed})' if figures else 'not measured'}", flush=True)


class Measure:
    """Measures calls for a limited time."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def __call__(self, step: Callable[[], object], device: torch.device, expected_s: float = 0.0) -> tuple[Row, object]:
        """Time in ms and peak memory in MiB of a call, or in `note` why there are none; and what its first call gave.

        expected_s: of a call; where that is too long, it is not made.
        """
        row: Row = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "gpu_busy_ms", "launches", "peak_mib", "note"), "")
        left = self.end - time.monotonic()
        if expected_s > CALL_S:
            return row | {"note": f"skipped: a call would take some {expected_s:.0f} s"}, None
        if 2 * expected_s >= left:
            return row | {"note": "skipped: no time left"}, None
        result = None
        try:
            result = step()  # compiles
            seconds, row["peak_mib"] = once(step, device)
            row["p20_ms"], row["p50_ms"], row["p80_ms"] = quantiles_ms(step, device, seconds)
            if repeats(device, seconds) == 1:
                row["note"] = "one call"
            elif device.type == "cuda" and ProfilerActivity.CUDA in supported_activities():
                row["gpu_busy_ms"], row["launches"] = on_gpu(step)
        except Exception as error:  # that a peer fails is a result
            message = str(error).strip().partition("\n")[0]
            row |= {"peak_mib": "", "note": f"{type(error).__name__}: {message}".removesuffix(": ")}
        if "CUDA error" in row["note"]:
            raise SystemExit(f"the device is of no use after this: {row['note']}")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return row, result


def repeats(device: torch.device, seconds: float) -> int:
    """How often to repeat a call of that length on a CPU; on CUDA `do_bench` decides, unless this is 1."""
    fits = seconds * FEWEST_CALLS[device.type] <= REPEATS_S
    return min(50, max(FEWEST_CALLS[device.type], int(1 / seconds))) if fits else 1


def quantiles_ms(step: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    n = repeats(device, seconds)
    if n == 1:
        return [seconds * 1e3] * 3
    if device.type == "cuda":
        return do_bench(step, warmup=50, rep=300, quantiles=QUANTILES)
    taken = []
    for _ in range(n):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return (np.quantile(taken, QUANTILES) * 1e3).tolist()


def once(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of a call, and its peak memory in MiB beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - started, (torch.cuda.max_memory_allocated() - before) / 2**20
    started = time.perf_counter()
    step()
    seconds = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]
    return seconds, max(itertools.accumulate(changes, initial=0)) / 2**20


def on_gpu(step: Callable[[], object]) -> tuple[float, int]:
    """For how many ms the GPU is busy in a call, without what it waits for the host, and how many launches it gets."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.profiler.kineto_results.events() if event.device_type() == DeviceType.CUDA]
    nanoseconds = [event.duration_ns() for event in events if not event.is_user_annotation()]
    return sum(nanoseconds) / 1e6, len(nanoseconds)


if __name__ == "__main__":
    main()
