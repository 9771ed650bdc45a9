"""Curves and figures of held-out embeddings, drawn by a process beside the run: no rank waits for a t-SNE.

The process ends with the run's own; the next run draws what was left. What fails in it is a word, once, and not the
run's end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from pretrain.run_log import RunLog
from pretrain.run_record import FIGURES, read_figures, undrawn_path

ROOT = Path(__file__).parents[1]
LONGEST = 120.0  # seconds for the drawings of an evaluation


@dataclass(frozen=True)
class Embeddings:
    """Of the first held-out samples, in order, fp32. cls: [n, hidden_size]; sequence, region: [n, projection_size], or
    None of a model that does not match; cell_type: [n], names."""

    cls: np.ndarray
    sequence: np.ndarray | None
    region: np.ndarray | None
    cell_type: np.ndarray


class Drawing:
    """Draws one evaluation at a time, and hands its figures to the log. global_batch, k: as `curves.draw` takes
    them."""

    def __init__(self, log: RunLog, global_batch: int, k: int | None):
        self._log, self._run_dir = log, log.run_dir
        self._curves = {"run_dir": str(log.run_dir.resolve()), "global_batch": global_batch, "k": k}
        self._process: subprocess.Popen | None = None
        self._errors: IO[bytes] | None = None
        self._step = 0
        self._warned = False

    def resume(self, done: int) -> None:
        """Draw what a run that ended at step `done` or later left undrawn."""
        for path in sorted((self._run_dir / FIGURES).glob("undrawn-*.npz")):
            step = path.stem.removeprefix("undrawn-")
            if int(step) <= done:
                self._begin(int(step), path)
            else:
                for of_step in path.parent.glob(f"*-{step}.*"):
                    of_step.unlink()

    def curves(self, step: int) -> None:
        """Draw the curves up to a step."""
        with self._log.goes_on_without("curves.png"):
            self._begin(step, None)

    def evaluation(self, step: int, embeddings: Embeddings) -> None:
        """Draw the curves up to an evaluation, and its figures; first waits for those of the one before."""
        path = undrawn_path(self._run_dir, step)
        partial = path.with_name("undrawn.partial")
        with self._log.goes_on_without(FIGURES):
            path.parent.mkdir(exist_ok=True)
            with open(partial, "wb") as file:
                np.savez(file, **{name: array for name, array in vars(embeddings).items() if array is not None})
            partial.replace(path)
            self._begin(step, path)

    def look(self) -> None:
        """Log the figures if they are ready."""
        if self._process and self._process.poll() is not None:
            self._end()

    def wait(self) -> None:
        """Log the figures once they are ready; after LONGEST, do without them."""
        if self._process:
            if not self._ended_within(LONGEST):
                self._warn(f"not ready after {LONGEST:g} s")
            self._end()

    def leave(self, seconds: float) -> None:
        """As `wait`, but what is not ready by then is left to the next run."""
        if self._process and self._ended_within(seconds):
            self._end()

    def _ended_within(self, seconds: float) -> bool:
        """False where it had to be killed."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def _begin(self, step: int, embeddings: Path | None) -> None:
        self.wait()
        self._step = step
        path = str(embeddings.resolve()) if embeddings else None
        job = self._curves | {"step": step, "embeddings": path, "parent": os.getpid()}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pretrain.embedding_figures", json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def _end(self) -> None:
        with self._errors as file:
            file.seek(0)
            said = file.read().decode(errors="replace").strip().split("\n")
        code, self._process = self._process.returncode, None
        if code == -signal.SIGTERM:  # a scheduler's, by which the run ends, too
            return
        if code:
            self._warn(said[-1] or f"exit code {code}")
        with self._log.goes_on_without(FIGURES):
            undrawn_path(self._run_dir, self._step).unlink(missing_ok=True)
        self._log.figures(self._step, read_figures(self._run_dir).get(self._step, {}))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            what = f"{self._run_dir / FIGURES}: those of step {self._step} are not drawn"
            print(f"warning: {what}: {reason}", file=sys.stderr, flush=True)
        self._warned = True
