"""What the model makes of a few held-out samples, as text: the k-mers of a region that were masked, and its guesses."""

import numpy as np

from data_prep.bases import decode
from data_prep.kmers import kmer_vocabulary
from kernels.kmer_mask import IGNORED, MaskedBatch
from pretrain.batches import FIRST_HALF, Batch, MicroBatches
from pretrain.model import Outputs

SAMPLES = 3


def described(dataset: MicroBatches, batch: Batch, rows: MaskedBatch, outputs: Outputs) -> list[dict]:
    """The first samples of a batch, JSON to be: of each the region of A with the most masked k-mers. A sample's keys:

    cell_type, chromosome, start, end: of the region, 0-based half-open; bases: the window of it that was read;
    hidden: which of these no k-mer shows, a list of 0 and 1; kmers: each masked one's `at` (its first base), `true`,
    `predicted` and `probability` (given to the true one); follows: whether B follows A, follows_probability: the
    model's.
    """
    k, vocabulary, samples = dataset.k, kmer_vocabulary(dataset.k), []
    for row in range(min(SAMPLES, int((batch["weight"] > 0).sum()))):
        counts = batch["window_kmers"][row].cpu().numpy()
        position = rows.masked_positions[row].cpu().numpy()
        used = (rows.masked_labels[row] != IGNORED).cpu().numpy()
        first_token = 1 + np.cumsum(counts) - counts  # after [CLS]; in A
        n_bases = np.where(counts > 0, counts + k - 1, 0)
        inside = (position >= first_token[:FIRST_HALF, None]) & (position < (first_token + counts)[:FIRST_HALF, None])
        region = int((inside & used).sum(1).argmax())
        slots = np.flatnonzero(inside[region] & used)
        at = position[slots] - first_token[region]
        window = slice(*np.cumsum([n_bases[:region].sum(), n_bases[region]]).tolist())
        true = rows.masked_labels[row, slots.tolist()]
        probabilities = outputs.mgm_logits[row, slots.tolist()].float().softmax(-1)
        meta = dataset.reader[int(batch["sample"][row])].meta
        sample = {
            "cell_type": meta["cell_type"],
            "chromosome": meta["chromosome"],
            "start": meta["starts"][region],
            "end": meta["ends"][region],
            "bases": decode(batch["bases"][row, window].cpu().numpy()),
            "hidden": hidden_bases(at, int(counts[region]), k).tolist(),
            "kmers": [
                {"at": int(a), "true": vocabulary[t], "predicted": vocabulary[p], "probability": round(q, 5)}
                for a, t, p, q in zip(
                    at,
                    true.tolist(),
                    probabilities.argmax(-1).tolist(),
                    probabilities.gather(1, true[:, None])[:, 0].tolist(),
                    strict=True,
                )
            ],
        }
        if outputs.ngsp_logits is not None:
            sample["follows"] = bool(batch["follows"][row])
            sample["follows_probability"] = round(float(outputs.ngsp_logits[row].float().softmax(0)[1]), 5)
        samples.append(sample)
    return samples


def hidden_bases(at: np.ndarray, n_kmers: int, k: int) -> np.ndarray:
    """Which of the n_kmers + k - 1 bases lie in masked k-mers alone, 0 or 1; at: the masked k-mers' first bases."""
    if not n_kmers:
        return np.zeros(0, dtype=int)
    seen = np.ones(n_kmers, dtype=int)
    seen[at] = 0
    return (np.convolve(seen, np.ones(k, dtype=int)) == 0).astype(int)
