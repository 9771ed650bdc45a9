"""Scores of classes, as the papers define them.

scikit-learn's functions give the same (a test holds that), but take 8 ms a call, which a bootstrap multiplies.
"""

import numpy as np
from scipy.stats import rankdata

OF_CLASSES = ("precision", "recall", "auc", "mcc")


def classification(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | bool]:
    """Macro precision, recall and AUC (GeneBERT, Table 1), and MCC (GUE). labels: [n]; probabilities: [n, n_classes].

    Precision and recall are means over the classes that occur among labels or predictions; of a class that is never
    predicted, the precision is 0. AUC is of class 1, or, of more than two, the mean over each against the others.
    `collapsed` is True where one class is predicted throughout: its precision means nothing.
    """
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    true, found, right = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    occurs = (true + found) > 0
    classes = (1,) if n_classes == 2 else range(n_classes)
    return {
        "precision": float((right / found.clip(min=1))[occurs].mean()),
        "recall": float((right / true.clip(min=1))[occurs].mean()),
        "auc": float(np.mean([auc(labels == number, probabilities[:, number]) for number in classes])),
        "mcc": matthews(confusion),
        "collapsed": bool((found > 0).sum() == 1),
    }


def auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties as half. positive: bool [n];
    NaN where all rows are of one class."""
    n_positive = int(positive.sum())
    pairs = n_positive * (len(positive) - n_positive)
    if not pairs:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n_positive * (n_positive + 1) / 2) / pairs)


def matthews(confusion: np.ndarray) -> float:
    """Matthews' correlation coefficient of a confusion matrix, [true, predicted] (Gorodkin 2004); 0 where one class is
    all."""
    true, found, n = confusion.sum(1, dtype=float), confusion.sum(0, dtype=float), confusion.sum(dtype=float)
    spread = (n**2 - found @ found) * (n**2 - true @ true)
    return float((np.trace(confusion) * n - true @ found) / np.sqrt(spread)) if spread > 0 else 0.0
