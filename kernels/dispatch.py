"""Which implementation of an op runs: its Triton kernel on CUDA where it has one, else the PyTorch reference.

`GENEBERT_KERNELS=reference` or `triton` forces one.
"""

import os
from collections.abc import Callable

import torch


def implementation(op: dict[str, Callable], device: torch.device) -> Callable:
    """One of an op's implementations, `{"reference": ..., "triton": ...}`, for tensors on `device`.

    Raises `ValueError` where the environment forces one that the op does not have.
    """
    forced = os.environ.get("GENEBERT_KERNELS")
    if forced:
        if forced not in op:
            raise ValueError(f"GENEBERT_KERNELS={forced}: this op has {', '.join(op)}")
        return op[forced]
    return op["triton"] if device.type == "cuda" and "triton" in op else op["reference"]
