"""Which implementation of an op runs: its Triton kernel on CUDA, its PyTorch reference on a CPU.

`GENEBERT_KERNELS=reference` or `triton` forces one. On a CPU a kernel runs in Triton's interpreter, slowly, where
`TRITON_INTERPRET=1` was set before Python started. A Triton that cannot compile on this machine gives one warning with
the reason, and the references run.
"""

import os
import subprocess
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

IMPLEMENTATIONS = ("reference", "triton")


def chosen(device: torch.device) -> str:
    """`reference` or `triton`: what runs for tensors on `device`.

    Raises `ValueError` where `GENEBERT_KERNELS` asks for what there is not.
    """
    forced = _forced()
    if forced == "triton" and device.type != "cuda" and not interpreted():
        raise ValueError("GENEBERT_KERNELS=triton: without a CUDA device it needs TRITON_INTERPRET=1 beside it")
    if forced:
        return forced
    compiled = device.type == "cuda" and not interpreted()
    return "triton" if compiled and _failure is None and _triton_works() else "reference"


def run(kernel: Callable, reference: Callable, device: torch.device, *arguments: Any) -> Any:
    """`kernel(*arguments)` or `reference(*arguments)`, which give the same."""
    if chosen(device) == "reference":
        return reference(*arguments)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return kernel(*arguments)
    except (TritonError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        # The compiler's passes and the device itself fail with the same type: what the device says is not to be hidden.
        of_device = isinstance(error, RuntimeError) and "PassManager" not in str(error)
        if of_device or _forced():
            raise
        _fall_back(error)
    return reference(*arguments)


def interpreted() -> bool:
    """True where kernels run in Triton's interpreter."""
    return not isinstance(_probe, triton.JITFunction)


def _forced() -> str | None:
    asked = os.environ.get("GENEBERT_KERNELS") or None
    if asked not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"GENEBERT_KERNELS={asked}: give {' or '.join(IMPLEMENTATIONS)}, or leave it unset")
    return asked


@cache
def _triton_works() -> bool:
    """Compile and launch the smallest kernel: it takes a C compiler, Python's headers, ptxas and a driver."""
    try:
        _probe[(1,)](torch.zeros(1, device="cuda"))
    except (TritonError, AssertionError, ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        _fall_back(error)
        return False
    return True


_failure: Exception | None = None  # why Triton is not used on this machine


def _fall_back(error: Exception) -> None:
    """Take the references from now on, and say so once on each host."""
    global _failure
    _failure = error
    if os.environ.get("LOCAL_RANK", "0") == "0":
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"Triton does not work here, slower PyTorch code runs instead: {reason}", stacklevel=3)


@triton.jit
def _probe(x):
    tl.store(x, tl.load(x) + 1)
