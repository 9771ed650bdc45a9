"""Disease risk of a person from both haplotypes over the regulatory regions of a locus, and their binding matrices.

Reads what `data_prep/main.py hscr` wrote. A region longer than the encoder reads is cut into windows that it reads, so
that no variant is lost; each window has the binding of its whole region.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.bases import encode
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.hscr_data import BINDING, HAPLOTYPES
from data_prep.labelled_sequences import read_rows, split_files
from data_prep.output_folder import MANIFEST
from finetune import calibration, figures, metrics
from finetune.config import FinetuneConfig
from finetune.encoder import Encoder
from finetune.examples import Examples
from finetune.model import Target
from finetune.task import Baseline, Scores, Table, Task, Unit

CLASSES = ("control", "case")
PREPARE = "python data_prep/main.py hscr"
CURVES, RELIABILITY = "roc_pr.png", "reliability.png"
STRENGTHS = np.logspace(-5, 1, 13)  # of which the baseline's, as scikit-learn's C, is chosen
CV_FOLDS = 5


@dataclass(frozen=True)
class Locus:
    """The distinct haplotypes of a folder. regions: the region's number of each, from 0 on; sequences: of each;
    manifest: of the folder."""

    folder: Path
    regions: np.ndarray
    sequences: list[str]
    manifest: dict

    @classmethod
    def at(cls, folder: Path, tables: dict[str, Path]) -> "Locus":
        """Raises `InputError` where the data preparation did not write the folder and these tables in it as they are,
        whole."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            expected = {
                **{path: manifest["splits"][name]["sha256"] for name, path in tables.items()},
                folder / HAPLOTYPES: manifest["haplotypes"]["sha256"],
                folder / BINDING: manifest["binding"]["sha256"],
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: has no {MANIFEST} of this task; make the folder with: {PREPARE}") from error
        for path, digest in expected.items():
            if not path.is_file() or sha256_of_file(path) != digest:
                raise InputError(f"{path}: is missing, or not as {MANIFEST} says; make the folder again: {PREPARE}")
        number = {name: number for number, name in enumerate(manifest["regions"])}
        rows = [row for _, row in read_rows(folder / HAPLOTYPES, ("id", "region", "sequence"))]
        regions = np.array([number[row["region"]] for row in rows])
        return cls(folder, regions, [row["sequence"] for row in rows], manifest)

    @property
    def n_regions(self) -> int:
        return int(self.regions.max()) + 1

    @cached_property
    def longest(self) -> list[int]:
        """bp of the longest haplotype of each region."""
        lengths = np.array([len(sequence) for sequence in self.sequences])
        return [int(lengths[self.regions == region].max()) for region in range(self.n_regions)]

    def n_windows(self, most: int | None, overlap: int) -> list[int]:
        """Into how many windows each region is cut, so that none of a haplotype's is longer than `most` bp."""
        return [1 if most is None else -(-(longest - overlap) // (most - overlap)) for longest in self.longest]

    def windows(self, most: int | None, overlap: int) -> list[list[str]]:
        """Each haplotype in windows of at most `most` bp, as many for all of a region, with `overlap` bp in common
        with the next one; whole where `most` is None."""
        n = self.n_windows(most, overlap)
        return [cut(one, n[region], overlap) for region, one in zip(self.regions.tolist(), self.sequences, strict=True)]

    def about(self, most: int | None, overlap: int) -> dict:
        """What a model must know of the locus to read other people there: regions (0-based half-open), windows of each,
        the assembly's name and what it reads in the regions, and the alleles that the people here carry."""
        first = [int(np.argmax(self.regions == region)) for region in range(self.n_regions)]
        return {
            "genome": self.manifest["genome"]["name"],
            "regions": self.manifest["regions"],
            "windows": self.n_windows(most, overlap),
            "reference": reference_digest(self.sequences[number] for number in first),
            "alleles": self.manifest["alleles"],
        }

    def binding(self, encoder: Encoder) -> np.ndarray:
        """float16 [n_haplotypes, n_motifs], in the order of the checkpoint's motifs: as it was prepared, or scanned
        where that was done without some of them."""
        column = {motif: number for number, motif in enumerate(self.manifest["motifs"])}
        wanted, affinity = encoder.description["motifs"], encoder.description["affinity"]
        if self.manifest["affinity"] == affinity and column.keys() >= set(wanted):
            return np.load(self.folder / BINDING, allow_pickle=False)[:, [column[motif] for motif in wanted]]
        print(f"{self.folder / BINDING}: is of other motifs than the checkpoint's; the haplotypes are scanned again")
        return encoder.scanner.scan([encode(sequence) for sequence in self.sequences])


@dataclass(frozen=True)
class Windows:
    """The distinct windows of haplotypes. sequences: letters; of_each: of each haplotype the numbers of its windows;
    binding: float16 [n_windows, n_motifs], that of the whole haplotype, None of a model of sequences alone."""

    sequences: list[str]
    of_each: list[list[int]]
    binding: np.ndarray | None

    @classmethod
    def of(cls, windows: list[list[str]], binding: np.ndarray | None) -> "Windows":
        """windows: of each haplotype; binding: [n_haplotypes, n_motifs]."""
        pool: dict[tuple[str, int | None], int] = {}  # a window, and the haplotype that its binding is of
        of_each = [
            [pool.setdefault((window, None if binding is None else haplotype), len(pool)) for window in of_one]
            for haplotype, of_one in enumerate(windows)
        ]
        of_windows = None if binding is None else binding[[haplotype for _, haplotype in pool]]
        return cls([window for window, _ in pool], of_each, of_windows)

    def rows(self, people: list[list[list[int]]]) -> np.ndarray:
        """int32 [n, 2, windows of all regions], of both copies' haplotypes by number, a number for each region."""
        return np.array(
            [[[number for i in copy for number in self.of_each[i]] for copy in person] for person in people], np.int32
        )


def cut(sequence: str, n: int, overlap: int) -> list[str]:
    """n windows of about one length, each with `overlap` bp in common with the next one."""
    cuts = [(len(sequence) - overlap) * i // n for i in range(n + 1)]
    return [sequence[cuts[i] : cuts[i + 1] + overlap] for i in range(n)]


def window_limits(encoder: Encoder) -> tuple[int | None, int]:
    """bp of a window at most, and those that it has in common with the next one, so that each k-mer stands in one. None
    and 0 for an encoder whose tokens are no k-mers."""
    return (encoder.longest + encoder.k - 3, encoder.k - 1) if encoder.k else (None, 0)


def reference_digest(sequences: Iterable[str]) -> str:
    """Hexadecimal sha256 of the reference's letters in the regions of a locus."""
    return hashlib.sha256("\n".join(sequences).encode()).hexdigest()


def read(folder: Path, encoder: Encoder, config: FinetuneConfig) -> dict[str, Table]:
    """The people of a folder. Raises `InputError` where it is not as the data preparation wrote it."""
    files = split_files(folder)
    locus = Locus.at(folder, files)
    multimodal = config.modality == "multimodal"
    limits = window_limits(encoder)
    windows = Windows.of(locus.windows(*limits), locus.binding(encoder) if multimodal else None)
    splits = {name: read_people(path, windows) for name, path in files.items()}
    target = Target("classes", CLASSES, regions=splits["train"].rows.shape[2])
    return {"": Table(splits, target, max(map(len, windows.sequences)), {"locus": locus.about(*limits)})}


def read_people(path: Path, windows: Windows) -> Examples:
    """One split."""
    people = [row for _, row in read_rows(path, ("sample", "label", "haplotype_1", "haplotype_2", "genotypes"))]
    copies = [[list(map(int, row[copy].split(","))) for copy in ("haplotype_1", "haplotype_2")] for row in people]
    return Examples(
        windows.sequences,
        windows.rows(copies),
        np.array([int(row["label"]) for row in people], np.int64),
        [row["sample"] for row in people],
        path,
        features=np.array([[int(digit) for digit in row["genotypes"]] for row in people], np.float32),
        binding=windows.binding,
    )


def polygenic(unit: Unit) -> np.ndarray:
    """Logistic regression on how many copies of each allele a person has, all in units of their standard deviations;
    its L2 strength is the one with the best likelihood in cross-validation over the training people."""
    train, test = unit.table.train, unit.table.test
    folds = min(CV_FOLDS, int(np.bincount(train.targets).min()))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=folds)
    return search.fit(train.features, train.targets).predict_proba(test.features)


def score(labels: np.ndarray, probabilities: np.ndarray, table: Table) -> Scores:
    return metrics.classification(labels, probabilities) | calibration.scores(labels, probabilities[:, 1])


def draw(folder: Path, table: Table, predictions: dict[str, np.ndarray], title: str) -> None:
    risks = {name: probabilities[:, 1] for name, probabilities in predictions.items()}
    figures.roc_and_pr(folder / CURVES, table.test.targets, risks, title)
    calibration.draw(folder / RELIABILITY, table.test.targets, risks, title)


HSCR = Task(
    summary="disease risk of people from both haplotypes over the regions of a locus",
    prepare=PREPARE,
    read=read,
    score=score,
    columns=("precision", "recall", "auc", "mcc", "brier", "ece"),
    draw=draw,
    baselines={"polygenic": Baseline(polygenic)},
)
