"""A table of people: their sample names, who is a case, their populations and families."""

import csv
import gzip
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.errors import InputError, one_line

# Names of columns, lower-case letters and digits alone, the first that is there is taken.
GUESSES = {
    "sample": ("sampleid", "sample", "iid", "samplename", "individual", "individualid", "id"),
    "status": ("status", "phenotype", "pheno", "case", "casecontrol", "affected", "label"),
    "population": ("population", "pop", "superpopulation", "superpop", "ancestry"),
    "family": ("familyid", "family", "fid"),
}
NEEDED = ("sample", "status")
UNKNOWN = {"", "na", "nan", "n/a", ".", "-9"}
# Ways to write a status, with what each value says: 0 control, 1 case, None unknown.
CODINGS: dict[str, dict[str, int | None]] = {
    "0 = control, 1 = case": {"0": 0, "1": 1},
    "PLINK's 1 = control, 2 = case, 0 = unknown": {"0": None, "1": 0, "2": 1},
    "control and case, in words": {"control": 0, "case": 1, "unaffected": 0, "affected": 1},
}


@dataclass(frozen=True)
class Phenotypes:
    """people: a row each, in the file's order, with columns sample, label (0 control, 1 case), population and family
    (a sample without one is its own); columns: the file's name of each of these that it has; coding: in words;
    unknown: people of unknown status, who are left out."""

    people: pd.DataFrame
    columns: dict[str, str]
    coding: str
    unknown: int


def read_phenotypes(path: Path, named: dict[str, str | None]) -> Phenotypes:
    """Read a CSV (by its name) or TSV file, gzipped or not. named: the columns that the user names, by what they hold;
    others are guessed.

    Raises `InputError` for a missing column, a sample that stands there twice, and a status that is none.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table of people; give one with --phenotypes")
    header, rows = _read(path)
    columns = _columns(path, header, named)
    cells = {what: [row[header.index(column)].strip() for _, row in rows] for what, column in columns.items()}
    lines = [line for line, _ in rows]
    repeated = Counter(cells["sample"])
    for line, sample in zip(lines, cells["sample"], strict=True):
        if not sample or repeated[sample] > 1:
            reason = f"sample {sample!r} stands {repeated[sample]} times in it" if sample else "no sample's name"
            raise InputError(f"{path}:{line}: {reason}; leave one row for each person")
    coding, labels = _labels(path, columns["status"], lines, cells["status"])
    families = cells.get("family", [""] * len(rows))
    people = pd.DataFrame(
        {
            "sample": cells["sample"],
            "label": pd.array(labels, dtype="Int64"),
            "population": cells.get("population", [""] * len(rows)),
            "family": [
                f"sample {sample}" if family.lower() in UNKNOWN | {"0"} else f"family {family}"
                for sample, family in zip(cells["sample"], families, strict=True)
            ],
        }
    )
    known = people[people["label"].notna()].astype({"label": "int64"}).reset_index(drop=True)
    return Phenotypes(known, columns, coding, len(people) - len(known))


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their lines."""
    separator = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=separator)
            header = [name.strip().removeprefix("#") for name in next(reader, [])]
            rows = []
            for row in reader:
                if any(map(str.strip, row)):
                    if len(row) != len(header):
                        raise InputError(f"{path}:{reader.line_num}: {len(row)} columns; the header has {len(header)}")
                    rows.append((reader.line_num, row))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV or TSV: {one_line(error)}; make it again") from error
    if not rows:
        raise InputError(f"{path}: holds no rows; give a header, and a row for each person")
    return header, rows


def _columns(path: Path, header: list[str], named: dict[str, str | None]) -> dict[str, str]:
    """The name of the column that holds each thing, of those that there are."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(header)}
    columns = {}
    for what, guesses in GUESSES.items():
        column = named.get(what) or next((plain[guess] for guess in guesses if guess in plain), None)
        if column in header:
            columns[what] = column
        elif column or what in NEEDED:
            raise InputError(
                f"{path}: has no column {column or what!r}; name one of {', '.join(header)[:300]} with --{what}-column"
            )
    return columns


def _labels(path: Path, column: str, lines: list[int], values: list[str]) -> tuple[str, list[int | None]]:
    """The coding that all values are of, and what they say by it."""
    values = [value.lower().removesuffix(".0") for value in values]
    there = set(values) - UNKNOWN
    coding = next((words for words, meaning in CODINGS.items() if there <= meaning.keys()), None)
    if coding is None:
        known = set().union(*CODINGS.values())
        odd = next((i for i, value in enumerate(values) if value not in UNKNOWN | known), None)
        amiss = f"{path}: column {column!r} mixes codings" if odd is None else f"{path}:{lines[odd]}: status"
        shown = "" if odd is None else f" {values[odd]!r} is none"
        raise InputError(f"{amiss}{shown}; write 0 and 1, 1 and 2 (PLINK), or control and case; see --status-column")
    return coding, [CODINGS[coding].get(value) for value in values]
