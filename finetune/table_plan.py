"""What a table of a paper is before it is made: the runs that its rows come from, and how rows are read off results."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from finetune.table_files import Row, Score
from finetune.table_jobs import Job
from finetune.table_runs import MissingDataError

CLASSIFIED = {"precision": "precision", "recall": "recall", "AUC": "auc"}  # a table's columns, by name in the results
SPLICED = {"top-k accuracy": "topk", "PR-AUC": "pr_auc"}
EXPRESSED = {
    "MSE of log(TPM + 1)": "mse_log",
    "below the mean, %": "mse_log_reduction",
    "MAE of TPM": "mae_tpm",
    "MAE below the mean, %": "mae_tpm_reduction",
}


@dataclass(frozen=True)
class Part:
    """Rows that one run's results give. label: of the row that stands for them where there are none; job: the run, or
    why there can be none; rows: of the results, parsed from the JSON file that the job makes."""

    label: str
    job: Job | MissingDataError
    rows: Callable[[dict], list[Row]]


@dataclass(frozen=True)
class Plan:
    """A table before it is made. more: runs that give no rows, such as a figure; caption: lines for below the table;
    grouped: rows of one group, as in "group: label", stand together."""

    title: str
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    more: tuple[Job, ...] = ()
    caption: tuple[str, ...] = ()
    grouped: bool = False

    @property
    def jobs(self) -> list[Job]:
        return [part.job for part in self.parts if isinstance(part.job, Job)] + list(self.more)


@dataclass
class Parts:
    """Collects parts; one whose data are missing stands there with the reason."""

    found: list[Part] = field(default_factory=list)

    def add(self, label: str, job: Callable[[], Job], rows: Callable[[dict], list[Row]]) -> None:
        try:
            self.found.append(Part(label, job(), rows))
        except MissingDataError as missing:
            self.found.append(Part(label, missing, rows))


def scores_of(result: dict, columns: dict[str, str]) -> dict[str, Score]:
    """One model's scores of finetune/run.py's results, by column of the table."""
    return {
        column: Score(result[name], result["std"].get(name), result["seeds"])
        for column, name in columns.items()
        if result.get(name) is not None
    }


def models_of(
    labels: dict[str, str], columns: dict[str, str], printed: dict[str, dict[str, str]] | None = None
) -> Callable[[dict], list[Row]]:
    """Rows of finetune/run.py's results: one for each table of it and each model of `labels` (model: label). printed:
    by model."""

    def rows(results: dict) -> list[Row]:
        tables = results["tables"]
        return [
            Row(
                label if len(tables) == 1 else f"{name.replace('_', ' ')}: {label}",
                scores_of(table["scores"][model], columns),
                (printed or {}).get(model, {}),
                _collapse(table["scores"][model]),
            )
            for name, table in tables.items()
            for model, label in labels.items()
        ]

    return rows


def _collapse(score: dict) -> str:
    """Names a classifier that predicts one class throughout."""
    collapsed = score.get("collapsed")
    return f"predicts one class throughout in {collapsed} of {score['seeds']} seeds" if collapsed else ""


def by_cell_type(results: dict, labels: dict[str, str]) -> list[Row]:
    """Means over a cell type's tables, whose names are CELL_FACTOR; without a spread, which is known of each alone."""
    groups: dict[str, list[dict]] = {}
    for name, table in results["tables"].items():
        groups.setdefault(name.rpartition("_")[0] or name, []).append(table["scores"])
    rows = []
    for cell_type, tables in groups.items():
        for model, label in labels.items():
            each = [scores_of(scores[model], CLASSIFIED) for scores in tables]
            means = {name: Score(mean(one[name].mean for one in each), None, each[0][name].n) for name in CLASSIFIED}
            rows.append(Row(f"{cell_type.replace('_', ' ')} ({len(each)}): {label}", means))
    return rows


def by_tissue(results: dict, labels: dict[str, str]) -> list[Row]:
    """Scores of expression over all tissues, and of each; `labels`: by model."""
    (table,) = results["tables"].values()
    scores = {label: table["scores"][model] for model, label in labels.items()}
    tissues = [name.partition("/")[2] for name in next(iter(scores.values())) if name.startswith("mse_log/")]
    columns = {"all tissues": EXPRESSED} | {
        tissue: {column: f"{name}/{tissue}" for column, name in EXPRESSED.items()} for tissue in tissues
    }
    return [
        Row(f"{group}: {label}", scores_of(of_model, names))
        for group, names in columns.items()
        for label, of_model in scores.items()
    ]


def rows_of(plan: Plan, failures: dict[Job, str]) -> list[Row]:
    """The rows of a plan whose jobs have run. failures: of those that failed, why."""
    rows: list[Row] = []
    for part in plan.parts:
        why = str(part.job) if isinstance(part.job, MissingDataError) else failures.get(part.job)
        if why:
            rows.append(Row(part.label, dict.fromkeys(plan.columns), note=why))
        else:
            rows += part.rows(json.loads(Path(part.job.makes).read_text()))
    if plan.grouped:
        first = {_group(row): number for number, row in reversed(list(enumerate(rows)))}
        rows.sort(key=lambda row: first[_group(row)])
    return rows


def _group(row: Row) -> str:
    return row.label.partition(": ")[0]
