"""The floor of sequence tasks: logistic regression on 3- to 6-mers, counted over the sequence and by position."""

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from data_prep.bases import OTHER, encode

K_RANGE = range(3, 7)
POSITION_BIN = 5  # bp
REGULARISATION = 0.003  # inverse strength, as scikit-learn's C


def predict(train: list[str], labels: np.ndarray, test: list[str], seed: int) -> np.ndarray:
    """Probabilities, float64 [len(test), n_classes], of a model fitted on `train`."""
    longest = max(map(len, train))
    model = LogisticRegression(C=REGULARISATION, solver="liblinear", tol=1e-2, random_state=seed)
    model.fit(features(train, longest), labels)
    return model.predict_proba(features(test, longest))


def features(sequences: list[str], longest: int) -> sparse.csr_array:
    """Counts of every k-mer over the sequence, then by the 5 bp in which it begins; float32 [n, n_features].

    k-mers with a letter outside ACGT, and what lies past `longest` bp, count nowhere.
    """
    codes = np.full((len(sequences), longest), OTHER, dtype=np.int32)
    for row, sequence in zip(codes, sequences, strict=True):
        here = encode(sequence[:longest])
        row[: len(here)] = here
    blocks = []
    for k in K_RANGE:
        n_places = max(longest - k + 1, 0)
        ids = np.zeros((len(sequences), n_places), dtype=np.int32)
        known = np.ones_like(ids, dtype=bool)
        for j in range(k):
            letter = codes[:, j : j + n_places]
            ids = 4 * ids + letter
            known &= letter < OTHER
        row, place = np.nonzero(known)
        kmer, bin_ = ids[row, place], place.astype(np.int32) // POSITION_BIN
        ones = np.ones(len(row), dtype=np.float32)
        shape = (len(sequences), 4**k)
        blocks.append(sparse.csr_array((ones, (row.astype(np.int32), kmer)), shape=shape))
        by_place = bin_ * 4**k + kmer
        shape = (len(sequences), (n_places // POSITION_BIN + 1) * 4**k)
        blocks.append(sparse.csr_array((ones, (row.astype(np.int32), by_place)), shape=shape))
    stacked = sparse.hstack(blocks, format="csr")
    stacked.indices, stacked.indptr = stacked.indices.astype(np.int32), stacked.indptr.astype(np.int32)  # liblinear's
    return stacked
