import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.bases import encode
from data_prep.kmers import SPECIAL_TOKENS, kmer_row, kmer_tokenizer, kmer_vocabulary

UNK, CLS, SEP = 1, 2, 3
EVERY_K = pytest.mark.parametrize("k", [3, 4, 5, 6])


def ids_by_lookup(sequence: str, k: int) -> list[int]:
    position = {token: i for i, token in enumerate(kmer_vocabulary(k))}
    kmers = [sequence[i : i + k].upper() for i in range(len(sequence) - k + 1)]
    return [CLS, *(position.get(kmer, UNK) for kmer in kmers), SEP]


def random_sequence(seed: int, length: int, letters: str) -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), size=length))


@EVERY_K
def test_vocabulary_is_dnaberts(shared_data, k):
    assert kmer_vocabulary(k) == (shared_data / "dnabert" / f"{k}mer" / "vocab.txt").read_text().split()


@EVERY_K
def test_an_id_is_5_plus_the_letters_as_a_base_4_number(k):
    vocabulary = kmer_vocabulary(k)
    assert tuple(vocabulary[:5]) == SPECIAL_TOKENS == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert len(vocabulary) == 5 + 4**k
    for number, kmer in enumerate(vocabulary[5:]):
        assert number == sum("ATCG".index(letter) * 4**place for place, letter in enumerate(reversed(kmer)))


@EVERY_K
@pytest.mark.parametrize("letters", ["ACGT", "acgt", "ACGTacgt", "ACGTN", "ACGTacgtNnRYKMSWBDHVU"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 8, 101, 600])
def test_a_raw_sequence_gives_its_overlapping_kmers(k, letters, length):
    sequence = random_sequence(length, length, letters)
    assert kmer_tokenizer(k).encode(sequence).ids == ids_by_lookup(sequence, k)


@EVERY_K
def test_a_sentence_of_kmers_gives_the_ids_of_its_sequence(k):
    sequence = random_sequence(k, 120, "ACGTacgtN")
    sentence = " ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))
    assert kmer_tokenizer(k).encode(sentence).ids == ids_by_lookup(sequence, k)


def test_dnaberts_fine_tuning_sentences_give_its_ids(shared_data):
    vocabulary = (shared_data / "dnabert" / "6mer" / "vocab.txt").read_text().split()
    position = {token: i for i, token in enumerate(vocabulary)}
    rows = (shared_data / "dnabert" / "ft6_dev.tsv").read_text().splitlines()[1:]
    sentences = [row.split("\t")[0] for row in rows]
    assert len(sentences) == 1000
    tokenizer = kmer_tokenizer(6)
    for sentence, encoding in zip(sentences, tokenizer.encode_batch(sentences), strict=True):
        assert encoding.ids == [CLS, *(position[kmer] for kmer in sentence.split()), SEP]


@EVERY_K
def test_a_sequence_shorter_than_k_gives_only_cls_and_sep(k):
    for length in range(k):
        assert kmer_tokenizer(k).encode("ACGTAC"[:length]).ids == [CLS, SEP]


@EVERY_K
def test_a_pair_has_type_ids_0_and_1(k):
    first, second = random_sequence(1, 20, "ACGT"), random_sequence(2, 30, "ACGT")
    encoding = kmer_tokenizer(k).encode(first, second)
    assert encoding.ids == ids_by_lookup(first, k) + ids_by_lookup(second, k)[1:]
    assert encoding.type_ids == [0] * (20 - k + 1 + 2) + [1] * (30 - k + 1 + 1)


def test_special_tokens_in_the_text_keep_their_ids():
    acg, cgt = (kmer_vocabulary(3).index(kmer) for kmer in ("ACG", "CGT"))
    assert kmer_tokenizer(3).encode("ACG [MASK] CGT [UNK]").ids == [CLS, acg, 4, cgt, UNK, SEP]


@EVERY_K
def test_tokenizer_survives_its_file(k, tmp_path):
    tokenizer = kmer_tokenizer(k)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.get_vocab() == tokenizer.get_vocab() == {token: i for i, token in enumerate(kmer_vocabulary(k))}
    sequence = random_sequence(5, 300, "ACGTacgtN")
    assert loaded.encode(sequence, sequence).ids == tokenizer.encode(sequence, sequence).ids
    assert loaded.encode(sequence).ids == ids_by_lookup(sequence, k)


@EVERY_K
@pytest.mark.parametrize("length", [0, 2, 3, 6, 7, 60])
def test_a_row_counted_out_is_that_of_the_tokenizer(k, length):
    sequence = random_sequence(length, length, "ACGTacgtNR")
    assert kmer_row(encode(sequence), k).tolist() == kmer_tokenizer(k).encode(sequence).ids
