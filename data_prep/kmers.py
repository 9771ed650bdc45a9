"""The k-mer vocabulary and tokenizer: DNABERT's ids, bit for bit, for k = 3 to 6.

[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the product over the letters in the order A, T, C, G. The tokenizer
is plain `tokenizers` data (tokenizer.json), so a process that knows nothing of this project reads it.
"""

import itertools

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from data_prep.bases import LETTERS

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


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
