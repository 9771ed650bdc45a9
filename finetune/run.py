"""Fine-tune a converted checkpoint on a task, beside its baselines, on one split.

    python finetune/run.py --task promoter
    python finetune/run.py --task promoter --data my_promoters --checkpoint runs/genebert --out runs/my_promoters
    python finetune/run.py --task tfbs --rc --seeds 5
    torchrun --nproc_per_node 8 finetune/run.py --task splice --bf16

Reads the task's data and runs/genebert; writes results.json, results.csv, and for each table of the task
predictions.tsv, figures and the fine-tuned models. Run it again with the same arguments to go on where it stopped.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import HfArgumentParser

from data_prep.bases import encode
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, ends_on_input_error
from data_prep.output_folder import MANIFEST, UNFINISHED, fingerprint, is_up_to_date, write_json
from data_prep.task_table import is_simulated
from finetune import model as task_model
from finetune import training
from finetune.bootstrap import intervals
from finetune.config import FinetuneConfig
from finetune.encoder import Encoder
from finetune.examples import NO_LABEL, Examples
from finetune.results import RESULTS, format_scores, summarise, write_csv, write_predictions
from finetune.split_audit import audit
from finetune.task import Table, Task, Unit
from finetune.tasks import TASKS

WORK, PREDICTIONS = "work", "predictions.npy"
TRAINED = ("pretrained", "scratch")
# What changes where a run reads and writes, not what it finds.
NOT_OF_RESULTS = ("data", "out", "checkpoint", "overwrite", "wandb", "local_rank")


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    tasks = "\n".join(f"  {name:<12}{task.summary}" for name, task in TASKS.items())
    parser = HfArgumentParser(
        FinetuneConfig,
        prog="finetune/run.py",
        description=f"{__doc__}\nTasks:\n{tasks}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise InputError(f"{unknown[0]}: no such argument; --help lists them")
    with joined():
        if is_first():
            run(config)
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            try:
                run(config)
            except InputError:  # the first process says it
                raise SystemExit(2) from None


@contextmanager
def joined() -> Iterator[None]:
    """Under torchrun or deepspeed, the group of all processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def run(config: FinetuneConfig) -> None:
    """Train and score every model asked for on every table of the task. Raises `InputError` for bad input."""
    task = TASKS.get(config.task)
    if task is None:
        raise InputError(f"--task {config.task}: there is no such task; there are {', '.join(TASKS)}")
    config.check()
    config = replace(config, models=config.models or [*TRAINED, *task.baselines])
    check_of_task(config, task)
    encoder = Encoder.at(Path(config.checkpoint))
    if config.modality == "multimodal":
        encoder.check_multimodal()
    data, out = Path(config.data or f"data/{config.task}"), Path(config.out or f"runs/finetune-{config.task}")
    tables = read_tables(data, task, encoder, config)
    made_from = fingerprint(
        data={name: sha256_of_file(path) for name, path in sorted(files_of(data, tables).items())},
        checkpoint=encoder.fingerprint,
        config=asdict(config) | dict.fromkeys(NOT_OF_RESULTS),
    )
    audited = {}
    for name, table in tables.items():
        splits, audited[name] = audit(table.splits, config.dedup)
        tables[name] = replace(table, splits=splits)
        check_table(tables[name], config)
    if not begins(out, made_from, config, [data, config.checkpoint]):
        print(f"{out}: up to date")
        print("\n".join(format_scores(json.loads((out / RESULTS).read_text()))))
        return

    simulated = is_simulated(data)
    results = {
        "fingerprint": made_from,
        "task": config.task,
        "data": str(data),
        "simulated": simulated,
        "checkpoint": {"folder": config.checkpoint, "step": encoder.description.get("step"), "k": encoder.k},
        "config": asdict(config),
        "columns": list(task.columns),
        "tables": {},
    }
    for name, table in tables.items():
        title = f"{config.task}{'' if len(tables) == 1 else f' {name}'}{' (simulated data)' if simulated else ''}"
        say_what_is_read(table, encoder, title)
        report_audit(audited[name], config.dedup)
        here = out if len(tables) == 1 else out / name
        results["tables"][name] = {
            "evaluated_on": table.evaluated_on,
            "rows": {split: len(examples) for split, examples in table.splits.items()},
            "audit": audited[name],
            "scores": score_table(task, name, table, encoder, config, out, here, title),
        }
    if not is_first():
        return
    write_csv(out / "results.csv", results)
    write_json(out / RESULTS, results)
    shutil.rmtree(out / WORK, ignore_errors=True)
    print("\n".join(format_scores(results)))
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def check_of_task(config: FinetuneConfig, task: Task) -> None:
    """Raise `InputError` for what this task cannot do."""
    known = [*TRAINED, *task.baselines]
    unknown = [name for name in config.models if name not in known]
    if unknown:
        raise InputError(f"--models {' '.join(unknown)}: give some of {', '.join(known)}")
    if config.rc and task.stranded:
        raise InputError(f"--rc: a sequence of {config.task} has a strand; leave it out")
    if config.deepspeed and not Path(config.deepspeed).is_file():
        raise InputError(f"--deepspeed {config.deepspeed}: no such file; ds_configs/ holds some")


