import numpy as np
import pytest
import torch

from kernels.philox import Stream, below, draw, philox, threshold

# Known answers of Random123 (Salmon et al.), philox4x32-10: counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
@pytest.mark.parametrize("array", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_known_answers(counter, key, expected, array):
    words = philox(key, tuple(array([word]) for word in counter))
    assert tuple(int(word[0]) for word in words) == expected


def test_numpy_and_torch_agree_bit_for_bit():
    rng = np.random.default_rng(0)
    sample, position = rng.integers(0, 2**40, size=1000), rng.integers(0, 2**31, size=1000)
    ours = draw(7, 3, Stream.WINDOW, sample, position)
    theirs = draw(7, 3, Stream.WINDOW, torch.from_numpy(sample), torch.from_numpy(position))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_every_part_of_the_key_matters():
    base = {"seed": 1, "epoch": 0, "stream": Stream.MASK, "sample": np.array([5]), "position": 2}
    words = {int(draw(**base)[0][0])}
    for change in (
        {"seed": 2},
        {"epoch": 1},
        {"stream": Stream.PAIR},
        {"sample": np.array([6])},
        {"sample": np.array([5 + 2**32])},
        {"position": 3},
    ):
        words.add(int(draw(**(base | change))[0][0]))
    assert len(words) == 7


def test_below_is_uniform_and_threshold_is_its_probability():
    word = draw(0, 0, Stream.MASK, np.arange(200_000), 0)[0]
    counts = np.bincount(below(word, 7), minlength=7)
    assert ((counts - 200_000 / 7) ** 2 / (200_000 / 7)).sum() < 22.5  # chi-square, 6 degrees, p = 0.001
    assert (word < threshold(0.15)).mean() == pytest.approx(0.15, abs=0.003)
