"""The rows of a bench as CSV on stdout, each as soon as it is there."""

import csv
import sys
from collections.abc import Iterable

Row = dict[str, str | float]


def print_csv(rows: Iterable[Row]) -> list[Row]:
    """Print rows of the same columns, fractions to four digits; gives them back."""
    writer, printed = None, []
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row))
            writer.writeheader()
        writer.writerow({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()})
        sys.stdout.flush()
        printed.append(row)
    return printed
