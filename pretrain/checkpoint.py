"""Checkpoints: whole or not there.

RUN_DIR/checkpoints/step-000200/       DeepSpeed's files, one or more of each rank
RUN_DIR/checkpoints/step-000200/state.json   step, run, model, and the sha256 of those files; written last
RUN_DIR/checkpoints/latest             name of the newest, as DeepSpeed's tools read it

A run goes on from the newest whose files are all there as state.json names them, on any number of ranks: those of
another number are first brought into DeepSpeed's universal form, in step-000200.universal, for as long as it is read.
"""

import json
import os
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, one_line
from pretrain import ranks
from pretrain.atomic_file import write_atomically
from pretrain.config import ModelConfig

STATE = "state.json"
PARTS = {"step", "world_size", "model", "run", "config", "best", "epoch", "files"}


def folder(run_dir: Path | str) -> Path:
    return Path(run_dir) / "checkpoints"


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def written(run_dir: Path | str) -> list[Path]:
    """Checkpoints that were written to their end, whatever became of them since; the newest first."""
    names = {path.parent.name for path in folder(run_dir).glob(f"step-*/{STATE}")}
    latest = folder(run_dir) / "latest"
    if latest.is_file():
        names.add(latest.read_text().strip())
    found = [folder(run_dir) / name for name in names if re.fullmatch(r"step-\d+", name)]
    return sorted(found, key=step_of, reverse=True)


def newest(run_dir: Path | str) -> Path | None:
    """The newest checkpoint of which no file is missing or cut short, or None; contents are not read."""
    return next((path for path in written(run_dir) if fault(path) is None), None)


def newest_whole(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are what they were when it was written, or None where there is none at all.

    A collective, in which each rank reads a part of the files. Raises `InputError` where none of several is whole.
    """
    found = written(run_dir)
    ranks.check_agreement([path.name for path in found], f"checkpoints of {run_dir}")
    for path in found:
        faults = ranks.gathered(fault(path, dist.get_rank(), dist.get_world_size()))
        first = next((one for one in faults if one), None)
        if first is None:
            return path
        ranks.say(f"warning: {path}: {first}; it is passed over")
    if found:
        raise InputError(f"{folder(run_dir)}: none of its {len(found)} checkpoints is whole; give another --out")
    return None


def fault(checkpoint: Path, part: int = 0, parts: int = 0) -> str | None:
    """What is wrong with a checkpoint, or None.

    Compares sizes, and the sha256 of one `part` of its files if they are taken in `parts`.
    """
    try:
        files = read_state(checkpoint)["files"]
    except InputError:
        return f"{STATE} cannot be read"
    for number, (name, entry) in enumerate(sorted(files.items())):
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
        if parts and number % parts == part and sha256_of_file(path) != entry["sha256"]:
            return f"{name} was altered: its sha256 is another"
    return None


def read_state(checkpoint: Path) -> dict:
    """Raises `InputError` where it cannot be read, or lacks a part."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint / STATE}: cannot be read: {error}") from error
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise InputError(f"{checkpoint / STATE}: is not what this program writes")
    return state


def check_model(checkpoint: Path, model: ModelConfig) -> None:
    """Raise `InputError` where the checkpoint is of another model."""
    _check_same(checkpoint, read_state(checkpoint)["model"], asdict(model), "of another model")


def check_run(checkpoint: Path, run: dict) -> None:
    """Raise `InputError` where going on would not continue the checkpoint's run: other data, seed or batch."""
    _check_same(checkpoint, read_state(checkpoint)["run"], run, "of another run")


def _check_same(checkpoint: Path, found: dict, expected: dict, what: str) -> None:
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        pairs = ", ".join(
            f"{name} {_short(found.get(name))} there, {_short(expected[name])} here" for name in different
        )
        raise InputError(f"{checkpoint}: {what}: {pairs}; give the same, or another --out")


def _short(value: object) -> str:
    return f"{len(value)} ({value[0]} ...)" if isinstance(value, list) and value else str(value)


