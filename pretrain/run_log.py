"""The record of a run: metrics.jsonl, curves.png and W&B, all from the same numbers, on the first rank."""

import json
import netrc
import os
import secrets
from pathlib import Path

from pretrain.checkpoint import write_atomically

METRICS = "metrics.jsonl"


class RunLog:
    """Appends rows of metrics. A resumed run drops the rows past its checkpoint, so that its curve joins."""

    def __init__(self, run_dir: Path, resumed_at: int, config: dict, wandb_mode: str, wandb_project: str):
        self.path = run_dir / METRICS
        kept = [row for row in read_metrics(run_dir) if row["step"] <= resumed_at]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (closed by close)
        self._wandb = _start_wandb(run_dir, config, wandb_mode, wandb_project) if wandb_mode != "off" else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row; `metrics` by name, such as `loss/total`."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._wandb:
            self._wandb.log({"step": step, **metrics})

    def close(self) -> None:
        self._file.close()
        if self._wandb:
            self._wandb.finish()


def read_metrics(run_dir: Path) -> list[dict]:
    """The rows written so far; a last line that a killed run cut short is left out."""
    path = run_dir / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _start_wandb(run_dir: Path, config: dict, mode: str, project: str):
    import wandb

    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    identity = run_dir / "wandb_id"
    if not identity.is_file():
        write_atomically(identity, secrets.token_hex(4))
    run = wandb.init(
        project=project,
        dir=run_dir,
        mode=mode,
        config=config,
        id=identity.read_text(),
        resume="allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
