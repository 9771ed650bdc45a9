"""Cells with a non-zero count, by region and cell type, pooled over peak count matrices."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data_prep.count_matrix import CountMatrix
from data_prep.errors import InputError
from data_prep.peaks import Regions

_MITOCHONDRION = frozenset({"chrM", "chrMT", "M", "MT"})


@dataclass
class PooledCounts:
    """What the matrices added so far hold; adding another makes it grow by its regions and cell types.

    count: int32 [n_regions, n_cell_types], cells with a non-zero count; regions: the union, in the order in which they
    came; cells: how many, by cell type, in the order of the columns.
    """

    count: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    regions: Regions = field(
        default_factory=lambda: Regions(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64), ())
    )
    cells: Counter[str] = field(default_factory=Counter)
    _genome: tuple[str, str] | None = None  # the first matrix's that names one, and its path
    _named_in: dict[str, str] = field(default_factory=dict)  # a matrix's path by chromosome name

    def add(self, matrix: CountMatrix, labels: list[str | None]) -> int:
        """Count the cells of a matrix, whose cell types are `labels`; gives the number of its non-zero entries.

        Raises `InputError` where the matrix is of another assembly than those before, names its chromosomes otherwise,
        or holds no count above zero.
        """
        self._check_assembly(matrix)
        self.regions, rows = union(self.regions, matrix.regions)
        self.cells.update(label for label in labels if label)
        column = {name: number for number, name in enumerate(self.cells)}
        grown = np.zeros((len(self.regions), len(column)), np.int32)
        grown[: self.count.shape[0], : self.count.shape[1]] = self.count
        self.count = grown
        column_of_cell = np.array([column.get(label, -1) for label in labels], np.int64)
        flat, nonzero = self.count.reshape(-1), 0
        for region, cell in matrix.nonzero():
            nonzero += len(region)
            at = column_of_cell[cell]
            typed = at >= 0
            np.add.at(flat, rows[region[typed]] * len(column) + at[typed], np.int32(1))
        if not nonzero:
            raise InputError(f"{matrix.path}: holds no count above zero; give a matrix of raw peak counts")
        return nonzero

    def accessible(self, cell_type: str, min_cells: int, min_fraction: float) -> Regions:
        """The regions that at least `min_cells` of a cell type's cells have, and at least that share of them."""
        count = self.count[:, list(self.cells).index(cell_type)]
        enough = (count >= min_cells) & (count / self.cells[cell_type] >= min_fraction)
        return self.regions.take(np.flatnonzero(enough))

    def _check_assembly(self, matrix: CountMatrix) -> None:
        if matrix.genome:
            self._genome = self._genome or (matrix.genome, matrix.path)
            if matrix.genome != self._genome[0]:
                genome, path = self._genome
                raise InputError(
                    f"{matrix.path}: its peaks are of {matrix.genome}, those of {path} of {genome}; give matrices of "
                    "one assembly"
                )
        for name in matrix.regions.names:
            bare = name.removeprefix("chr")
            twins = {bare, f"chr{bare}"} | (_MITOCHONDRION if name in _MITOCHONDRION else set())
            for twin in sorted(twins - {name}):
                if twin in self._named_in:
                    raise InputError(
                        f"{matrix.path}: names a chromosome {name!r} where {self._named_in[twin]} has {twin!r}; "
                        "matrices of one call must name chromosomes alike: rename the regions of one"
                    )
        self._named_in = dict.fromkeys(matrix.regions.names, matrix.path) | self._named_in


def union(regions: Regions, more: Regions) -> tuple[Regions, np.ndarray]:
    """`regions` followed by those of `more` that are not among them, and the row there of each of `more`, int64."""
    import pandas as pd

    names = {name: code for code, name in enumerate(regions.names)}
    code_of = np.array([names.setdefault(name, len(names)) for name in more.names], np.int32)
    table = pd.DataFrame(
        {
            "chromosome": np.concatenate([regions.chromosome, code_of[more.chromosome]]),
            "start": np.concatenate([regions.start, more.start]),
            "end": np.concatenate([regions.end, more.end]),
        }
    )
    number = table.groupby(list(table), sort=False).ngroup().to_numpy()  # in the order of first appearance
    table = table.drop_duplicates()
    both = Regions(*(table[name].to_numpy() for name in ("chromosome", "start", "end")), tuple(names))
    return both, number[len(regions) :]
