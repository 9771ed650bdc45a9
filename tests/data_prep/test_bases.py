import string

import numpy as np
from Bio.Seq import Seq

from data_prep.bases import decode, encode, reverse_complement

ANY_LETTERS = "".join(np.random.default_rng(0).choice(list("ACGTacgtNnRYKMSWryu-"), size=1000))


def test_codes_are_a0_t1_c2_g3_and_4_for_the_rest():
    assert encode("ATCGatcg").tolist() == [0, 1, 2, 3] * 2
    others = set(string.printable) - set("ATCGatcg")
    assert encode("".join(others)).tolist() == [4] * len(others)


def test_codes_are_uint8_one_a_letter():
    assert encode("ACGTé").dtype == np.uint8
    assert encode("ACGTé").tolist() == [0, 2, 3, 1, 4]
    assert encode("").shape == (0,)
    np.testing.assert_array_equal(encode(b"ACGTn"), encode("ACGTn"))


def test_decode_gives_the_upper_case_letters_and_n_for_the_rest():
    assert decode(encode(ANY_LETTERS)) == "".join(x if x in "ACGT" else "N" for x in ANY_LETTERS.upper())


def test_reverse_complement_is_biopythons():
    sequence = decode(encode(ANY_LETTERS))
    assert decode(reverse_complement(encode(ANY_LETTERS))) == str(Seq(sequence).reverse_complement())


def test_reverse_complement_undoes_itself_and_leaves_its_argument():
    codes = encode(ANY_LETTERS)
    before = codes.copy()
    np.testing.assert_array_equal(reverse_complement(reverse_complement(codes)), codes)
    np.testing.assert_array_equal(codes, before)
