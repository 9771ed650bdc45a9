"""Make a table or figure of the papers again: the runs that it needs, and our values beside the printed ones.

    python finetune/tables.py table5
    python finetune/tables.py table7 --scale paper --dry_run
    python finetune/tables.py all --parallel 8

Runs pretrain/main.py, pretrain/convert.py and finetune/run.py, skips what is done, and goes on where it stopped; tables
share the runs that they have in common. Writes OUT/NAME.md, OUT/NAME.csv and OUT/NAME.png; runs lie beside them, what
they print in OUT/jobs. Where the data of a row are missing, or a run fails, the other rows are made, and the exit code
is 1.
  small  tiny models in minutes on 2 CPU cores; data that are missing in data/ are simulated
  paper  the full runs, on your data: DATA/shards, promoter, tfbs, hscr, hscr_long, splice, expression and promoters
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from transformers import HfArgumentParser

from data_prep.errors import InputError, ends_on_input_error
from data_prep.output_folder import check_writable, write_json
from finetune.paper_tables import TABLES
from finetune.table_files import PaperTable, commit, machine, markdown, write
from finetune.table_jobs import Job, in_order, run
from finetune.table_plan import Plan, rows_of
from finetune.table_runs import CALCULATED_MFU, LAUNCHER, SCALES, SIMULATED, Runs

ALL = "all"


@dataclass(frozen=True)
class TablesConfig:
    scale: str | None = field(default=None, metadata={"help": "small or paper; default: paper on CUDA, else small."})
    data: str = field(default=str(SIMULATED), metadata={"help": "Folder of all data."})
    out: str | None = field(default=None, metadata={"help": "Folder to write; default: runs/tables-SCALE."})
    parallel: int | None = field(
        default=None, metadata={"help": "Runs side by side; default: 1 on GPUs, which it takes all; 2 on a CPU."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print the commands and their estimated GPU hours alone."})
    mfu: float = field(
        default=CALCULATED_MFU,
        metadata={"help": "Model FLOPs utilisation that the estimate takes; give what your pre-training's log says."},
    )


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        TablesConfig,
        prog="finetune/tables.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(TABLES)}, or {ALL}")
    given = parser.parse_args(arguments)
    config = TablesConfig(**{one.name: getattr(given, one.name) for one in fields(TablesConfig)})
    if not make(given.name, config):
        sys.exit(1)


def make(name: str, config: TablesConfig) -> bool:
    """Make a table, or all; False where a row is missing. Raises `InputError` for bad input."""
    if name not in (*TABLES, ALL):
        raise InputError(f"{name}: there is no such table; there are {', '.join(TABLES)}, and {ALL}")
    scale = SCALES.get(config.scale or ("paper" if torch.cuda.is_available() else "small"))
    if scale is None:
        raise InputError(f"--scale {config.scale}: give {' or '.join(SCALES)}")
    if config.parallel is not None and config.parallel < 1:
        raise InputError(f"--parallel {config.parallel}: give at least 1")
    if not 0 < config.mfu <= 1:
        raise InputError(f"--mfu {config.mfu}: give more than 0, at most 1")
    data, out = Path(config.data), Path(config.out or f"runs/tables-{scale.name}")
    if data != SIMULATED and not data.is_dir() and not config.dry_run:
        raise InputError(f"{data}: no such folder; data/ is where what is missing is simulated")
    runs = Runs(scale, data, out, check=not config.dry_run or scale.simulated, mfu=config.mfu)
    plans = {one: TABLES[one](runs) for one in (TABLES if name == ALL else [name])}
    jobs = in_order([job for plan in plans.values() for job in plan.jobs])
    if config.dry_run:
        print("\n".join(dry_run(jobs)))
        return True
    check_writable(out)
    for path, content in runs.ds_configs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    gpus = torch.cuda.device_count()
    failures = run(jobs, runs.jobs, config.parallel or (1 if gpus else 2), gpus)
    why = {job: failure.reason for job, failure in failures.items()}
    whole = [finished(one, plan, runs, why) for one, plan in plans.items()]
    return all(whole)


def dry_run(jobs: list[Job]) -> list[str]:
    """Every command, in an order in which they can be run, and the GPU hours of those that were estimated."""
    lines = []
    for job in jobs:
        hours = f"  # {job.hours:,.0f} GPU hours" if job.hours else ""
        lines.append(f"{shlex.join(as_typed(job.command))}{hours}")
    total = sum(job.hours for job in jobs)
    lines.append(f"# {len(jobs)} runs")
    if total:
        lines.append(f"# pre-training: {total:,.0f} hours of one H200 (calculated); fine-tuning is not estimated")
    return lines


def as_typed(command: tuple[str, ...]) -> list[str]:
    """A job's command as a user would type it."""
    n = len(LAUNCHER)
    return ["deepspeed", *command[n:]] if command[:n] == LAUNCHER else ["python", *command[1:]]


def finished(name: str, plan: Plan, runs: Runs, failures: dict[Job, str]) -> bool:
    """Write and print a table of runs that are over; False where something of it is missing."""
    rows = rows_of(plan, failures)
    settings = [*plan.caption, *settings_of(runs)]
    settings += [f"{job.name} failed: {failures[job]}" for job in plan.more if job in failures]
    table = PaperTable(name, plan.title, plan.columns, tuple(rows), tuple(settings), commit(), machine())
    write(table, runs.out)
    print(markdown(table))
    whole = all(any(row.scores.values()) for row in rows) and not any(job in failures for job in plan.more)
    print(f"{runs.out}: {name}.md, {name}.csv, {name}.png{'' if whole else '; not whole: see the notes'}\n")
    return whole


def settings_of(runs: Runs) -> list[str]:
    """How the runs were made, for below a table."""
    scale = runs.scale
    simulated = ["Simulated data, where data/ did not hold others"] if scale.simulated else []
    pretraining = " ".join((scale.preset, *scale.pretraining))
    fine_tuning = [f"Fine-tuning of {task}: {' '.join(words)}" for task, words in scale.finetuning.items()]
    return [*simulated, f"Pre-training: {pretraining}, {scale.steps:,} steps, batch {scale.batch:,}", *fine_tuning]


if __name__ == "__main__":
    main()
