"""Gene annotation: the features of a GTF or GFF3 file, gzipped or not, one by one."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from data_prep.errors import InputError, one_line, shown

COLUMNS = 9
_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII).fullmatch
_PART = re.compile(r'(?:"[^"]*"|[^;])+')  # up to a semicolon outside of quotes


class Feature(NamedTuple):
    """One line of the file. line: its number, from 1; seqid: the chromosome; start, end: 0-based half-open; strand: +,
    -, or another sign where there is none; attributes: several values of one key are joined by commas, as in GFF3."""

    line: int
    seqid: str
    type: str
    start: int
    end: int
    strand: str
    attributes: dict[str, str]


def read_features(path: Path | str) -> Iterator[Feature]:
    """The features in the file's order; of a GFF3 none of the sequence after `##FASTA`.

    Raises `InputError`, with the line, for a line of other than nine columns, or an interval that is not one.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.startswith("##FASTA"):
                    return
                if line.strip() and not line.startswith("#"):
                    yield feature_of(line.rstrip("\r\n"), number, f"{path}:{number}")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as GTF or GFF3: {one_line(error)}; copy the file again") from error


def feature_of(line: str, number: int, where: str) -> Feature:
    """The feature that a line tells. Raises `InputError`, with `where`, for a line that is none."""
    fields = line.split("\t")
    if len(fields) != COLUMNS:
        raise InputError(
            f"{where}: {len(fields)} columns separated by tabs; GTF and GFF3 have {COLUMNS}: {shown(line)}"
        )
    seqid, _, kind, first, last, _, strand, _, attributes = fields
    if not (_WHOLE(first) and _WHOLE(last) and 1 <= int(first) <= int(last)):
        raise InputError(f"{where}: start {first!r} and end {last!r} are no interval (GTF and GFF3: 1 <= start <= end)")
    return Feature(number, seqid, kind, int(first) - 1, int(last), strand, attributes_of(attributes))


def attributes_of(text: str) -> dict[str, str]:
    """Of GTF (`gene_id "g1"; gene_name "A";`) or of GFF3 (`ID=gene:g1;Name=A`, percent-encoded)."""
    found = {}
    for part in map(str.strip, _PART.findall(text)):
        key, equals, value = part.partition("=")
        if equals and not any(letter in key for letter in ' "'):
            value = unquote(value)
        elif part:
            key, _, value = part.partition(" ")
            value = value.strip().removeprefix('"').removesuffix('"')
        else:
            continue
        found[key] = f"{found[key]},{value}" if key in found else value
    return found