def save(engine, run_dir: Path, step: int, state: dict, keep_last: int) -> None:
    """Write a checkpoint of all ranks, move `latest` to it, and remove older ones but `keep_last` in all and the best.

    A collective. Raises `OSError` on all ranks where one cannot write; older checkpoints are then as they were.
    """
    path = folder(run_dir) / name_of(step)
    if ranks.is_first():
        shutil.rmtree(path, ignore_errors=True)  # not whole, and perhaps of other ranks
    dist.barrier()
    with _accounted(engine) as (files, errors):
        engine.save_checkpoint(str(path.parent), tag=path.name, save_latest=False)
    every = ranks.gathered((one_line(errors[0]) if errors else None, files))
    failed = next((f"rank {rank}: {error}" for rank, (error, _) in enumerate(every) if error), None)
    if ranks.is_first() and not failed:
        files = {str(file.relative_to(path)): entry for _, of_rank in every for file, entry in of_rank.items()}
        try:
            content = {"step": step, "world_size": dist.get_world_size(), **state, "files": files}
            write_atomically(path / STATE, json.dumps(content, indent=1))
            write_atomically(folder(run_dir) / "latest", path.name)
        except OSError as error:
            failed = f"rank 0: {error}"
    failed = ranks.gathered(failed)[0]
    if failed:
        free = shutil.disk_usage(path.parent).free
        if ranks.is_first():
            shutil.rmtree(path, ignore_errors=True)
        raise OSError(f"{path}: cannot be written, with {free / 1e6:.1f} MB free: {failed}")
    if ranks.is_first():
        best = name_of(state["best"]["step"]) if state["best"] else None
        older = [old for old in written(run_dir) if step_of(old) < step]
        _remove([old for old in older[keep_last - 1 :] if old.name != best])


@contextmanager
def _accounted(engine) -> Iterator[tuple[dict[Path, dict], list[Exception]]]:
    """Files that this rank writes meanwhile, on disk, with their bytes and sha256; and the errors of writing.

    These are held back: a rank that left would have the others wait for it.
    """
    files: dict[Path, dict] = {}
    errors: list[Exception] = []
    write = engine.checkpoint_engine.save

    def save(state_dict: dict, path: str):
        try:
            written = write(state_dict, path)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[Path(path)] = {"bytes": Path(path).stat().st_size, "sha256": sha256_of_file(path)}
            return written
        except (OSError, RuntimeError) as error:  # PyTorch's writer of zip files raises the latter
            errors.append(error)

    engine.checkpoint_engine.save = save
    try:
        yield files, errors
    finally:
        engine.checkpoint_engine.save = write


def _remove(checkpoints: list[Path]) -> None:
    for path in checkpoints:
        try:
            shutil.rmtree(path)
        except OSError as error:  # a run that is well does not end for it
            ranks.say(f"warning: {path}: cannot be removed: {one_line(error)}")


def is_of_other_ranks(checkpoint: Path, ds_config: dict) -> bool:
    """True where the optimizer's states lie partitioned over another number of ranks than run now."""
    partitioned = ds_config.get("zero_optimization", {}).get("stage", 0) > 0
    return partitioned and read_state(checkpoint)["world_size"] != dist.get_world_size()


def load(engine, checkpoint: Path) -> int:
    """Restore weights, optimizer and schedule; returns the number of steps done.

    A collective. An engine that was configured to load the universal form is given it.
    """
    universal = checkpoint.with_suffix(".universal")
    if engine.load_universal_checkpoint():
        failed = None
        if ranks.is_first():
            try:
                _write_universal(checkpoint, universal)
            except (OSError, RuntimeError) as error:
                failed = InputError(f"{universal}: cannot be written: {error}")
        ranks.raise_together(failed)
    source = universal if engine.load_universal_checkpoint() else checkpoint
    found, _ = engine.load_checkpoint(str(source.parent), tag=source.name)
    if found is None:
        raise InputError(f"{checkpoint}: DeepSpeed finds nothing to load there; give another --out")
    _steps_beside_parameters(engine.optimizer)
    dist.barrier()
    if ranks.is_first():  # what was passed over, or left behind by a run that was killed
        _remove([path for path in checkpoint.parent.glob("step-*") if not _is_kept(path, step_of(checkpoint))])
    return read_state(checkpoint)["step"]


def _is_kept(path: Path, step: int) -> bool:
    return path in written(path.parent.parent) and step_of(path) <= step


def _steps_beside_parameters(optimizer: object) -> None:
    """Move a fused Adam's counts of steps to its device: the universal form has them on a CPU, which it cannot read."""
    adam = getattr(optimizer, "optimizer", optimizer)
    for group in adam.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                adam.state[parameter]["step"] = adam.state[parameter]["step"].to(parameter.device)


def _write_universal(checkpoint: Path, universal: Path) -> None:
    shutil.rmtree(universal, ignore_errors=True)
    ranks.say(f"{checkpoint}: was written by {read_state(checkpoint)['world_size']} ranks, redistributing it")
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
    options |= {"strict": True, "inject_missing_state": True}
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        ds_to_universal.main(Namespace(input_folder=str(checkpoint), output_folder=str(universal), **options))
    (universal.parent / "latest_universal").unlink(missing_ok=True)
