"""Checkpoints: whole or not there. `latest` moves, by a rename, only when all files of all ranks are on disk.

RUN_DIR/checkpoints/latest             name of the newest whole checkpoint
RUN_DIR/checkpoints/step-000200/       DeepSpeed's files, and state.json
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from data_prep.errors import InputError
from pretrain import ranks
from pretrain.config import ModelConfig

STATE = "state.json"


def folder(run_dir: Path | str) -> Path:
    return Path(run_dir) / "checkpoints"


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def newest(run_dir: Path | str) -> Path | None:
    """The newest whole checkpoint, or None. Raises `InputError` where `latest` names one that is not there."""
    latest = folder(run_dir) / "latest"
    if not latest.is_file():
        return None
    checkpoint = folder(run_dir) / latest.read_text().strip()
    if not (checkpoint / STATE).is_file():
        raise InputError(f"{latest}: names {checkpoint.name}, which is not there or not whole")
    return checkpoint


def read_state(checkpoint: Path) -> dict:
    try:
        return json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint / STATE}: cannot be read: {error}") from error


def check_model(checkpoint: Path, model: ModelConfig) -> None:
    """Raise `InputError` where the checkpoint is of another model."""
    _check_same(checkpoint, read_state(checkpoint)["model"], asdict(model), "of another model")


def check_run(checkpoint: Path, run: dict) -> None:
    """Raise `InputError` where going on would not continue the checkpoint's run: other data, seed, batch or ranks."""
    _check_same(checkpoint, read_state(checkpoint)["run"], run, "of another run")


def _check_same(checkpoint: Path, found: dict, expected: dict, what: str) -> None:
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        pairs = ", ".join(f"{name} {found.get(name)} there, {expected[name]} here" for name in different)
        raise InputError(f"{checkpoint}: {what}: {pairs}; give the same, or another --out")


def save(engine, run_dir: Path, step: int, state: dict, keep_last: int) -> None:
    """Write a checkpoint of all ranks, move `latest` to it, and remove all but the last `keep_last` and the best."""
    name = name_of(step)
    engine.save_checkpoint(str(folder(run_dir)), tag=name, client_state={"step": step}, save_latest=False)
    if ranks.is_first():
        write_atomically(folder(run_dir) / name / STATE, json.dumps({"step": step, **state}, indent=1))
        write_atomically(folder(run_dir) / "latest", name)
        best = name_of(state["best"]["step"]) if state["best"] else None
        whole = [path.parent for path in folder(run_dir).glob(f"step-*/{STATE}")]
        whole.sort(key=lambda path: int(path.name.removeprefix("step-")))
        for old in whole[:-keep_last]:
            if old.name != best:
                shutil.rmtree(old)
    dist.barrier()


def load(engine, checkpoint: Path) -> int:
    """Restore weights, optimizer and schedule; returns the number of steps done."""
    engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return read_state(checkpoint)["step"]


def write_atomically(path: Path, content: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
