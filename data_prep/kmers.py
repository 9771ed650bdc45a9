"""The k-mer vocabulary and tokenizer: DNABERT's ids, bit for bit, for k = 3 to 6.

[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the product over the letters in the order A, T, C, G. The tokenizer
is plain `tokenizers` data (tokenizer.json), so a process that knows nothing of this project reads it.
"""

import itertools
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from data_prep.bases import LETTERS, OTHER
from data_prep.errors import InputError, one_line, shown

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
K_RANGE = range(3, 7)


def kmer_vocabulary(k: int) -> list[str]:
    """Tokens in the order of their ids: 5 special tokens, then 4**k k-mers."""
    return [*SPECIAL_TOKENS, *map("".join, itertools.product(LETTERS, repeat=k))]


def kmer_tokenizer(k: int) -> Tokenizer:
    """A tokenizer from a sequence (`ACGTACGT`) or a k-mer sentence (`ACGTAC CGTACG`) to overlapping k-mers' ids.

    `tokenizers` has no step that makes overlapping tokens, so the normalizer builds them: each base is the head
    (lower-case) of a cell, and pass j appends to every cell the j-th letter of the next one, so that after k - 1
    passes a cell holds k letters. Cells at a word's end stay short and are removed. A k-mer with a letter outside
    ACGT is not in the vocabulary and becomes [UNK].
    """
    steps = [Lowercase(), Replace(Regex(r"[^acgt\s]"), "n")]
    for j in range(1, k):
        cell = f"[acgtn][ACGTN]{{{j - 1}}}"
        for letter in "acgtn":
            following = letter if j == 1 else f"[acgtn][ACGTN]{{{j - 2}}}{letter.upper()}"
            steps.append(Replace(Regex(f"(?<={cell})(?={following})"), letter.upper()))
    steps.append(Replace(Regex(f"[acgtn][ACGTN]{{0,{k - 2}}}(?![ACGTN])"), " "))
    steps += [Replace(letter, f" {letter.upper()}") for letter in "acgtn"]

    vocabulary = {token: i for i, token in enumerate(kmer_vocabulary(k))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Sequence(steps)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def kmer_row(codes: np.ndarray, k: int) -> np.ndarray:
    """The ids that `kmer_tokenizer(k)` gives a sequence of base codes, int64 [len(codes) - k + 3]: much faster."""
    n_kmers = max(len(codes) - k + 1, 0)
    row = np.zeros(n_kmers + 2, np.int64)
    row[0], row[-1] = CLS, SEP
    kmers, known = row[1:-1], np.ones(n_kmers, bool)
    for j in range(k):
        letter = codes[j : j + n_kmers]
        kmers *= 4
        kmers += letter
        known &= letter < OTHER
    kmers += len(SPECIAL_TOKENS)
    kmers[~known] = UNK
    return row


def read_vocabulary(folder: str, where: str) -> list[str]:
    """The tokens of a model's folder in the order of their ids, from vocab.txt, or else from tokenizer.json.

    where: how messages name the folder. Raises `InputError` where it holds neither, or one that cannot be read.
    """
    as_text, as_json = Path(folder) / "vocab.txt", Path(folder) / "tokenizer.json"
    try:
        if as_text.is_file():
            return as_text.read_text().split()
        if as_json.is_file():
            ids = Tokenizer.from_file(str(as_json)).get_vocab()
            return sorted(ids, key=ids.__getitem__)
    except Exception as error:  # `tokenizers` raises bare exceptions
        raise InputError(f"{where}: the vocabulary cannot be read: {one_line(error)}") from error
    raise InputError(f"{where}: holds no vocabulary, neither vocab.txt nor tokenizer.json")


def length_of_kmers(vocabulary: list[str], where: str) -> int:
    """The k of a k-mer vocabulary. Raises `InputError` where it is none, or one in another order."""
    sizes = {len(SPECIAL_TOKENS) + 4**k: k for k in K_RANGE}
    k = sizes.get(len(vocabulary))
    if k is None:
        known = ", ".join(f"{size} for k = {length}" for size, length in sizes.items())
        raise InputError(f"{where}: its {len(vocabulary)} tokens are no vocabulary of k-mers ({known})")
    for i, (found, expected) in enumerate(zip(vocabulary, kmer_vocabulary(k), strict=True)):
        if found != expected:
            raise InputError(
                f"{where}: the vocabulary is not DNABERT's in order: row {i + 1} (id {i}) is {shown(found)}, and "
                f"should be {expected!r}; its weights cannot be used"
            )
    return k
