"""Motif files: JASPAR, MEME and TRANSFAC text to matrices, with the line of anything amiss.

A matrix holds counts. In JASPAR and TRANSFAC files, one whose columns all sum to about 1, without being zeros and ones
throughout, holds frequencies; as in MEME files, which always do, these are taken as those among 20 sites, or among as
many as the file says. The formats: https://jaspar.elixir.no/docs, https://meme-suite.org/meme/doc/meme-format.html and
https://genexplain.com/transfac. Which one a file has is recognised from its content.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError, shown

LETTERS = "ACGT"
P0 = ("P0", "PO")  # the line above a TRANSFAC matrix, in new and in old files
LARGEST = 1e100  # of a count; sums and products of such numbers stay finite
SITES = 20  # of a matrix of frequencies that does not say how many sites it was made from, as the MEME suite takes
TOLERANCE = 0.05  # how far from 1 a column of frequencies, printed with few digits, may sum

Lines = list[tuple[int, str]]  # line number from 1, and the line without white space around it


@dataclass(frozen=True)
class MatrixOfFile:
    """A matrix as it stands in a file.

    where: `file:line: motif 'id'`, for messages; counts: float64 [4, width], rows A, C, G, T, finite, none below 0.
    """

    where: str
    matrix_id: str
    name: str
    counts: np.ndarray


def read_matrices(path: Path) -> Iterator[MatrixOfFile]:
    """The matrices of a motif file, in its order. Raises `InputError` for a file that cannot be read as one."""
    lines = _lines(path)
    return _format_of(lines, path)(lines, path)


def _lines(path: Path) -> Lines:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a JASPAR release such as JASPAR2018, or a motif file"
        ) from error
    if content.startswith(b"\x1f\x8b"):
        raise InputError(f"{path}: compressed; decompress it first")
    if b"\0" in content:
        raise InputError(f"{path}: a binary file; give a JASPAR, MEME or TRANSFAC motif file, which are text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # the encoding of TRANSFAC's own releases
    return [(number, line.strip()) for number, line in enumerate(io.StringIO(text, newline=None), 1)]


def _format_of(lines: Lines, path: Path) -> Callable[[Lines, Path], Iterator[MatrixOfFile]]:
    first = next((line for _, line in lines if line and not line.startswith("#")), "")
    if first.startswith(">"):
        return _jaspar
    if any(line.startswith("MEME version") for _, line in lines):
        return _meme
    if any(re.match(r"P[0O]\s", line) for _, line in lines):
        return _transfac
    if not first:
        raise InputError(f"{path}: is empty; give a JASPAR, MEME or TRANSFAC motif file")
    raise InputError(
        f"{path}: not a motif file: it does not begin with '>ID NAME' (JASPAR), and has no line 'MEME version 4' "
        "(MEME) or 'P0 A C G T' (TRANSFAC)"
    )


def _blocks(lines: Lines, begins: Callable[[str], bool]) -> list[Lines]:
    """The lines from each one that `begins` a block to the next; those before the first are left out."""
    starts = [row for row, (_, line) in enumerate(lines) if begins(line)]
    return [lines[start:end] for start, end in itertools.pairwise([*starts, len(lines)])]


def _jaspar(lines: Lines, path: Path) -> Iterator[MatrixOfFile]:
    """Four rows under a title: `A [ 1 2 3 ]`, in any order, or bare numbers in the order A, C, G, T."""
    for (number, title), *body in _blocks(lines, lambda line: line.startswith(">")):
        words = title[1:].split(maxsplit=1)
        if not words:
            raise InputError(f"{path}:{number}: a motif without an id; write '>ID NAME'")
        rows: dict[str, list[float]] = {}
        for line_number, line in body:
            if line and not line.startswith("#"):
                here = f"{path}:{line_number}: motif {words[0]!r}"
                letter, values = _jaspar_row(line, LETTERS[len(rows) % 4], here)
                if letter in rows:
                    raise InputError(
                        f"{here}: another row of {letter}; a JASPAR motif has four rows, A, C, G and T (HOMER's, of a "
                        "row for each position, is to be converted)"
                    )
                rows[letter] = values
        where = f"{path}:{number}: motif {words[0]!r}"
        if len(rows) < 4:
            raise InputError(f"{where} has {len(rows)} rows; a motif has four, A, C, G and T")
        widths = [len(rows[letter]) for letter in LETTERS]
        if len(set(widths)) > 1:
            raise InputError(f"{where}: its rows A, C, G and T hold {widths} numbers; they must be of one length")
        values = np.array([rows[letter] for letter in LETTERS])
        yield MatrixOfFile(where, words[0], words[-1], _as_counts(values))


def _jaspar_row(line: str, due: str, here: str) -> tuple[str, list[float]]:
    """A row's letter, the one that is `due` where it names none, and its numbers."""
    match = re.fullmatch(r"(?:([A-Za-z])\b)?\s*(\[?)([^\[\]]*)(\]?)", line)
    if not match or bool(match[2]) != bool(match[4]):
        raise InputError(f"{here}: {shown(line)} is not a row such as 'A [ 1 2 3 ]' or '1 2 3'")
    letter = (match[1] or due).upper()
    if letter not in LETTERS:
        raise InputError(f"{here}: a row of {letter}; the rows of a DNA motif are A, C, G and T")
    return letter, _numbers(match[3].split(), here)


