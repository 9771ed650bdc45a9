"""Counter-based random numbers: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011).

A draw is a pure function of (seed, epoch, stream, sample, position), so masks, windows and pairs do not depend on the
rank, the worker, or a sample's place in a batch. The key is (seed, epoch); the counter is (position, stream, low and
high half of the sample's number). The code uses operators alone and runs on numpy arrays and torch tensors of int64.
"""

from enum import IntEnum
from typing import TypeVar

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor, int64

ROUNDS = 10
WORD = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85


class Stream(IntEnum):
    """What a draw is for; each stream is independent of the others."""

    MASK = 0  # position: token's place in its row
    WINDOW = 1  # position: region 0 ... 9 of the sample
    PAIR = 2  # position: 0
    ORDER_OF_SHARDS = 3  # sample: shard; position: 0
    ORDER_OF_SAMPLES = 4  # position: 0


def philox(key: tuple[Array | int, Array | int], counter: tuple[Array | int, ...]) -> tuple[Array, ...]:
    """Four words (int64 in [0, 2**32)) for a key of two words and a counter of four, which broadcast together."""
    k0, k1 = (word & WORD for word in key)
    c0, c1, c2, c3 = (word & WORD for word in counter)
    for _ in range(ROUNDS):
        # A product of two words may wrap to a negative int64: its bits are still right, and WORD cuts the others off.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1 = ((product_1 >> 32) ^ c1 ^ k0) & WORD, product_1
        c2, c3 = ((product_0 >> 32) ^ c3 ^ k1) & WORD, product_0
        k0, k1 = (k0 + _WEYL_0) & WORD, (k1 + _WEYL_1) & WORD
    return c0, c1 & WORD, c2, c3 & WORD


def draw(seed: int, epoch: Array | int, stream: Stream, sample: Array, position: Array | int) -> tuple[Array, ...]:
    """Four independent words, uniform over [0, 2**32), for each (epoch, sample, position); an int is below 2**31."""
    return philox((seed, epoch), (position, int(stream), sample, sample >> 32))


def threshold(probability: float) -> int:
    """The word below which a uniform word lies with the given probability."""
    return round(probability * 2**32)


def below(word: Array, n: Array | int) -> Array:
    """A uniform word as a whole number in [0, n), for n up to 2**31."""
    return (word * n) >> 32
