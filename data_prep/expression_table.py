"""Tables of expression: TPM of genes in tissues, genes in rows or in columns, as TSV or CSV, gzipped or not."""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError, one_line, shown

_PREFIX = re.compile(r"^(gene|transcript):")
_TRANSCRIPT = re.compile(r"(_[TP]\d+|\.\d+)$")


@dataclass(frozen=True)
class Expression:
    """genes: names as the table writes them, without `gene:`; tissues: their names; tpm: float64 [genes, tissues], of
    which rows or columns of one tissue are averaged; replicates: how many of these were read; genes_in: rows or
    columns; ignored: columns that hold neither."""

    genes: list[str]
    tissues: list[str]
    tpm: np.ndarray
    replicates: int
    genes_in: str
    ignored: list[str]


def bare(name: str) -> str:
    """A gene's name without the `gene:` or `transcript:` of Ensembl's GFF3."""
    return _PREFIX.sub("", name.strip())


def stem(name: str) -> str:
    """The gene of a transcript or of a versioned name: `Zm00001d027230` of `gene:Zm00001d027230_T001`."""
    return _TRANSCRIPT.sub("", bare(name))


@dataclass(frozen=True)
class Cells:
    """A table as it stands in its file: rows of one length, and the line of each."""

    path: Path
    header: list[str]
    lines: list[int]
    rows: list[list[str]]

    @classmethod
    def read(cls, path: Path) -> "Cells":
        """Of a TSV or CSV, gzipped or not. Lines before the header that begin with ## or # and a space are comments; a
        header that is one short, as R writes it, lacks the first column's name.

        Raises `InputError` where it cannot be read, holds no row, or has rows of different lengths.
        """
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8-sig") as file:
                text = file.readlines()
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(f"{path}: cannot be read as a table: {one_line(error)}; copy it again") from error
        n_comments = next((n for n, line in enumerate(text) if not line.startswith(("##", "# "))), len(text))
        separator = "\t" if "\t" in "".join(text[n_comments : n_comments + 1]) else ","
        reader = csv.reader(text[n_comments:], delimiter=separator)
        try:
            rows = [(n_comments + reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise InputError(f"{path}:{n_comments + reader.line_num}: {error}; copy it again") from error
        if len(rows) < 2:
            raise InputError(f"{path}: holds no row below its header")
        (_, header), *body = rows
        if len(header) == len(body[0][1]) - 1:
            header = ["", *header]
        for line, row in body:
            if len(row) != len(header):
                raise InputError(f"{path}:{line}: {len(row)} columns, where the header has {len(header)}")
        lines, cells = zip(*body, strict=True)
        return cls(path, [name.strip() for name in header], list(lines), list(cells))

    def column(self, name: str) -> int:
        """Where the header has this column. Raises `InputError` where it has not."""
        if name not in self.header:
            raise InputError(f"{self.path}: has no column {name!r}; its columns are {shown(', '.join(self.header))}")
        return self.header.index(name)

    def is_text(self, column: int) -> bool:
        """Whether not one of the column's cells is a number."""
        return all(np.isnan(_number(row[column])) for row in self.rows)

    def tpm(self, columns: Sequence[int]) -> np.ndarray:
        """These columns, float64 [rows, columns]. Raises `InputError` for a cell that is no number of 0 or more."""
        found = np.array([[_number(row[column]) for column in columns] for row in self.rows])
        wrong = np.argwhere(~((found >= 0) & (found < np.inf)))
        if len(wrong):
            row, column = wrong[0][0], columns[wrong[0][1]]
            raise InputError(
                f"{self.path}:{self.lines[row]}: TPM {shown(self.rows[row][column])} in column "
                f"{self.header[column]!r} is no number of 0 or more; correct it or leave that gene out"
            )
        return found


def read_expression(path: Path, genes: Sequence[str], wanted: Sequence[str] | None = None) -> Expression:
    """The table of TPM. genes: names to be looked for, which tell rows from columns; wanted: tissues, in this order.

    Columns of words beside the genes are ignored where genes are rows; where they are columns, they name the row's
    tissue, but for those that say the same of all. Raises `InputError` for a table without any of `genes`, with a gene
    twice, with a cell of TPM that is no number of 0 or more, or without a tissue that is wanted.
    """
    cells = Cells.read(path)
    known = {of(name) for name in genes for of in (bare, stem)}
    columns = range(len(cells.header))
    in_header = [bare(name) in known or stem(name) in known for name in cells.header]
    in_column = [sum(bare(row[c]) in known or stem(row[c]) in known for row in cells.rows) for c in columns]
    gene_column = int(np.argmax(in_column))
    if not any(in_header) and not in_column[gene_column]:
        raise InputError(
            f"{path}: none of its genes has a promoter: no row or column such as {shown(cells.rows[0][0])} or "
            f"{shown(cells.header[-1])} is among the {len(genes):,} genes such as {shown(genes[0])}; give the table of "
            "the same annotation"
        )
    if sum(in_header) >= in_column[gene_column]:
        of_genes = [c for c in columns if in_header[c] or not cells.is_text(c)]
        of_words = sorted(set(columns) - set(of_genes))
        words = [[row[c].strip() for c in of_words] for row in cells.rows]
        names, genes_in, ignored = [cells.header[c] for c in of_genes], "columns", []
        tissues, tpm = _joined(words, path), cells.tpm(of_genes).T
    else:
        of_tissues = [c for c in columns if c != gene_column and not cells.is_text(c)]
        names, genes_in = [row[gene_column] for row in cells.rows], "rows"
        ignored = [cells.header[c] for c in columns if c not in (gene_column, *of_tissues)]
        tissues, tpm = [cells.header[c] for c in of_tissues], cells.tpm(of_tissues)
    names = [bare(name) for name in names]
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise InputError(f"{path}: gene {twice} stands twice; keep one of its {genes_in}")
    if not tissues:
        raise InputError(f"{path}: holds no column of TPM")
    tissues, tpm, replicates = _averaged(tissues, tpm, wanted, path)
    return Expression(names, tissues, tpm, replicates, genes_in, ignored)


def _averaged(
    tissues: list[str], tpm: np.ndarray, wanted: Sequence[str] | None, path: Path
) -> tuple[list[str], np.ndarray, int]:
    """The distinct tissues, or the wanted ones; the mean of each one's columns; how many these are."""
    distinct = list(dict.fromkeys(tissues))
    missing = [name for name in wanted or () if name not in distinct]
    if missing:
        raise InputError(f"--tissues {missing[0]}: {path} has {', '.join(distinct)}")
    chosen = list(wanted or distinct)
    places = [[place for place, name in enumerate(tissues) if name == tissue] for tissue in chosen]
    return chosen, np.stack([tpm[:, here].mean(axis=1) for here in places], axis=1), sum(map(len, places))


def matched(promoters: Sequence[str], expression: Expression) -> tuple[list[int], np.ndarray, dict[str, int]]:
    """Which promoters have TPM, their TPM, float64 [promoters with it, tissues], and counts of the rest.

    A promoter's TPM is that of its own name, else of its gene: names without `_T001` or `.1`, over which TPM of several
    transcripts are summed. Where several promoters are left to one gene, the first takes it. Raises `InputError` where
    none has TPM.
    """
    own = {name: row for row, name in enumerate(expression.genes)}
    of_gene: dict[str, list[int]] = {}
    for row, name in enumerate(expression.genes):
        of_gene.setdefault(stem(name), []).append(row)
    kept, tpm, used, taken = [], [], set(), set()
    other_transcripts = summed = 0
    for number, name in enumerate(promoters):
        rows = [own[bare(name)]] if bare(name) in own else of_gene.get(stem(name), [])
        if bare(name) not in own and rows:
            if stem(name) in taken:
                other_transcripts += 1
                continue
            taken.add(stem(name))
        if rows:
            kept.append(number)
            tpm.append(expression.tpm[rows].sum(axis=0))
            used.update(rows)
            summed += len(rows) > 1
    if not kept:
        raise InputError(f"none of {len(expression.genes):,} genes with TPM has one of {len(promoters):,} promoters")
    counts = {
        "promoters_without_tpm": len(promoters) - len(kept) - other_transcripts,
        "promoters_of_other_transcripts": other_transcripts,
        "genes_summed_over_transcripts": summed,
        "tpm_without_promoter": len(expression.genes) - len(used),
    }
    return kept, np.array(tpm), counts


def _joined(texts: list[list[str]], path: Path) -> list[str]:
    """A name for each row, of its words that differ between rows, or of all where none does."""
    if not texts[0]:
        raise InputError(f"{path}: genes are in columns, but no column of words names the tissues")
    differ = [column for column, words in enumerate(zip(*texts, strict=True)) if len(set(words)) > 1]
    return [" ".join(row[column] for column in differ or range(len(row))) for row in texts]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
