"""Fine-tune a converted checkpoint on a task, beside its baselines, on one split.

    python finetune/run.py --task promoter
    python finetune/run.py --task promoter --data my_promoters --checkpoint runs/genebert --out runs/my_promoters

Reads the task's data and runs/genebert; writes results.json, results.csv, predictions.tsv and roc_pr.png. Run it again
with the same arguments to go on where it stopped.
"""

import argparse
import csv
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, ends_on_input_error
from data_prep.output_folder import MANIFEST, UNFINISHED, fingerprint, is_up_to_date, write_json
from finetune import classifier, figures, linear_baseline
from finetune.metrics import classification
from finetune.sequence_table import LabelledSequences, fingerprints
from finetune.split_audit import audit
from finetune.tasks import TASKS

DESCRIPTION = "genebert.json"


@dataclass(frozen=True)
class FinetuneConfig:
    task: str = field(metadata={"help": "; ".join(f"{name}: {task.summary}" for name, task in TASKS.items())})
    data: str | None = field(default=None, metadata={"help": "Folder of the task's data; default: the task's own."})
    checkpoint: str = field(default="runs/genebert", metadata={"help": "Folder that pretrain/convert.py wrote."})
    out: str | None = field(default=None, metadata={"help": "Folder to write; default: runs/finetune-TASK."})
    models: list[str] = field(
        default_factory=lambda: ["pretrained", "scratch", "linear"],
        metadata={"help": "What to compare: pretrained, scratch (same shape, new weights), linear (3- to 6-mers)."},
    )
    epochs: float = field(default=3.0, metadata={"help": "Passes over the training rows."})
    batch_size: int = field(default=32, metadata={"help": "Rows in a step, on each device."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak, after a linear warm-up over a tenth of the steps; default: 5e-5 for an encoder of width 768,"
            " and in inverse proportion for others."
        },
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16."})
    seed: int = field(default=0, metadata={"help": "Decides new weights and the order of rows."})
    dedup: bool = field(default=False, metadata={"help": "Drop rows that recur within or across splits."})
    wandb: Literal["off", "offline", "online"] = field(default="off", metadata={"help": "Log to W&B."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        FinetuneConfig,
        prog="finetune/run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise InputError(f"{unknown[0]}: no such argument; --help lists them")
    run(config)


def run(config: FinetuneConfig) -> None:
    """Train and score every model asked for. Raises `InputError` for bad input."""
    task = TASKS.get(config.task)
    if task is None:
        raise InputError(f"--task {config.task}: there is no such task yet; there is {', '.join(TASKS)}")
    check(config)
    checkpoint, out = Path(config.checkpoint), Path(config.out or f"runs/finetune-{config.task}")
    description = read_description(checkpoint)
    data = Path(config.data or task.default_data)
    splits = task.read(str(data), description["k"])
    made_from = fingerprint(
        data=fingerprints(splits),
        checkpoint=sha256_of_file(checkpoint / "sequence" / "model.safetensors"),
        config=asdict(config) | {"data": None, "out": None, "checkpoint": None, "overwrite": None, "wandb": None},
    )
    splits, audited = audit(splits, config.dedup)
    evaluated_on = "test" if "test" in splits else "dev"
    train, test = splits["train"], splits[evaluated_on]
    for split in (train, test):
        if len(np.unique(split.labels)) < 2:
            raise InputError(f"{split.path}: fewer than two classes are left after --dedup")
    results_path = out / "results.json"
    going_on = belongs(out, made_from)
    if is_up_to_date(out, made_from, config.overwrite or going_on, [data, checkpoint], "results.json"):
        print(f"{out}: up to date")
        print("\n".join(format_scores(json.loads(results_path.read_text()))))
        return
    if not going_on:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / UNFINISHED, {"fingerprint": made_from, "config": asdict(config)})

    simulated = is_simulated(data)
    print(
        f"{config.task}{' (simulated data)' if simulated else ''}: {len(train):,} training rows, {len(test):,} rows of "
        f"{test.path} to score"
    )
    report_audit(audited, config.dedup)
    for split in (train, test):
        cut, longest = classifier.n_truncated(classifier.load_tokenizer(checkpoint), description["k"], split)
        if cut:
            print(f"{split.path}: {cut:,} rows are cut to the {longest} bp that the encoder reads")

    probabilities, scores = {}, {}
    for name in config.models:
        started = time.monotonic()
        if name == "linear":
            probabilities[name] = linear_baseline.predict(train.sequences, train.labels, test.sequences, config.seed)
        else:
            probabilities[name] = fine_tuned(config, checkpoint, name == "pretrained", task.n_classes, train, test, out)
        scores[name] = classification(test.labels, probabilities[name]) | {"seconds": time.monotonic() - started}

    write_predictions(out / "predictions.tsv", test, probabilities)
    figures.roc_and_pr(
        out / "roc_pr.png",
        test.labels,
        {name: p[:, 1] for name, p in probabilities.items()},
        f"{config.task}, {len(test):,} rows of {evaluated_on}{' (simulated)' if simulated else ''}",
    )
    results = {
        "fingerprint": made_from,
        "task": config.task,
        "data": str(data),
        "simulated": simulated,
        "evaluated_on": evaluated_on,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "audit": audited,
        "checkpoint": {"folder": str(checkpoint), "step": description["step"], "k": description["k"]},
        "config": asdict(config),
        "scores": scores,
    }
    write_csv(out / "results.csv", results)
    write_json(results_path, results)
    print("\n".join(format_scores(results)))
    print(f"{out}: results.json, results.csv, predictions.tsv, roc_pr.png")


def check(config: FinetuneConfig) -> None:
    """Raise `InputError` for values that no run can have."""
    unknown = sorted(set(config.models) - {"pretrained", "scratch", "linear"})
    if unknown or not config.models:
        raise InputError(f"--models {' '.join(unknown)}: give some of pretrained, scratch, linear")
    for name, least in (("batch_size", 1), ("seed", 0), ("weight_decay", 0)):
        if getattr(config, name) < least:
            raise InputError(f"--{name} {getattr(config, name)}: give at least {least}")
    if config.epochs <= 0 or (config.learning_rate is not None and config.learning_rate <= 0):
        raise InputError("--epochs and --learning_rate must be above 0")


def read_description(checkpoint: Path) -> dict:
    """genebert.json of a converted checkpoint."""
    path = checkpoint / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"{path}: no converted checkpoint there; make one with: python pretrain/convert.py RUN_DIR {checkpoint}"
        )
    description = read_json(path)
    weights = checkpoint / "sequence" / "model.safetensors"
    if "k" not in description or "step" not in description or not weights.is_file():
        raise InputError(f"{path}: not whole, or {weights} is missing; convert the checkpoint again")
    return description


def read_json(path: Path) -> dict:
    """A JSON object; an empty one where the file is not there or holds none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def belongs(out: Path, made_from: str) -> bool:
    """True where `out` holds a run of the same arguments that was not finished."""
    return read_json(out / UNFINISHED).get("fingerprint") == made_from


def is_simulated(data: Path) -> bool:
    """True where the folder, or the one above it, says that its data are simulated."""
    return any(read_json(folder / MANIFEST).get("simulated", False) for folder in (data, data.parent))


def fine_tuned(
    config: FinetuneConfig,
    checkpoint: Path,
    pretrained: bool,
    n_classes: int,
    train: LabelledSequences,
    test: LabelledSequences,
    out: Path,
) -> np.ndarray:
    """Probabilities of a fine-tuned encoder over `test`."""
    os.environ["WANDB_MODE"] = "disabled" if config.wandb == "off" else config.wandb
    quiet = not sys.stderr.isatty()
    logging.set_verbosity_error()
    if quiet:
        logging.disable_progress_bar()
    model = classifier.new_model(checkpoint, pretrained, n_classes, config.seed)
    arguments = TrainingArguments(
        output_dir=str(out / ("pretrained" if pretrained else "scratch")),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=4 * config.batch_size,
        learning_rate=config.learning_rate or 5e-5 * 768 / model.config.hidden_size,
        warmup_steps=0.1,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        seed=config.seed,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=50,
        disable_tqdm=quiet,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none" if config.wandb == "off" else "wandb",
        run_name=f"{config.task}-{'pretrained' if pretrained else 'scratch'}",
    )
    return classifier.fit_and_predict(model, classifier.load_tokenizer(checkpoint), train, test, arguments)


def report_audit(audited: dict[str, dict[str, int]], dedup: bool) -> None:
    """Say what recurs, where anything does."""
    for split, counts in audited.items():
        if counts["repeated"] or counts["seen"] or counts["seen_rc"]:
            print(
                f"{split}: {counts['repeated']:,} rows repeat an earlier row of it, {counts['seen']:,} stand in an "
                f"earlier split, {counts['seen_rc']:,} as reverse complement, {counts['conflicting']:,} with another "
                f"label; {'dropped' if dedup else 'kept (--dedup drops them)'}"
            )


def format_scores(results: dict) -> list[str]:
    """A table of the scores, a line each; a collapsed model is named."""
    columns = {"precision": 10, "recall": 8, "auc": 8, "mcc": 8}
    lines = [f"{'model':<12}" + "".join(f"{name:>{width}}" for name, width in columns.items()) + f"{'seconds':>9}"]
    for name, score in results["scores"].items():
        values = "".join(f"{score[column]:>{width}.3f}" for column, width in columns.items())
        collapsed = "  collapsed: predicts one class throughout" if score["collapsed"] else ""
        lines.append(f"{name:<12}{values}{score['seconds']:>9.1f}{collapsed}")
    return lines


def write_csv(path: Path, results: dict) -> None:
    with open(path, "w", newline="") as file:
        columns = ["task", "model", "evaluated_on", *next(iter(results["scores"].values()))]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for name, score in results["scores"].items():
            writer.writerow({"task": results["task"], "model": name, "evaluated_on": results["evaluated_on"], **score})


def write_predictions(path: Path, test: LabelledSequences, probabilities: dict[str, np.ndarray]) -> None:
    """One line a row: sequence, label, and each model's probability of class 1."""
    with open(path, "w") as file:
        file.write("\t".join(["sequence", "label", *probabilities]) + "\n")
        for row, (sequence, label) in enumerate(zip(test.sequences, test.labels, strict=True)):
            values = [f"{p[row, 1]:.6f}" for p in probabilities.values()]
            file.write("\t".join([sequence, str(label), *values]) + "\n")


if __name__ == "__main__":
    main()
