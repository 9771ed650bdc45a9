"""What may befall a run: it ends soon, with one line that names the cause and the rank, and the next one goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.shard_reader import ShardReader, npy_array, read_manifest
from pretrain import checkpoint, ranks
from pretrain.faults import RunError, fault_of
from pretrain.run_log import read_metrics

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()
STEPS = 150


def processes_of(launcher: subprocess.Popen) -> dict[int, psutil.Process]:
    """A run's processes by rank; those that read data are their children."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        command = process.cmdline()
        if "pretrain/main.py" in command and "deepspeed.launcher.launch" in process.parent().cmdline():
            found[int(next(part for part in command if "--local_rank=" in part).split("=")[1])] = process
    return found


def curve(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["loss/total"] for row in read_metrics(run_dir) if "loss/total" in row}


def wait_for_step(step: int, run_dir: Path, launcher: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while max(curve(run_dir), default=0) < step:
        assert launcher.poll() is None, launcher.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def end_of(launcher: subprocess.Popen, since: float) -> tuple[str, list[str], float]:
    """All that was printed, the lines of it that tell of an error, and the seconds it took to end."""
    printed, _ = launcher.communicate(timeout=300)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    return printed, errors, time.monotonic() - since


@pytest.fixture
def start(deepspeed, ds_config) -> Callable[..., subprocess.Popen]:
    def run(out: Path, *arguments: str) -> subprocess.Popen:
        given = ("--ds_config", str(ds_config(9)), "--steps", str(STEPS), "--eval_every", "1000", "--save_every", "10")
        return deepspeed(2, *given, "--out", str(out), *arguments)

    return run


@pytest.mark.parametrize(
    ("kills", "launcher_too"),
    [(((0, 15),), False), pytest.param(((1, 15), (0, 35)), True, marks=pytest.mark.slow)],
)
def test_killed_ranks_and_sigterm_cost_at_most_the_steps_since_the_checkpoint(tmp_path, start, kills, launcher_too):
    out, curves = tmp_path / "run", []

    for killed, step in kills:
        launcher = start(out)
        wait_for_step(step, out, launcher)
        began, rank = time.monotonic(), processes_of(launcher)[killed]
        readers = rank.children()
        rank.send_signal(signal.SIGKILL)
        printed, errors, seconds = end_of(launcher, began)
        assert readers
        assert psutil.wait_procs(readers, timeout=10)[1] == []
        curves.append(curve(out))
        saved = int(checkpoint.newest(out).name.removeprefix("step-"))
        (line,) = errors
        assert line.startswith(f"error: rank {killed} on {HOST}: its process has died")
        assert line.endswith(f"; step {saved} is saved: the same command goes on from there")
        assert "Traceback" not in printed
        assert launcher.returncode != 0
        assert seconds < 30
        assert max(curves[-1]) - saved <= 10

    # To one rank and its readers of data: as from Slurm, where the host of the others hears of it later.
    launcher = start(out)
    wait_for_step(55, out, launcher)
    began, rank = time.monotonic(), processes_of(launcher)[1]
    for process in [*rank.children(), rank]:
        process.send_signal(signal.SIGTERM)
    printed, errors, seconds = end_of(launcher, began)
    curves.append(curve(out))
    last = max(curves[-1])
    assert f"SIGTERM: step {last} of {STEPS} is saved; run the same command to go on" in printed
    assert checkpoint.newest(out).name == checkpoint.name_of(last)
    assert (errors, launcher.returncode) == ([], 0)
    assert seconds < 30

    if launcher_too:  # DeepSpeed's process that started them, which itself exits with 1 then
        launcher = start(out)
        wait_for_step(last + 5, out, launcher)
        processes_of(launcher)[0].parent().send_signal(signal.SIGTERM)
        printed, errors, _ = end_of(launcher, began)
        curves.append(curve(out))
        last = max(curves[-1])
        assert f"SIGTERM: step {last} of {STEPS} is saved" in printed
        assert checkpoint.newest(out).name == checkpoint.name_of(last)
        assert errors == []

    launcher = start(out)
    printed, *_ = end_of(launcher, began)
    assert launcher.returncode == 0, printed
    curves.append(curve(out))
    assert list(curves[-1]) == list(range(1, STEPS + 1))
    for before in curves[:-1]:  # each life, with the steps that it lost, lies on the last one's curve
        for step, loss in before.items():
            assert loss == pytest.approx(curves[-1][step], rel=1e-5), step


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_given_up_after_the_timeout(tmp_path, start):
    launcher = start(tmp_path / "run", "--timeout", "5")
    wait_for_step(5, tmp_path / "run", launcher)
    ranks, began = processes_of(launcher), time.monotonic()
    ranks[1].send_signal(signal.SIGSTOP)
    psutil.wait_procs([ranks[0]], timeout=60)
    assert 4 < time.monotonic() - began < 30
    ranks[1].send_signal(signal.SIGKILL)  # as the launcher does, 30 seconds later
    printed, errors, _ = end_of(launcher, began)
    assert errors == [
        f"error: rank 1 on {HOST}: not heard of for 5 s; its process hangs, or its host is down or cut off"
    ]
    assert "Traceback" not in printed
    assert launcher.returncode != 0


@pytest.fixture
def own_shards(tmp_path, shards) -> Path:
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.mark.slow
def test_a_shard_that_is_cut_short_while_the_run_reads_is_named_with_the_rank(tmp_path, start, own_shards):
    path = own_shards / read_manifest(own_shards)["shards"][3]["name"]
    launcher = start(tmp_path / "run", "--shards", str(own_shards))
    wait_for_step(5, tmp_path / "run", launcher)
    began = time.monotonic()
    os.truncate(path, 512)
    printed, errors, seconds = end_of(launcher, began)
    (line,) = errors
    assert line.startswith((f"error: rank 0 on {HOST}: {path}: sample", f"error: rank 1 on {HOST}: {path}: sample"))
    assert "the file ends before byte" in line
    assert "Traceback" not in printed
    assert launcher.returncode == 2
    assert seconds < 60


@pytest.mark.slow
def test_a_reader_of_data_that_is_killed_is_named_with_its_rank(tmp_path, start):
    launcher = start(tmp_path / "run")
    wait_for_step(5, tmp_path / "run", launcher)
    processes_of(launcher)[1].children()[0].send_signal(signal.SIGKILL)
    printed, errors, _ = end_of(launcher, time.monotonic())
    (line,) = errors
    assert line.startswith(f"error: rank 1 on {HOST}: lost a process that reads data: ")
    assert "Traceback" not in printed
    assert launcher.returncode == 1


def make_infinite(shards: Path, number: int) -> None:
    """Set an affinity of a training sample, and the sha256 that the manifest gives of its shard."""
    reader, manifest = ShardReader(shards, "train"), read_manifest(shards)
    (entry,) = (shard for shard in manifest["shards"] if shard["name"] == reader.shards[0]["name"])
    offset, size = (int(reader.index[name][number][2]) for name in ("offset", "size"))
    path = shards / entry["name"]
    content = path.read_bytes()
    at = offset + size - npy_array(memoryview(content)[offset : offset + size]).nbytes
    path.write_bytes(content[:at] + np.float16(np.inf).tobytes() + content[at + 2 :])
    entry["sha256"] = sha256_of_file(path)
    (shards / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_a_sample_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path, start, own_shards):
    make_infinite(own_shards, number=3)
    launcher, began = start(tmp_path / "run", "--shards", str(own_shards), "--save_every", "1"), time.monotonic()
    printed, errors, _ = end_of(launcher, began)
    (line,) = errors
    before = len(curve(tmp_path / "run"))  # steps of which all was finite
    assert line.startswith(f"error: step {before + 1}: no longer finite: loss/total, loss/srm, ")
    assert f"on rank 0 on {HOST} already the outputs" in line or f"on rank 1 on {HOST} already the outputs" in line
    assert "Traceback" not in printed
    assert launcher.returncode == 1
    newest = checkpoint.newest(tmp_path / "run")
    assert (newest.name if newest else None) == (checkpoint.name_of(before) if before else None)


# Before the ranks have met.

MEET = "from pretrain import ranks\nwith ranks.together():\n    print('met', flush=True)"


def rank_alone(port: int, **variables: str) -> subprocess.Popen:
    """The second of two ranks, alone on its host."""
    rank = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {name: value for name, value in {**os.environ, **rank, **variables}.items() if value}
    return subprocess.Popen([sys.executable, "-c", MEET], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_foreign_program_at_the_master_port_is_one_line_and_sigterm_is_heard():
    with socket.create_server(("127.0.0.1", 0)) as foreign:  # takes connections and says nothing
        port = foreign.getsockname()[1]
        gives_up, terminated = rank_alone(port, GENEBERT_SECONDS_TO_JOIN="3"), rank_alone(port)
        _, said = gives_up.communicate(timeout=60)
        terminated.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, last = terminated.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert said.startswith(f"error: rank 1 on {HOST}: rank 0 cannot be reached at 127.0.0.1, port {port}: ")
    assert (said.count("\n"), gives_up.returncode) == (1, 1), said
    assert (last, terminated.returncode) == ("ended by SIGTERM before its first step\n", 143)


def test_a_variable_that_ranks_need_is_named():
    without, malformed = rank_alone(0, MASTER_ADDR=""), rank_alone(0, GENEBERT_SECONDS_TO_JOIN="long")
    for process, said in ((without, "but not MASTER_ADDR; "), (malformed, "GENEBERT_SECONDS_TO_JOIN=long: give a ")):
        _, printed = process.communicate(timeout=60)
        assert printed.startswith("error: ")
        assert said in printed
        assert (printed.count("\n"), process.returncode) == (1, 2)


# Without a launcher, and what is said of an exception.


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("step 3: no longer finite"), 1, "error: step 3: no longer finite\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            1,
            "error: OutOfMemoryError: CUDA out of memory; give a smaller --micro_batch, or "
            "--activation_checkpointing\n",
        ),
    ],
)
def test_alone_a_fault_is_one_line_and_exit_code_1(error, code, line, capsys):
    with pytest.raises(SystemExit) as exit_, ranks.together():
        raise error
    assert (exit_.value.code, capsys.readouterr().err) == (code, line)