def read_tables(data: Path, task: Task, encoder: Encoder, config: FinetuneConfig) -> dict[str, Table]:
    """The tables of a folder, or of each folder in it, by name. Raises `InputError` where there are none."""
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; make it with: {task.prepare}, or name another one with --data")
    folders = sorted(path for path in data.iterdir() if path.is_dir() and any(path.glob("train.*")))
    if any(data.glob("train.*")) or not folders:
        folders = [data]
    tables = {}
    for folder in folders:
        for name, table in task.read(folder, encoder, config).items():
            whole = "/".join(part for part in (folder.name if folder != data else "", name) if part)
            tables[whole or data.name] = table
    if config.modality == "multimodal":
        tables = {name: replace(table, splits=scanned(table.splits, encoder)) for name, table in tables.items()}
    return tables


def scanned(splits: dict[str, Examples], encoder: Encoder) -> dict[str, Examples]:
    """The splits with the binding matrix of each sequence, scanned where the data do not hold it, once of each pool."""
    found: dict[int, np.ndarray] = {}
    for examples in splits.values():
        pool = examples.sequences
        if examples.binding is None and id(pool) not in found:
            found[id(pool)] = encoder.scanner.scan([encode(sequence) for sequence in pool])
    return {
        name: replace(examples, binding=found[id(examples.sequences)]) if examples.binding is None else examples
        for name, examples in splits.items()
    }


def files_of(data: Path, tables: dict[str, Table]) -> dict[str, Path]:
    """The files that the tables were read from, by their names in `data`."""
    paths = {examples.path for table in tables.values() for examples in table.splits.values()}
    manifests = {path.parent / MANIFEST for path in paths if (path.parent / MANIFEST).is_file()}
    return {str(path.relative_to(data)): path for path in paths | manifests}


def check_table(table: Table, config: FinetuneConfig) -> None:
    """Raise `InputError` for a table that cannot be trained or scored on."""
    for split in (table.train, table.test):
        labels = split.targets[split.targets != NO_LABEL]
        if not len(split) or (table.target.kind != "values" and len(np.unique(labels)) < 2):
            left = " are left after --dedup" if config.dedup else ""
            raise InputError(f"{split.path}: fewer than two classes{left}; nothing can be learnt from it")
    if config.early_stopping and len(table.splits) < 3:
        raise InputError(
            f"{table.train.path}: --early_stopping chooses on dev, which must not be what is scored; give dev and test"
        )


def begins(out: Path, made_from: str, config: FinetuneConfig, inputs: list) -> bool:
    """Make the folder ready for a run, the first one or one that goes on; False where the results are there."""
    answer = [None]
    if is_first():
        going_on = read_json(out / UNFINISHED).get("fingerprint") == made_from
        try:
            answer = [not is_up_to_date(out, made_from, config.overwrite or going_on, inputs, RESULTS)]
        except InputError as error:
            answer = [error]
        if answer == [True]:
            if not going_on:
                shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / UNFINISHED, {"fingerprint": made_from, "config": asdict(config)})
    if dist.is_initialized():
        dist.broadcast_object_list(answer)
    if isinstance(answer[0], InputError):
        raise answer[0]
    return answer[0]


def score_table(
    task: Task, name: str, table: Table, encoder: Encoder, config: FinetuneConfig, out: Path, here: Path, title: str
) -> dict:
    """Train, score and draw every model on one table; scores by model. here: folder of its files."""
    first_seed, scores = {}, {}
    for model in config.models:
        started = time.monotonic()
        seeded = model in TRAINED or task.baselines[model].seeded
        of_seeds = []
        for seed in range(config.seed, config.seed + (config.seeds if seeded else 1)):
            unit = Unit(table, config, seed, out / WORK / name / f"{model}-{seed}")
            predictions = predicted(task, model, unit, encoder, here / model)
            if predictions is None:
                continue
            first_seed.setdefault(model, predictions)
            of_seeds.append(task.score(table.test.targets, predictions, table=table))
        if is_first():
            score = partial(task.score, table=table)
            bounds = intervals(score, table.test.targets, first_seed[model], task.columns, task.resamples, config.seed)
            scores[model] = summarise(of_seeds, bounds, time.monotonic() - started)
    if is_first():
        here.mkdir(exist_ok=True, parents=True)
        write_predictions(here / "predictions.tsv", table, first_seed)
        task.draw(here, table, first_seed, title)
    return scores


