"""The floor of binding sites: the one JASPAR motif whose best match in a sequence tells training classes apart best.

A motif's score of a sequence is its maximum log-odds over positions and strands, over the motif's own maximum
(`data_prep.binding`); a logistic regression of the label on the best motif's score makes it a probability.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.bases import encode
from data_prep.binding import Scanner
from data_prep.motifs import Motif, load_motifs

SOURCE = "JASPAR2018"  # CORE vertebrates: 579 motifs


@dataclass(frozen=True)
class BestMotif:
    """auc: of its score over the training rows; regression: from the score, float32 [n, 1], to probabilities."""

    motif: Motif
    auc: float
    regression: Pipeline

    @classmethod
    def of(cls, sequences: list[str], labels: np.ndarray) -> "BestMotif":
        """Chosen and fitted on sequences of labels 0 and 1; of equals, the first by matrix id."""
        scores = vertebrate_scanner().scan([encode(sequence) for sequence in sequences])
        auc = aucs(scores, labels)
        best = int(auc.argmax())
        regression = make_pipeline(StandardScaler(), LogisticRegression())
        regression.fit(scores[:, [best]].astype(np.float32), labels)
        return cls(vertebrates()[best], float(auc[best]), regression)

    def predict(self, sequences: list[str]) -> np.ndarray:
        """Probabilities, float64 [n, 2]."""
        scores = Scanner.of([self.motif]).scan([encode(sequence) for sequence in sequences])
        return self.regression.predict_proba(scores.astype(np.float32))


def aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column of `scores`, [n, columns], float64 [columns]: the share of pairs of a
    positive and a negative that it orders rightly, ties as half (Mann & Whitney)."""
    positive = labels == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    found = np.empty(scores.shape[1])
    for column, values in enumerate(scores.T):  # one at a time: all ranks at once would fill the memory
        ranks = rankdata(values.astype(np.float32))[positive].sum()
        found[column] = (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return found


@cache
def vertebrates() -> list[Motif]:
    return load_motifs(SOURCE)


@cache
def vertebrate_scanner() -> Scanner:
    return Scanner.of(vertebrates())
