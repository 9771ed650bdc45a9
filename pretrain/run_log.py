"""The record of a run: metrics.jsonl, samples.jsonl, figures and W&B, all from the same numbers, on the first rank."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain import ranks
from pretrain.atomic_file import write_atomically
from pretrain.run_record import METRICS, SAMPLES, Figures, read_figures, read_metrics, read_samples
from pretrain.wandb_log import WandbLog, mode_of


class RunLog:
    """Appends rows of metrics. A resumed run drops what lies past its checkpoint, so that its curve joins."""

    def __init__(self, run_dir: Path, resumed_at: int, config: dict, wandb_mode: str, wandb_project: str):
        self.run_dir = run_dir
        kept = [row for row in read_metrics(run_dir) if row["step"] <= resumed_at]
        _write_rows(run_dir / METRICS, kept)
        _write_rows(run_dir / SAMPLES, [row for row in read_samples(run_dir) if row["step"] <= resumed_at])
        figures = read_figures(run_dir)
        for step in [step for step in figures if step > resumed_at]:
            for path in figures.pop(step).values():
                path.unlink()
        self._file = open(run_dir / METRICS, "a", buffering=1)  # noqa: SIM115 (closed by close)
        self._warned: set[str] = set()
        mode = mode_of(wandb_mode)
        self._wandb = WandbLog(run_dir, kept, figures, config, mode, wandb_project) if mode != "off" else None
        ranks.before_failing(lambda: self._finish_wandb(exit_code=1))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row; `metrics` by name, such as `loss/total`."""
        row = {"step": step, **metrics}
        with self.goes_on_without(METRICS):
            self._file.write(json.dumps(row) + "\n")
        if self._wandb:
            self._wandb.write(row)

    def figures(self, step: int, figures: Figures) -> None:
        """Figures of a step's evaluation, by name, as they lie in the run folder."""
        if self._wandb and figures:
            self._wandb.figures(step, figures)

    def samples(self, step: int, samples: list[dict]) -> None:
        """Held-out samples and what the model makes of them."""
        with self.goes_on_without(SAMPLES), open(self.run_dir / SAMPLES, "a") as file:
            file.writelines(json.dumps({"step": step, **sample}) + "\n" for sample in samples)

    def checkpoints(self, last: Path, best: Path | None) -> None:
        """Hand the last and the best checkpoint to W&B, as versions of one artifact."""
        if self._wandb:
            self._wandb.checkpoints(({"best": best} if best else {}) | {"latest": last})

    def close(self) -> None:
        with self.goes_on_without(METRICS):
            self._file.close()
        self._finish_wandb(0)

    def _finish_wandb(self, exit_code: int) -> None:
        if self._wandb:
            self._wandb.close(exit_code)
            self._wandb = None

    @contextmanager
    def goes_on_without(self, name: str) -> Iterator[None]:
        """A file of the record that cannot be written, as on a full disk, is a word, once, and not the run's end."""
        try:
            yield
        except OSError as error:
            if name not in self._warned:
                reason = error.strerror or error
                print(f"warning: {self.run_dir / name}: cannot be written: {reason}", file=sys.stderr, flush=True)
            self._warned.add(name)


def git_commit() -> str | None:
    """The commit of this program's checkout, `-dirty` where files differ from it; None where there is none."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def _write_rows(path: Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
