"""Which implementation of the kernels a test takes, and where."""

import socket

import pytest
import torch

from kernels import dispatch


@pytest.fixture
def device() -> torch.device:
    """The CUDA device where there is one, else, and for what is interpreted, the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not dispatch.interpreted() else "cpu")


@pytest.fixture(params=["reference", pytest.param("triton", marks=pytest.mark.triton)])
def implementation(request, monkeypatch, device) -> str:
    """The test runs with each: the PyTorch reference, and the Triton kernel, compiled or interpreted."""
    if request.param == "triton" and device.type != "cuda" and not dispatch.interpreted():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    monkeypatch.setenv("GENEBERT_KERNELS", request.param)
    return request.param


@pytest.fixture
def free_port():
    """A function that gives a TCP port of this machine that nobody listens on."""

    def port() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    return port
