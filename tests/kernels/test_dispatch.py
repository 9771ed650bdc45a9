"""Which implementation runs. A CUDA device can be named where there is none, and Triton then really fails to start."""

import ast
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from kernels import dispatch, infonce_panel
from kernels.infonce import info_nce
from tests.kernels.compile_only import compiling_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOO_LARGE = OutOfResources(300_000, 232_448, "shared memory")


@pytest.fixture(autouse=True)
def _nothing_known_yet(monkeypatch):
    monkeypatch.setattr(dispatch, "_failure", None)
    for name in ("GENEBERT_KERNELS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    probe = dispatch._triton_works
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.fixture
def triton_starts(monkeypatch):
    """As on a machine where the probe runs. The kernels of these tests take tensors of a CPU."""
    monkeypatch.setattr(dispatch, "_triton_works", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)


@pytest.fixture
def no_probe(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton_works", lambda: pytest.fail("Triton was started for nothing"))


@contextmanager
def warned():
    """All warnings, be they repeated."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def raising(error: Exception):
    def kernel(x: torch.Tensor) -> torch.Tensor:
        raise error

    return kernel


# Which one is chosen.


def test_a_cpu_takes_the_reference_and_does_not_start_triton(no_probe):
    assert dispatch.chosen(CPU) == "reference"


def test_cuda_takes_triton_where_it_works(triton_starts):
    assert dispatch.chosen(CUDA) == "triton"


def test_an_empty_value_forces_nothing(monkeypatch, triton_starts):
    monkeypatch.setenv("GENEBERT_KERNELS", "")
    assert dispatch.chosen(CPU) == "reference"
    assert dispatch.chosen(CUDA) == "triton"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_the_reference_can_be_forced(monkeypatch, no_probe, device):
    monkeypatch.setenv("GENEBERT_KERNELS", "reference")
    assert dispatch.chosen(device) == "reference"


def test_triton_can_be_forced_on_cuda(monkeypatch, no_probe):
    monkeypatch.setenv("GENEBERT_KERNELS", "triton")
    assert dispatch.chosen(CUDA) == "triton"


def test_triton_can_be_forced_on_a_cpu_under_the_interpreter_alone(monkeypatch, no_probe):
    monkeypatch.setenv("GENEBERT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "interpreted", lambda: True)
    assert dispatch.chosen(CPU) == "triton"
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        dispatch.chosen(CPU)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("value", ["Triton", "cuda", "1"])
def test_any_other_value_is_refused(monkeypatch, no_probe, device, value):
    monkeypatch.setenv("GENEBERT_KERNELS", value)
    with pytest.raises(ValueError, match=f"GENEBERT_KERNELS={value}: give reference or triton"):
        dispatch.chosen(device)


def test_the_interpreter_is_recognised():
    """Triton asks for it as Python starts."""
    assert dispatch.interpreted() == (os.environ.get("TRITON_INTERPRET") == "1")
    command = [sys.executable, "-c", "from kernels import dispatch; print(dispatch.interpreted())"]
    for asked in "01":
        environment = os.environ | {"TRITON_INTERPRET": asked}
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert finished.stdout.strip() == str(asked == "1")


def test_a_kernel_runs_on_the_device_of_its_tensors(monkeypatch, triton_starts):
    current = []

    @contextmanager
    def made_current(device):
        current.append(device)
        yield
        current.remove(device)

    monkeypatch.setattr(torch.cuda, "device", made_current)
    device = torch.device("cuda:3")
    assert dispatch.run(lambda: list(current), raising(AssertionError()), device) == [device]
    assert not current


# A Triton that does not start.


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_driver_the_reference_runs_after_one_warning():
    with warned() as caught:
        assert [dispatch.chosen(CUDA) for _ in range(3)] == ["reference"] * 3
        assert torch.equal(dispatch.run(raising(AssertionError()), plus_one, CUDA, torch.zeros(2)), torch.ones(2))
    (warning,) = caught
    assert "Triton does not work here, slower PyTorch code runs instead" in str(warning.message)
    assert "NVIDIA driver" in str(warning.message)


@pytest.mark.parametrize(("rank", "warnings_of_rank"), [("0", 1), ("1", 0), ("7", 0)])
def test_one_rank_of_a_host_warns(monkeypatch, rank, warnings_of_rank, triton_starts):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with warned() as caught:
        dispatch.run(raising(TOO_LARGE), plus_one, CUDA, torch.zeros(2))
    assert len(caught) == warnings_of_rank
    assert dispatch.chosen(CUDA) == "reference"


START_TRITON = """
import warnings
import torch
zeros = torch.zeros
torch.zeros = lambda *shape, device: zeros(*shape)
torch.cuda.is_available = lambda: True
from kernels import dispatch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(dispatch.chosen(torch.device("cuda")), dispatch.chosen(torch.device("cuda")), len(caught))
    print(caught[0].message)
"""


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"CC": "false"}, "returned non-zero exit status"),
        ({"CC": "/nowhere/cc"}, "No such file"),
        ({"CC": "{folder}/cc"}, "file too short"),
        ({"PATH": "/nowhere"}, "Failed to find C compiler"),
        pytest.param(
            {"TRITON_LIBCUDA_PATH": "", "LD_LIBRARY_PATH": ""},
            "libcuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's linker finds CUDA"),
        ),
    ],
)
def test_a_machine_on_which_triton_cannot_be_built_takes_the_reference(broken, reason, tmp_path):
    """Where there is no CUDA, PyTorch is made to say that there is: Triton compiles its driver before it looks."""
    compiler = tmp_path / "cc"  # of its arguments the one after -o is the file to write
    compiler.write_text('#!/bin/sh\nuntil [ "$1" = -o ]; do shift; done\necho nothing that can be loaded > "$2"\n')
    compiler.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "TRITON_INTERPRET")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_LIBCUDA_PATH": "/nowhere"}
    environment |= {name: value.format(folder=tmp_path) for name, value in broken.items()}
    command = [sys.executable, "-c", START_TRITON]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    chosen, _, warning = finished.stdout.partition("\n")
    assert chosen == "reference reference 1"
    assert reason in warning


# A kernel that fails.


@triton.jit
def _does_not_compile(x):
    tl.static_assert(False, "never")


@triton.jit
def _does_not_assemble(x):
    number = tl.inline_asm_elementwise("no such instruction;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.store(x, number)


def compiled(kernel):
    def launch(x: torch.Tensor) -> torch.Tensor:
        with compiling_for(80):
            kernel[(1,)](x)

    return launch


FAILURES = [
    pytest.param(raising(CompilationError(None, ast.Pass(), "never")), CompilationError, id="CompilationError"),
    pytest.param(raising(TOO_LARGE), OutOfResources, id="OutOfResources"),
    pytest.param(raising(PTXASError("Internal Triton PTX codegen error")), PTXASError, id="PTXASError"),
    pytest.param(raising(RuntimeError("PassManager::run failed")), RuntimeError, id="compiler's pass"),
    pytest.param(raising(OSError("No space left on device")), OSError, id="no room for the cache"),
    pytest.param(
        raising(subprocess.CalledProcessError(1, "gcc")), subprocess.CalledProcessError, id="launcher's C compiler"
    ),
    *(
        pytest.param(
            compiled(kernel),
            error,
            id=kernel.__name__,
            marks=pytest.mark.skipif(dispatch.interpreted(), reason="nothing is compiled under TRITON_INTERPRET=1"),
        )
        for kernel, error in ((_does_not_compile, CompilationError), (_does_not_assemble, PTXASError))
    ),
]


@pytest.mark.parametrize(("kernel", "error"), FAILURES)
def test_a_kernel_that_does_not_compile_or_fit_is_replaced_by_its_reference(triton_starts, kernel, error):
    with warned() as caught:
        for _ in range(3):
            assert torch.equal(dispatch.run(kernel, plus_one, CUDA, torch.zeros(2)), torch.ones(2))
    assert len(caught) == 1
    assert isinstance(dispatch._failure, error)
    reason = " ".join(str(dispatch._failure).split())
    assert str(caught[0].message).endswith(f"instead: {reason}")


@pytest.mark.parametrize(("kernel", "error"), FAILURES)
def test_where_triton_is_forced_its_errors_are_raised(monkeypatch, triton_starts, kernel, error):
    monkeypatch.setenv("GENEBERT_KERNELS", "triton")
    with warned() as caught, pytest.raises(error):
        dispatch.run(kernel, plus_one, CUDA, torch.zeros(2))
    assert not caught
    assert dispatch._failure is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a sample does not fit"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_other_errors_are_not_hidden(triton_starts, error):
    with warned() as caught, pytest.raises(type(error), match=str(error)):
        dispatch.run(raising(error), plus_one, CUDA, torch.zeros(2))
    assert not caught
    assert dispatch.chosen(CUDA) == "triton"


def test_the_reference_s_own_errors_are_not_hidden():
    with pytest.raises(ValueError, match="no such batch"):
        dispatch.run(plus_one, raising(ValueError("no such batch")), CPU, torch.zeros(2))


@pytest.mark.parametrize("failing", ["log_sum_exps_triton", "gradient_triton"])
def test_infonce_falls_back_in_the_middle_of_a_step(monkeypatch, triton_starts, failing):
    """One kernel fails, the other one's result is kept."""
    sequence, region = (F.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(i))) for i in range(2))

    def step():
        leaves = [leaf.clone().requires_grad_() for leaf in (sequence, region, torch.tensor([5.0]))]
        loss = info_nce(*leaves, torch.ones(8))
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    expected = step()
    chosen = dispatch.chosen
    monkeypatch.setattr(dispatch, "chosen", lambda device: chosen(CUDA))
    for name in ("log_sum_exps", "gradient"):
        monkeypatch.setattr(infonce_panel, f"{name}_triton", getattr(infonce_panel, f"{name}_reference"))
    monkeypatch.setattr(infonce_panel, failing, lambda *_: raising(TOO_LARGE)(None))
    with warned() as caught:
        found = step()
    assert len(caught) == 1
    assert all(map(torch.equal, found, expected))
