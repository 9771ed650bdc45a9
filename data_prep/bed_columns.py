"""A column of a BED or peak file beyond the interval: the strand of a gene, the summit of a peak."""

import gzip
from collections.abc import Iterator
from pathlib import Path


def column(path: Path | str, number: int) -> Iterator[tuple[int, str]]:
    """The line and the text of column `number` (from 1 on) for each interval that `peaks.read_regions` gives of this
    file, in its order; an empty text where the line has fewer columns."""
    path = Path(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#") or line.split(None, 1)[0] in ("track", "browser"):
                continue
            fields = line.rstrip("\r\n").split("\t")
            yield line_number, fields[number - 1].strip() if len(fields) >= number else ""