@pytest.mark.parametrize("error", [InputError("x"), KeyboardInterrupt(), BrokenPipeError(), ValueError("a bug")])
def test_alone_what_main_handles_and_bugs_are_left_to_it(error):
    with pytest.raises(type(error)) as raised, ranks.together():
        raise error
    assert raised.value is error


def test_alone_sigterm_before_the_first_step_is_one_line(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_, ranks.together():
        signal.raise_signal(signal.SIGTERM)
    assert (exit_.value.code, capsys.readouterr().err) == (143, "ended by SIGTERM before its first step\n")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "said", "code", "traced", "follows"),
    [
        (InputError("x.tar: truncated"), "x.tar: truncated", 2, False, False),
        (ValueError("a bug"), "ValueError: a bug", 1, True, False),
        (dist.DistBackendError("NCCL error: remote process exited"), "could not exchange data", 1, False, True),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed"), "could not exchange", 1, False, True),
        (RuntimeError("Gloo connectFullMesh failed with ..."), "GLOO_SOCKET_IFNAME=eth0", 1, False, False),
        (RuntimeError("DataLoader timed out after 1200 seconds"), "waited too long for data", 1, False, False),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory. Tried", 1, False, False),
        (KeyboardInterrupt(), "interrupted", 130, False, False),
    ],
)
def test_an_exception_becomes_one_line_and_a_trace_only_where_it_is_a_bug(error, said, code, traced, follows):
    fault = fault_of(error)
    assert said in fault.line()
    assert "\n" not in fault.line()
    assert (fault.code, bool(fault.trace), fault.follows) == (code, traced, follows)
