"""Checkpoints that lost or changed a file are passed over; a full disk keeps those there are; any number of ranks goes
on from them."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretrain import checkpoint

CURVES = ("loss/total", "loss/mgm", "loss/ngsp", "loss/srm", "optim/grad_norm")


def curve(run_dir: Path, name: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def assert_same_curves(one: Path, other: Path) -> None:
    for name in CURVES:
        assert curve(one, name) == pytest.approx(curve(other, name), rel=1e-5), name
    assert curve(one, "val/loss/total") == pytest.approx(curve(other, "val/loss/total"), rel=1e-4)


@pytest.fixture(scope="module")
def on_four_ranks(tmp_path_factory, pretrain, ds_config) -> Path:
    """A run on four ranks, of which all checkpoints are kept: steps 5, 10, 15 and 20."""
    out = tmp_path_factory.mktemp("runs") / "four"
    given = ("--ds_config", str(ds_config(9)), "--out", str(out), "--save_every", "5", "--keep_last", "9")
    assert "on 4 ranks (1 x 3 each, 3 padded)" in pretrain(4, *given, "--workers", "0")
    return out


@pytest.fixture
def run_dir(on_four_ranks, tmp_path) -> Path:
    return Path(shutil.copytree(on_four_ranks, tmp_path / "run"))


@pytest.fixture
def go_on(pretrain, ds_config) -> Callable[..., str]:
    """A function that gives the command of the run again, on other ranks."""
    return lambda n_ranks, run_dir, *more: pretrain(
        n_ranks, "--ds_config", str(ds_config(9)), "--out", str(run_dir), "--workers", "0", *more
    )


def stopped_after(run_dir: Path, step: int) -> Path:
    """The run folder as one that was stopped there: without later checkpoints."""
    for path in checkpoint.written(run_dir):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (checkpoint.folder(run_dir) / "latest").write_text(checkpoint.name_of(step))
    return run_dir


def altered(checkpoint_dir: Path) -> str:
    """Change a byte of one rank's file, but not its size; the file's name."""
    path = next(checkpoint_dir.glob("*rank_3*optim_states.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_fewer_ranks_go_on_from_the_newest_whole_checkpoint_and_the_curve_joins(run_dir, on_four_ranks, go_on, n_ranks):
    name = altered(checkpoint.folder(stopped_after(run_dir, 10)) / "step-000010")
    output = go_on(n_ranks, run_dir)
    assert f"step-000010: {name} was altered: its sha256 is another; it is passed over" in output
    assert "step-000005: was written by 4 ranks" in output
    assert "resuming at step 5" in output
    assert_same_curves(run_dir, on_four_ranks)
    assert checkpoint.read_state(checkpoint.newest(run_dir))["world_size"] == n_ranks
    assert not list(run_dir.rglob("*universal*"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 2 MB: room for two checkpoints, not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoints_there_are(disk, deepspeed, ds_config):
    run_dir = disk / "run"
    given = ("--ds_config", str(ds_config(9)), "--out", str(run_dir), "--workers", "0")
    process = deepspeed(2, *given, "--save_every", "5", "--eval_every", "20")
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    line = next(line for line in output.splitlines() if line.startswith("error: "))
    assert "step-000015: cannot be written, with" in line
    assert "step 10 is saved" in line
    whole = [path.name for path in checkpoint.written(run_dir) if checkpoint.fault(path, 0, 1) is None]
    assert whole == ["step-000010", "step-000005"]
    assert {path.name for path in checkpoint.folder(run_dir).glob("step*")} == set(whole)
