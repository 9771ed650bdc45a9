"""Explain what a fine-tuned model reads of its sequences: scores of bases, of places, and names of motifs.

    python finetune/explain.py --task promoter
    python finetune/explain.py --task tfbs --table CTCF_GM12878 --rows 200 --methods mutagenesis gradients
    python finetune/explain.py --task expression --output leaf --methods location
    python finetune/explain.py --task splice --table context80 --output acceptor --rows 20

Reads a model that finetune/run.py saved and the rows of its test split (else dev) that it gives the highest
probability of the class explained, or the highest value; of splice the nucleotides, each in its window. Writes:
  rows.tsv             the rows, and what the model predicts of them
  attribution.tsv      a score of each base by attention, mutagenesis (in silico) and (integrated) gradients
  mutagenesis.tsv.gz   change of the explained value where a base becomes another one
  location.tsv         mean absolute change where L bases from a position on become their complements (L 1 to 6)
  motifs.tsv           motifs that hit the windows of the highest scores, against random windows of the same rows; not
                       of splice, whose sites are none of transcription factors
  profile.png, examples.png, location.png, motifs.png
The explained value is the logit of a class's probability, or a value that the model predicts. Positions count from a
sequence's first base, of expression from the gene, of splice from the nucleotide. Mutagenesis and location read each
row some 3 and 6 times its length; give fewer --rows or --methods where that takes too long.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm
from transformers import HfArgumentParser

from data_prep.bases import LETTERS
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, ends_on_input_error
from data_prep.motifs import Motif, load_motifs
from data_prep.output_folder import MANIFEST, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.task_table import is_simulated
from finetune import explain_figures as figures
from finetune.attribution import (
    BY_BASE,
    LOCATION,
    LONGEST_MER,
    METHODS,
    MUTAGENESIS,
    OF_TOKENS,
    Explained,
    location,
    mean_change,
    mutagenesis,
)
from finetune.explained_rows import Chosen, aligned, choose, say_what_is_cut, table_of
from finetune.motif_names import name_scores
from finetune.scoring import Scorer
from finetune.tasks import TASKS

PLANTS = ("expression",)  # tasks of plants; whose sequences end at a gene
EXAMPLES = 3  # rows that are drawn


@dataclass(frozen=True)
class ExplainConfig:
    task: str = field(metadata={"help": "promoter, tfbs, expression or splice."})
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a fine-tuned model, as finetune/run.py saves it; default: runs/finetune-TASK/pretrained."
        },
    )
    data: str | None = field(default=None, metadata={"help": "Folder of the task's tables; default: data/TASK."})
    table: str | None = field(default=None, metadata={"help": "Which table, of a task that has several."})
    rows: int = field(default=50, metadata={"help": "Rows to explain, those of the highest predictions."})
    output: str | None = field(
        default=None, metadata={"help": "The class or value that is explained; default: the last one of the model."}
    )
    methods: list[str] = field(default_factory=lambda: [*METHODS], metadata={"help": f"Some of {', '.join(METHODS)}."})
    motifs: str = field(default="JASPAR2018", metadata={"help": "JASPAR release, or a file of motifs."})
    tax_group: str | None = field(
        default=None, metadata={"help": "Of the release; default: vertebrates, for expression plants."}
    )
    out: str | None = field(default=None, metadata={"help": "Folder to write; default: runs/explain-TASK."})
    batch_size: int = field(default=256, metadata={"help": "Sequences in a batch."})
    seed: int = field(default=0, metadata={"help": "Draws the random windows."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        ExplainConfig,
        prog="finetune/explain.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    (config,) = parser.parse_args_into_dataclasses(arguments)
    run(config)


def run(config: ExplainConfig) -> None:
    """Write what is found, or say that it is there. Raises `InputError` for bad input."""
    check(config)
    checkpoint = Path(
        config.checkpoint or "/".join(["runs", f"finetune-{config.task}", *filter(None, [config.table]), "pretrained"])
    )
    scorer = Scorer.of(checkpoint)
    output = output_of(config, scorer, checkpoint)
    explained = Explained(scorer, output, config.batch_size)
    data, out = Path(config.data or f"data/{config.task}"), Path(config.out or f"runs/explain-{config.task}")
    name, table = table_of(config.task, config.table, data, scorer)
    motifs = motifs_of(config)
    examples = table.test
    made_from = fingerprint(
        data=sha256_of_file(examples.path),
        checkpoint=scorer.encoder.fingerprint,
        motifs=[motif.matrix_id for motif in motifs],
        config=asdict(config) | dict.fromkeys(("data", "out", "checkpoint", "batch_size", "overwrite")),
    )
    if is_up_to_date(out, made_from, config.overwrite, [data, checkpoint]):
        print(f"{out}: up to date")
        return
    simulated = is_simulated(examples.path)
    title = f"{name}, {explained.what}{' (simulated data)' if simulated else ''}"
    chosen = choose(scorer, examples, output, config.rows, config.batch_size, to_gene=config.task in PLANTS)
    what = "nucleotides" if scorer.model.target.kind == "nucleotides" else "rows"
    print(
        f"{title}: explains the {len(chosen):,} {what} of {examples.path} that it predicts highest, of {chosen.among:,}"
    )
    say_what_is_cut(scorer, chosen.sequences)
    with output_folder(out) as folder:
        write_tsv(folder / "rows.tsv", chosen.table)
        found = {"rows": len(chosen), "motifs": []}
        methods = [method for method in BY_BASE if method in config.methods]
        if methods:
            scores, changes = scores_of(explained, chosen, methods)
            write_attribution(folder, chosen, scores, changes)
            draw_scores(folder, chosen, scores, title)
        if methods and motifs:
            named = name_scores(scores, chosen.sequences, motifs, config.seed)
            write_tsv(folder / "motifs.tsv", named)
            figures.draw_motifs(folder / "motifs.png", named, f"motifs of the highest scores: {title}")
            best = named.groupby("method", sort=False)[["method", "name", "matrix_id", "p", "q"]].head(1)
            found["motifs"] = best.to_dict("records")
        if LOCATION in config.methods:
            of_rows = [location(*one) for one in each_row(explained, chosen, LOCATION)]
            write_location(folder, chosen, of_rows, title, explained.what)
        write_json(
            folder / MANIFEST,
            {
                "fingerprint": made_from,
                "task": config.task,
                "table": name,
                "split": str(examples.path),
                "checkpoint": str(checkpoint),
                "simulated": simulated,
                "explained": explained.what,
                **found,
                "config": asdict(config),
            },
        )
    for best in found["motifs"]:
        print("{method}: first of the motifs is {name} ({matrix_id}), p {p:.2g}, q {q:.2g}".format(**best))
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def check(config: ExplainConfig) -> None:
    """Raise `InputError` for values that cannot be."""
    if config.task not in TASKS:
        raise InputError(f"--task {config.task}: there is no such task; there are {', '.join(TASKS)}")
    if config.task == "hscr":
        raise InputError(
            "--task hscr: its models read people, not sequences; to explain an allele, score people with and without "
            "it: python finetune/predict.py --model MODEL --input VCF --genome FASTA"
        )
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown or not config.methods:
        raise InputError(f"--methods {' '.join(unknown)}: give some of {', '.join(METHODS)}")
    for name in ("rows", "batch_size"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: give at least 1")


def output_of(config: ExplainConfig, scorer: Scorer, checkpoint: Path) -> int:
    """The place of the output that is explained. Raises `InputError` for a model of another task, or without such an
    output."""
    if scorer.about["task"] != config.task:
        raise InputError(f"{checkpoint}: a model of {scorer.about['task']}; give --task {scorer.about['task']}")
    name = scorer.outputs[-1] if config.output is None else config.output
    if name not in scorer.outputs:
        raise InputError(f"--output {name}: {checkpoint} predicts {', '.join(scorer.outputs)}; give one of these")
    return scorer.outputs.index(name)


def motifs_of(config: ExplainConfig) -> list[Motif]:
    """Those that high scores are compared with; none of splice."""
    if config.task == "splice":
        return []
    return load_motifs(config.motifs, config.tax_group or ("plants" if config.task in PLANTS else "vertebrates"))


def each_row(explained: Explained, chosen: Chosen, method: str) -> Iterator[tuple[Explained, str]]:
    """What is explained of each row, and its sequence."""
    rows = list(zip(chosen.places, chosen.sequences, strict=True))
    for place, sequence in tqdm(rows, desc=method, unit="row", disable=None):
        yield replace(explained, place=place), sequence


def scores_of(
    explained: Explained, chosen: Chosen, methods: list[str]
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Each method's scores of bases, [bp] of each sequence, and of mutagenesis the changes, [bp, 4] of each."""
    scores: dict[str, list[np.ndarray]] = {}
    changes = []
    for method in methods:
        rows = each_row(explained, chosen, method)
        if method == MUTAGENESIS:
            changes = [mutagenesis(*one) for one in rows]
            scores[method] = [mean_change(change) for change in changes]
        else:
            scores[method] = [OF_TOKENS[method](*one) for one in rows]
    return scores, changes


