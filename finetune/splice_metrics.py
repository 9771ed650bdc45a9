"""Scores of splice sites as SpliceAI defines them (Jaganathan et al. 2019): top-k accuracy and PR-AUC of each class."""

import numpy as np
from sklearn.metrics import average_precision_score

from finetune.examples import NO_LABEL

CLASSES = ("none", "acceptor", "donor")
COLUMNS = ("topk", "pr_auc", "topk_acceptor", "topk_donor", "pr_auc_acceptor", "pr_auc_donor")


def splice(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """`COLUMNS`: both scores of acceptors and of donors over all nucleotides together, and their means. labels: int
    [rows, positions], `NO_LABEL` where nothing counts; probabilities: [rows, positions, classes]. NaN of a class that
    does not occur."""
    known = labels != NO_LABEL
    of_class = {
        name: (labels[known] == number, probabilities[..., number][known])
        for number, name in enumerate(CLASSES)
        if number
    }
    scores = {f"topk_{name}": top_k(*given) for name, given in of_class.items()}
    scores |= {f"pr_auc_{name}": pr_auc(*given) for name, given in of_class.items()}
    means = {of: float(np.mean([scores[f"{of}_{name}"] for name in of_class])) for of in ("topk", "pr_auc")}
    return means | scores


def top_k(is_site: np.ndarray, score: np.ndarray) -> float:
    """The share of true sites among the k nucleotides of the highest scores, k the number of true sites: precision and
    recall at once. is_site: bool [n]; score: [n]. Of nucleotides that tie for the last places, the expected share: the
    order in which they stand decides nothing."""
    k = int(is_site.sum())
    if not k:
        return float("nan")
    last = np.partition(score, -k)[-k]
    above, tied = score > last, score == last
    places = k - above.sum()
    return float((is_site[above].sum() + places * is_site[tied].mean()) / k)


def pr_auc(is_site: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve, by steps (average precision), as SpliceAI takes it."""
    return float(average_precision_score(is_site, score)) if is_site.any() else float("nan")
