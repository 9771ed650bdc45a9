"""Scores, one function for each kind of prediction, as the papers define them."""

import numpy as np
from sklearn.metrics import matthews_corrcoef, precision_score, recall_score, roc_auc_score

OF_CLASSES = ("precision", "recall", "auc", "mcc")


def classification(
    labels: np.ndarray, probabilities: np.ndarray, outputs: tuple[str, ...] = ()
) -> dict[str, float | bool]:
    """Macro precision, recall and AUC (GeneBERT, Table 1), and MCC (GUE). labels: [n]; probabilities: [n, n_classes].

    `collapsed` is True where one class is predicted throughout: its precision means nothing.
    """
    predicted = probabilities.argmax(axis=1)
    two = probabilities.shape[1] == 2
    return {
        "precision": float(precision_score(labels, predicted, average="macro", zero_division=0)),
        "recall": float(recall_score(labels, predicted, average="macro", zero_division=0)),
        "auc": float(
            roc_auc_score(labels, probabilities[:, 1])
            if two
            else roc_auc_score(labels, probabilities, average="macro", multi_class="ovr")
        ),
        "mcc": float(matthews_corrcoef(labels, predicted)),
        "collapsed": bool(len(np.unique(predicted)) == 1),
    }