def predicted(task: Task, model: str, unit: Unit, encoder: Encoder, keep: Path) -> np.ndarray | None:
    """What one model predicts of the rows that are scored; kept in the unit's folder for a run that goes on.

    keep: folder for the fine-tuned model, which the first seed's goes to. None of a baseline on all but the first of
    several processes.
    """
    done = unit.folder / PREDICTIONS
    if done.is_file():
        return np.load(done, allow_pickle=False)
    if model in TRAINED:
        found = fine_tuned(model == "pretrained", unit, encoder, keep)
    elif is_first() or task.baselines[model].seeded:  # those train, all processes together
        found = task.baselines[model].predict(unit)
    else:
        return None
    if is_first():
        unit.folder.mkdir(parents=True, exist_ok=True)
        np.save(done.with_suffix(".partial.npy"), found)
        done.with_suffix(".partial.npy").rename(done)
    return found


def fine_tuned(pretrained: bool, unit: Unit, encoder: Encoder, keep: Path) -> np.ndarray:
    """Predictions of a fine-tuned encoder; the first seed's model is saved in `keep`."""
    config, table = unit.config, unit.table
    longest = tokens_read(table, encoder)
    weights = class_weights(table) if config.class_weights == "balanced" else None
    model = task_model.new_model(
        encoder, table.target, config.modality, pretrained, longest, unit.seed, class_weights=weights
    )
    if table.target.kind == "values":
        # From 0 the bias would take most of a short training, and LAMB, which scales by its norm, would not move it.
        model.head.bias.data.copy_(torch.from_numpy(table.train.targets.mean(axis=0)))
    training.restrict(model, config)
    trainer = training.trainer(
        model,
        encoder.tokens,
        longest,
        table.train,
        table.splits.get("dev"),
        config,
        unit.seed,
        unit.folder / "training",
        f"{config.task}-{keep.name}-{unit.seed}",
    )
    training.fit(trainer)
    found = training.predict(trainer, table.test, config.rc)
    if is_first():
        if unit.seed == config.seed:
            training.merge_adapters(model)
            task_model.save(
                model,
                encoder,
                keep,
                task=config.task,
                longest=longest,
                bp=table.bp,
                both_strands=config.rc,
                row_shape=list(table.train.rows.shape[1:]),
                **table.about,
            )
        shutil.rmtree(unit.folder / "training", ignore_errors=True)
    return found


def tokens_read(table: Table, encoder: Encoder) -> int:
    """Tokens that a model reads of a sequence of the table. Those over predicted nucleotides must all be there."""
    if encoder.k is None:
        if table.target.kind == "nucleotides":
            raise InputError(f"{encoder.folder}: its tokens are no k-mers, so that nucleotides have none of their own")
        return encoder.longest
    wanted = table.bp - encoder.k + 3
    return wanted if table.target.kind == "nucleotides" else min(wanted, encoder.longest)


def class_weights(table: Table) -> torch.Tensor:
    """In inverse proportion to the classes' training rows, of mean 1 over the rows; float32 [classes]."""
    labels = table.train.targets[table.train.targets != NO_LABEL]
    counts = np.bincount(labels, minlength=len(table.target.outputs))
    return torch.from_numpy(len(labels) / (len(counts) * counts.clip(min=1))).float()


def read_json(path: Path) -> dict:
    """A JSON object; an empty one where the file is not there or holds none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def say_what_is_read(table: Table, encoder: Encoder, title: str) -> None:
    """The rows, and how much of their sequences the encoder reads."""
    print(f"{title}: {len(table.train):,} training rows, {len(table.test):,} rows of {table.test.path} to score")
    if table.target.kind == "nucleotides":
        return
    for split in (table.train, table.test):
        cut = sum(encoder.tokens.count(sequence) > encoder.longest for sequence in split.sequences)
        if cut:
            reads = f"{encoder.longest + encoder.k - 3} bp" if encoder.k else f"{encoder.longest} tokens"
            print(f"{split.path}: {cut:,} sequences are cut to the {reads} that the encoder reads")


def report_audit(audited: dict[str, dict[str, int]], dedup: bool) -> None:
    """Say what recurs, where anything does."""
    for split, counts in audited.items():
        if counts["repeated"] or counts["seen"] or counts["seen_rc"]:
            print(
                f"{split}: {counts['repeated']:,} rows repeat an earlier row of it, {counts['seen']:,} stand in an "
                f"earlier split, {counts['seen_rc']:,} as reverse complement, {counts['conflicting']:,} with another "
                f"label; {'dropped' if dedup else 'kept (--dedup drops them)'}"
            )


if __name__ == "__main__":
    main()
