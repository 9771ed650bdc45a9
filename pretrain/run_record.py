"""What a run's folder records of it besides checkpoints: metrics.jsonl, samples.jsonl, figures; read by anybody."""

import json
import re
from contextlib import suppress
from pathlib import Path

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
FIGURES = "figures"

Figures = dict[str, Path]  # by name: similarity, tsne


def read_metrics(run_dir: Path) -> list[dict]:
    """The rows written so far; a line that a killed run or a full disk cut short is left out."""
    return _read_rows(run_dir / METRICS)


def read_samples(run_dir: Path) -> list[dict]:
    """What the evaluations wrote of a few held-out samples (`pretrain.evaluation`)."""
    return _read_rows(run_dir / SAMPLES)


def figure_path(run_dir: Path, name: str, step: int) -> Path:
    return run_dir / FIGURES / f"{name}-{step:06d}.png"


def undrawn_path(run_dir: Path, step: int) -> Path:
    """Embeddings of which the figures are not all drawn yet."""
    return run_dir / FIGURES / f"undrawn-{step:06d}.npz"


def read_figures(run_dir: Path) -> dict[int, Figures]:
    """The figures of evaluations, by step and name; none of a step that is still being drawn."""
    figures: dict[int, Figures] = {}
    for path in sorted((run_dir / FIGURES).glob("*-*.png")):
        name, _, step = path.stem.rpartition("-")
        if step.isdecimal() and not undrawn_path(run_dir, int(step)).exists():
            figures.setdefault(int(step), {})[name] = path
    return figures


def safe_names(names: list[str]) -> list[str]:
    """Names that a metric's may hold: letters, digits and `_.+-`; those that would be the same are numbered."""
    safe: list[str] = []
    for number, name in enumerate(names):
        plain = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("_")
        safe.append(plain if plain and plain not in safe else f"{plain}_{number + 1}")
    return safe


def _read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().split("\n")[:-1]:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows
