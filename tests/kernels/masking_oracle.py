"""The masking once more, row by row in whole numbers of Python: what every implementation must give, bit for bit.

It takes nothing from `kernels/`: Philox follows Salmon et al. (SC 2011), the k-mer ids follow the letters, and a span
is a loop over the tokens that it masks.
"""

import numpy as np

LETTERS = "ATCG"  # by code; any other code is an N
PAD, UNK, CLS, SEP, MASK, FIRST_KMER = range(6)


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high_0, low_0 = divmod(c0 * 0xD2511F53, 2**32)
        high_1, low_1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def words(seed: int, epoch: int, sample: int, place: int) -> tuple[int, int, int, int]:
    """The draws at a place of a row: does a span begin there, what becomes of the token, which k-mer; the last unused.

    The places before the row, which are negative, count down from 2**32.
    """
    high, low = divmod(sample, 2**32)
    stream = 0  # of masks
    return philox((seed, epoch), (place % 2**32, stream, low, high))


def span_beginnings(seed: int, epoch: int, sample: int, tokens: int, span: int, rate: float) -> list[int]:
    """Places where a span begins, those before the row whose spans reach into it as well."""
    limit = round((1 - (1 - rate) ** (1 / span)) * 2**32)
    return [place for place in range(1 - span, tokens) if words(seed, epoch, sample, place)[0] < limit]


def kmer_id(kmer: str) -> int:
    """Its rank by the letters A, T, C, G, first letter most significant, after the special tokens; [UNK] over an N."""
    if "N" in kmer:
        return UNK
    return FIRST_KMER + sum(LETTERS.index(letter) * 4**power for power, letter in enumerate(reversed(kmer)))


def unmasked_row(text: str, window_kmers: list[int], k: int) -> tuple[list[int], list[int]]:
    """Token ids and segments, without padding. text: the regions' windows, one after another."""
    ids, segments = [CLS], [0]
    regions = len(window_kmers)
    for region, n in enumerate(window_kmers):
        if n:
            window, text = text[: n + k - 1], text[n + k - 1 :]
            ids += [kmer_id(window[i : i + k]) for i in range(n)]
        if region + 1 in (regions // 2, regions):
            ids.append(SEP)
        segments += [int(region >= regions // 2)] * (len(ids) - len(segments))
    return ids, segments


def mask_row(
    bases: list[int],
    window_kmers: list[int],
    sample: int,
    epoch: int,
    *,
    k: int,
    tokens: int,
    span: int,
    rate: float,
    capacity: int,
    seed: int,
) -> dict[str, list[int]]:
    """The six outputs for a sample, under the names of `MaskedBatch`."""
    text = "".join(LETTERS[code] if code < 4 else "N" for code in bases)
    ids, segments = unmasked_row(text, window_kmers, k)
    padding = tokens - len(ids)
    attention = [1] * len(ids) + [0] * padding
    ids, segments = ids + [PAD] * padding, segments + [0] * padding

    reached = set()
    for first in span_beginnings(seed, epoch, sample, tokens, span, rate):
        reached |= set(range(first, first + span))
    masked = [place for place in range(tokens) if place in reached and ids[place] >= FIRST_KMER][:capacity]

    token_ids, labels = ids.copy(), [-100] * tokens
    for place in masked:
        _, kind, choice, _ = words(seed, epoch, sample, place)
        labels[place] = ids[place]
        if kind < round(0.8 * 2**32):
            token_ids[place] = MASK
        elif kind < round(0.9 * 2**32):
            token_ids[place] = FIRST_KMER + choice * 4**k // 2**32
    unused = capacity - len(masked)
    return {
        "token_ids": token_ids,
        "segment_ids": segments,
        "attention_mask": attention,
        "labels": labels,
        "masked_positions": masked + [0] * unused,
        "masked_labels": [ids[place] for place in masked] + [-100] * unused,
    }


def mask_batch(bases, window_kmers, sample, epoch, **masking) -> dict[str, np.ndarray]:
    """`mask_row` for each row of arrays or tensors, stacked."""
    arguments = (bases.tolist(), window_kmers.tolist(), sample.tolist(), epoch.tolist())
    rows = [mask_row(*row, **masking) for row in zip(*arguments, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.int64) for name in rows[0]}
