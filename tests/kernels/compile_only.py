"""Compile what the kernels would launch on a GPU that need not be there, and launch nothing.

    python tests/kernels/compile_only.py

prints, as CSV, what the kernels take of an A100 (sm_80) and of an H100 or H200 (sm_90) in training.

Triton asks its driver which GPU there is. Here that driver names one, and a launch ends when its kernel is compiled, so
the project's own functions compile exactly what they would run: their arguments, their alignment, their constants. What
they return is whatever memory held. Tensors may be on the meta device, which holds none: then size costs nothing.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime.driver import driver

from kernels import dispatch, infonce
from kernels.kmer_mask import Masking, capacity_for, mask_kmers, span_tokens

ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Resources:
    """Of a thread, as ptxas counts them: registers, bytes of memory, and bytes moved there and back for want of
    registers."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class Launch:
    """A launch that was not made. shared: bytes of a block's shared memory; arguments: the whole numbers, by name."""

    kernel: str
    arch: int
    grid: tuple[int, ...]
    num_warps: int
    shared: int
    cubin: bytes
    ptx: str
    ttir: str
    arguments: dict[str, int]

    @property
    def resources(self) -> Resources:
        return _resources(self.ptx, self.arch)


@contextmanager
def compiling_for(arch: int) -> Iterator[list[Launch]]:
    """Every kernel, whatever device its tensors are on, is compiled for sm_`arch` and not run; yields the launches."""
    if dispatch.interpreted():
        raise RuntimeError("under TRITON_INTERPRET=1 nothing is compiled")
    launches = []
    run = triton.JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **named):
        kernel = run(self, *arguments, grid=grid, warmup=True, **named)
        named.update(zip(self.arg_names, arguments, strict=False))
        numbers = {name: value for name, value in named.items() if isinstance(value, int)}
        text = {name: kernel.asm[name] for name in ("cubin", "ptx", "ttir")}
        meta = kernel.metadata
        launches.append(Launch(kernel.name, arch, grid, meta.num_warps, meta.shared, arguments=numbers, **text))

    with (
        mock.patch.object(driver, "_active", _NoDevice(arch)),
        mock.patch.object(triton.JITFunction, "run", compile_only),
        mock.patch.object(dispatch, "chosen", return_value="triton"),
        mock.patch.dict(os.environ, GENEBERT_KERNELS="triton"),  # else what does not compile falls back
        mock.patch.object(torch, "autocast", return_value=nullcontext()),  # the meta device has none
    ):
        yield launches


@dataclass
class _NoDevice:
    """What compiling asks of a Triton driver."""

    arch: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> str:
        return f"none of sm_{self.arch}"  # real devices are numbered: what is compiled here is never launched there

    def get_current_stream(self, device: str) -> int:
        return 0


@cache
def _resources(ptx: str, arch: int) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        target = f"--gpu-name={sm_arch_from_capability(arch)}"
        command = [get_ptxas(arch).path, "-v", target, str(source), "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    counts = (r"Used (\d+) registers", r"(\d+) bytes stack", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    return Resources(*(int(re.search(count, said)[1]) for count in counts))


def launch_mask_kmers(k: int = 6, tokens: int = 512, rule: str = "dnabert", batch: int = 2000) -> None:
    span = span_tokens(rule, k)
    masking = Masking(k, tokens, span, rate=0.15, capacity=capacity_for(tokens, 0.15, span), seed=2**32 - 1)
    n_bases = tokens - 3 + 10 * (k - 1)
    with torch.device("meta"):
        bases = torch.empty(batch, n_bases, dtype=torch.uint8)
        window_kmers = torch.empty(batch, 10, dtype=torch.int32)
        sample, epoch = torch.empty(2, batch, dtype=torch.int64)
    mask_kmers(bases, window_kmers, sample, epoch, masking)


def launch_info_nce(
    precision: str = "bf16", batch: int = 2000, d: int = 512, loss: str = "clip", world: int = 1
) -> None:
    """Forward and backward. precision: bf16, or the `input_precision` of fp32; world: ranks with `batch` samples each,
    of which this is the second."""
    dtype, input_precision = (torch.bfloat16, "ieee") if precision == "bf16" else (torch.float32, precision)
    with torch.device("meta"):
        sequence, region = (torch.empty(batch, d, dtype=dtype, requires_grad=True) for _ in range(2))
        scale, weight = torch.empty(1, requires_grad=True), torch.empty(batch)
    with (
        mock.patch.object(infonce, "_place", return_value=(min(1, world - 1), world)),
        mock.patch.object(infonce, "_gather", lambda rows: torch.cat([rows] * world)),
    ):
        infonce.info_nce(sequence, region, scale, weight, loss, input_precision).backward()


def table() -> Iterator[dict]:
    """What the kernels take in the configurations that training uses, a launch a row."""
    cases = [(launch_mask_kmers, {"k": k, "tokens": tokens}) for k, tokens in ((6, 256), (6, 512), (3, 512), (6, 5120))]
    for precision in ("bf16", "ieee", "tf32x3", "tf32"):
        cases += [(launch_info_nce, {"precision": precision, "d": 512, "loss": loss}) for loss in ("clip", "paper")]
    for arch in ARCHITECTURES:
        for function, settings in cases:
            with compiling_for(arch) as launches:
                function(**settings)
            for launch in launches:
                yield row(launch) | {"settings": " ".join(f"{name}={value}" for name, value in settings.items())}


def row(launch: Launch) -> dict:
    return {
        "kernel": launch.kernel,
        "sm": launch.arch,
        "grid": "x".join(map(str, launch.grid)),
        "warps": launch.num_warps,
        **asdict(launch.resources),
        "shared": launch.shared,
    }


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.bench.machine import describe_machine
    from tests.bench.print_csv import print_csv

    print(describe_machine())
    print(f"# torch {torch.__version__}, triton {version('triton')}, ptxas {get_ptxas(80).version}")
    print_csv(table())


if __name__ == "__main__":
    main()