def _meme(lines: Lines, path: Path) -> Iterator[MatrixOfFile]:
    """A column of frequencies a line, under `letter-probability matrix:`; the minimal format, or MEME's own report."""
    for number, line in lines:
        alphabet = re.match(r"ALPHABET\b[\s=]*(.*)", line)
        if alphabet and alphabet[1].upper() != LETTERS and not alphabet[1].startswith('"DNA"'):
            raise InputError(f"{path}:{number}: {shown(line)}: not DNA; give motifs of ALPHABET= ACGT")
    for (number, title), *body in _blocks(lines, lambda line: re.match(r"MOTIF\b", line) is not None):
        words = re.sub(r"\bwidth\s*=.*", "", title).split()[1:]
        if not words:
            raise InputError(f"{path}:{number}: a motif without an id; write 'MOTIF ID NAME'")
        where = f"{path}:{number}: motif {words[0]!r}"
        start = next((row for row, (_, line) in enumerate(body) if line.startswith("letter-probability matrix:")), None)
        if start is None:
            raise InputError(f"{where} has no line 'letter-probability matrix:'")
        options = dict(re.findall(r"(\w+)\s*=\s*(\S+)", body[start][1]))
        if options.get("alength", "4") != "4":
            raise InputError(f"{where}: alength= {options['alength']}; a DNA motif has 4 letters")
        columns = _meme_columns(body[start + 1 :], path, words[0])
        if options.get("w", str(len(columns))) != str(len(columns)):
            raise InputError(f"{where}: w= {options['w']}, but {len(columns)} lines of numbers")
        (sites,) = _numbers([options.get("nsites", str(SITES))], f"{where}: nsites")
        if sites == 0:
            raise InputError(f"{where}: nsites= 0; leave nsites out where the number is not known")
        name = words[1] if len(words) > 1 else words[0]
        yield MatrixOfFile(where, words[0], name, _by_letter(columns) * sites)


def _meme_columns(lines: Lines, path: Path, matrix_id: str) -> list[list[float]]:
    """The lines of numbers, up to an empty one, the motif's URL, or the rule that MEME's report draws."""
    columns: list[list[float]] = []
    for number, line in lines:
        if (columns and not line) or re.match(r"URL\b|---|\*\*\*", line):
            break
        if line:
            here = f"{path}:{number}: motif {matrix_id!r}"
            column = _numbers(line.split(), here)
            if len(column) != 4:
                raise InputError(f"{here}: {len(column)} numbers in a line; there are four, of A, C, G and T")
            if abs(sum(column) - 1) > TOLERANCE:
                raise InputError(f"{here}: the four frequencies sum to {sum(column):g}, not to 1")
            columns.append(column)
    return columns


def _transfac(lines: Lines, path: Path) -> Iterator[MatrixOfFile]:
    """A numbered column a line, under `P0` and the letters in any order; each entry ends with `//`."""
    *entries, rest = _blocks([(0, "//"), *lines], lambda line: line == "//")
    if any(line for _, line in rest[1:]):
        raise InputError(f"{path}:{rest[-1][0]}: the last entry does not end with '//'; the file may be cut off")
    for _, *body in entries:
        fields = [(number, line.split()) for number, line in body if line]
        matrix = [(number, words) for number, words in fields if words[0] in P0 or words[0].isdecimal()]
        first_of = {words[0]: " ".join(words[1:]) for _, words in reversed(fields)}
        ids = [first_of[key] for key in ("AC", "ID", "NA") if first_of.get(key)]
        if not ids and not matrix:
            continue  # the file's own entry, which gives its version
        where = f"{path}:{fields[0][0]}: " + (f"motif {ids[0]!r}" if ids else "an entry without AC, ID or NA")
        if not ids:
            raise InputError(f"{where}; give it one of them")
        if not matrix:
            raise InputError(f"{where} has no matrix, which begins with a line 'P0 A C G T'")
        name = first_of.get("NA") or first_of.get("ID") or ids[0]
        yield MatrixOfFile(where, ids[0], name, _as_counts(_by_letter(_transfac_columns(matrix, path, ids[0]))))


def _transfac_columns(lines: list[tuple[int, list[str]]], path: Path, matrix_id: str) -> list[list[float]]:
    """The columns, in the order A, C, G, T, of the lines that are a matrix, cut into words."""
    (number, (key, *letters)), *rows = lines
    at = {letter: letters.index(letter) for letter in LETTERS if letters.count(letter) == 1}
    if key not in P0 or len(at) < 4 or "U" in letters:
        raise InputError(f"{path}:{number}: motif {matrix_id!r}: a matrix begins with a line 'P0 A C G T'")
    columns = []
    begin = 0 if rows and not rows[0][1][0].strip("0") else 1
    for due, (number, (key, *words)) in enumerate(rows, begin):
        here = f"{path}:{number}: motif {matrix_id!r}"
        if key.lstrip("0") != str(due).lstrip("0"):
            raise InputError(f"{here}: {key} where row {due} is due")
        if not len(letters) <= len(words) <= len(letters) + 1:
            raise InputError(
                f"{here}: row {due} has {len(words)} fields where the line P0 names {len(letters)} columns"
            )
        columns.append(_numbers([words[at[letter]] for letter in LETTERS], here))
    return columns


def _as_counts(values: np.ndarray) -> np.ndarray:
    sums_to_1 = (np.abs(values.sum(axis=0) - 1) <= TOLERANCE).all()
    return values * SITES if sums_to_1 and (values % 1 != 0).any() else values


def _by_letter(columns: list[list[float]]) -> np.ndarray:
    return np.array(columns).reshape(-1, 4).T


def _numbers(words: list[str], where: str) -> list[float]:
    """Numbers from 0. Raises `InputError` with the word that is none."""
    values = []
    for word in words:
        try:
            values.append(float(word))
        except ValueError:
            values.append(math.nan)
        if not 0 <= values[-1] <= LARGEST:
            raise InputError(f"{where}: {shown(word)} is not a count or a frequency, a number from 0")
    return values
