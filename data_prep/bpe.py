"""The byte-level BPE tokenizer of promoters (CornBERT, Levy et al. 2020): trained, written and read again.

Tokens are learnt from promoters as whole words, as DNA has no spaces. <s> 0, <pad> 1, </s> 2, <mask> 3, then the 256
bytes, then the merges. Byte-level BPE knows every letter, so there is no token for an unknown one; letters outside ACGT
count as N, soft-masked letters as upper-case. It is plain `tokenizers` data (tokenizer.json), so a process that knows
nothing of this project reads it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.errors import InputError, one_line
from data_prep.remote_file import is_remote, read_remote, url

TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<mask>")
BOS, PAD, EOS, MASK = range(4)
N_SPECIAL = len(SPECIAL_TOKENS)
SMALLEST_VOCABULARY = 256  # the bytes; special tokens come on top
ATTEMPTS = 3


def train_tokenizer(promoters: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of `vocabulary` tokens (at least 256; fewer where so many pairs do not recur) and 4 special ones.

    It depends on the promoters alone, not on their order.
    """
    tokenizer = Tokenizer(models.BPE())
    upper = [normalizers.Replace(letter, letter.upper()) for letter in "acgt"]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s"), ""), *upper, normalizers.Replace(Regex("[^ACGT]"), "N")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + N_SPECIAL,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(promoters, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def read_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in the file `path`. Raises `InputError` where it is not one that `train_tokenizer` makes."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return _parsed(content, str(path))


def read_shards_tokenizer(location: Path | str, manifest: dict) -> Tokenizer:
    """The tokenizer of shards of promoters in a folder or behind a URL, checked against the manifest's sha256."""
    if is_remote(location):
        where = url(str(location), TOKENIZER)
        try:
            content = read_remote(str(location), TOKENIZER, ATTEMPTS)
        except FileNotFoundError as error:
            raise InputError(f"{where}: the manifest names it, but it is not there; copy the shards anew") from error
    else:
        where = str(Path(location) / TOKENIZER)
        try:
            content = Path(where).read_bytes()
        except OSError as error:
            raise InputError(f"{where}: cannot be read: {error.strerror}; make the shards anew") from error
    expected, found = manifest["tokenizer"]["sha256"], hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"{where}: truncated or altered: expected sha256 {expected}, found {found}; copy it again or make the "
            "shards anew"
        )
    return _parsed(content, where)


def _parsed(content: bytes, where: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises no other
        raise InputError(f"{where}: not a tokenizer: {one_line(error)}") from error
    found = [tokenizer.id_to_token(number) for number in range(N_SPECIAL)]
    if found != list(SPECIAL_TOKENS):
        raise InputError(
            f"{where}: its first tokens are {', '.join(map(str, found))}, not {', '.join(SPECIAL_TOKENS)}; give the "
            f"{TOKENIZER} of other shards of promoters"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