def write_attribution(
    folder: Path, chosen: Chosen, scores: dict[str, list[np.ndarray]], changes: list[np.ndarray]
) -> None:
    """attribution.tsv, a line for each base; mutagenesis.tsv.gz, one for each substitution of it."""
    bp = [len(sequence) for sequence in chosen.sequences]
    bases = pd.DataFrame(
        {
            "row": np.repeat(chosen.table["row"].to_numpy(), bp),
            "position": np.concatenate(
                [np.arange(first, first + n) for first, n in zip(chosen.firsts, bp, strict=True)]
            ),
            "base": list("".join(chosen.sequences)),
        }
    )
    columns = {method: np.concatenate(of_rows) for method, of_rows in scores.items()}
    write_tsv(folder / "attribution.tsv", bases.assign(**columns))
    if changes:
        every = bases.loc[bases.index.repeat(len(LETTERS))]
        every = every.assign(alt=np.tile(list(LETTERS), len(bases)), change=np.concatenate(changes).ravel())
        write_tsv(
            folder / "mutagenesis.tsv.gz", every[(every["alt"] != every["base"]) & every["base"].isin([*LETTERS])]
        )


def draw_scores(folder: Path, chosen: Chosen, scores: dict[str, list[np.ndarray]], title: str) -> None:
    """profile.png and examples.png."""
    profiles = {
        method: np.nanmean(aligned(map(np.abs, of_rows), chosen.firsts), axis=0) for method, of_rows in scores.items()
    }
    subtitle = f"{title}: {len(chosen):,} rows"
    figures.draw_profile(folder / "profile.png", profiles, chosen.first, subtitle, chosen.label)
    of_each = [{method: of_rows[i] for method, of_rows in scores.items()} for i in range(len(chosen))]
    shown = list(zip(chosen.titles, chosen.sequences, chosen.firsts, of_each, strict=True))[:EXAMPLES]
    figures.draw_examples(folder / "examples.png", shown, f"{title}: the highest predictions", chosen.label)


def write_location(folder: Path, chosen: Chosen, of_rows: list[np.ndarray], title: str, what: str) -> None:
    """location.tsv and its heat map: means over the rows in which the L bases from a position on all lie."""
    every = aligned(of_rows, chosen.firsts)
    counts = (~np.isnan(every)).sum(0)
    means = np.where(counts > 0, np.nansum(every, axis=0) / np.maximum(counts, 1), np.nan)
    size, place = np.nonzero(counts)
    table = {"L": size + 1, "position": chosen.first + place, "rows": counts[size, place], "change": means[size, place]}
    write_tsv(folder / "location.tsv", pd.DataFrame(table))
    figures.draw_location(
        folder / "location.png",
        means,
        chosen.first,
        f"importance of location: {title}: {len(of_rows):,} rows, L-mers of 1 to {LONGEST_MER} bp flipped",
        f"first flipped base: {chosen.label}",
        what,
    )


def write_tsv(path: Path, table: pd.DataFrame) -> None:
    compression = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    table.to_csv(path, sep="\t", index=False, float_format="%.6g", compression=compression)


if __name__ == "__main__":
    main()
