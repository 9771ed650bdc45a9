"""The floors of expression: the constant mean, elements of plant promoters with boosted trees, and a bag of 5-mers."""

import lightgbm
import numpy as np
from sklearn.linear_model import RidgeCV

from data_prep.bases import OTHER, encode
from data_prep.promoter_elements import ELEMENTS, STRANDS, sites
from finetune.task import Table, Unit

K = 5
PENALTIES = np.logspace(-1, 6, 15)  # of the ridge regression; one is chosen by leave-one-out over the training genes
TREES, PATIENCE = 400, 25  # at most, and without a better dev; where dev is what is scored, all are grown
BOOSTING = {
    "objective": "regression",
    "learning_rate": 0.03,
    "num_leaves": 7,
    "min_data_in_leaf": 20,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}


def constant_mean(unit: Unit) -> np.ndarray:
    return mean_of_training(unit.table)


def mean_of_training(table: Table) -> np.ndarray:
    """The mean of each tissue over the training genes, for each row that is scored, float64 [n, tissues]."""
    return np.tile(table.train.targets.mean(axis=0, dtype=np.float64), (len(table.test), 1))


def motifs(unit: Unit) -> np.ndarray:
    """LightGBM on elements of plant promoters (`element_features`), a model for each tissue; dev says when to stop."""
    table = unit.table
    features = {name: element_features(split.sequence_of_each) for name, split in table.splits.items()}
    stops = "dev" in table.splits and table.evaluated_on != "dev"
    found = []
    for tissue in range(len(table.target.outputs)):
        data = {
            name: lightgbm.Dataset(features[name], np.ascontiguousarray(split.targets[:, tissue]))
            for name, split in table.splits.items()
        }
        model = lightgbm.train(
            BOOSTING | {"seed": unit.seed},
            data["train"],
            TREES,
            valid_sets=[data["dev"].set_reference(data["train"])] if stops else None,
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)] if stops else None,
        )
        found.append(model.predict(features[table.evaluated_on]))
    return np.stack(found, axis=1)


def kmers(unit: Unit) -> np.ndarray:
    """Linear regression on counts of 5-mers, of all tissues at once (CornBERT's). It is a ridge regression: without a
    penalty, 1,024 counts fit as many genes exactly, and predict nothing."""
    train, test = unit.table.train, unit.table.test
    model = RidgeCV(PENALTIES).fit(kmer_counts(train.sequence_of_each), train.targets.astype(np.float64))
    return model.predict(kmer_counts(test.sequence_of_each)).reshape(len(test), -1)


def element_features(sequences: list[str]) -> np.ndarray:
    """float64 [n, elements x strands x 2]: of each element on each strand, its sites, and how many bp lie between the
    gene, which follows the sequence, and the nearest of them; NaN where there is none."""
    found = np.full((len(sequences), len(ELEMENTS), len(STRANDS), 2), np.nan)
    for row, sequence in zip(found, sequences, strict=True):
        for at_element, (element, consensus) in zip(row, ELEMENTS.items(), strict=True):
            for here, strand in zip(at_element, STRANDS, strict=True):
                starts = sites(sequence, element, strand)
                here[0] = len(starts)
                if starts:
                    here[1] = len(sequence) - starts[-1] - len(consensus)
    return found.reshape(len(sequences), -1)


def kmer_counts(sequences: list[str]) -> np.ndarray:
    """float64 [n, 1024]: of each 5-mer, in the order of its letters A, T, C, G; none with a letter outside ACGT."""
    counts = np.zeros((len(sequences), 4**K))
    for row, sequence in zip(counts, sequences, strict=True):
        if len(sequence) >= K:
            windows = np.lib.stride_tricks.sliding_window_view(encode(sequence).astype(np.int64), K)
            windows = windows[(windows < OTHER).all(axis=1)]
            row += np.bincount(windows @ 4 ** np.arange(K)[::-1], minlength=4**K)
    return counts
