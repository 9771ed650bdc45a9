"""Shuffles of a sequence that keep its dinucleotides, each as often as before (Altschul & Erickson 1985).

A sequence is a walk over its letters that takes each of its dinucleotides, as an edge, once. Every other such walk from
the first letter is a shuffle. It is fixed by the order in which each letter's edges are taken; an order makes a whole
walk if and only if the letters' last edges lead, one after another, to the sequence's last letter. So the last edges
are drawn first, as a random tree towards that letter (Wilson 1996), and the other edges in any order: every shuffle is
drawn with the same probability.
"""

import numpy as np

from data_prep.bases import OTHER


def shuffled(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of all sequences with the dinucleotide counts of `codes` (uint8 [length]), each as likely as any other.

    It begins and ends with the same letters. Letters outside ACGT stay in their places, and each stretch between them
    is shuffled by itself.
    """
    result = codes.copy()
    known = np.concatenate([[False], codes != OTHER, [False]])
    borders = np.flatnonzero(known[1:] != known[:-1])
    for start, end in borders.reshape(-1, 2):
        result[start:end] = _shuffled_stretch(codes[start:end], rng)
    return result


def _shuffled_stretch(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shuffle of a stretch of letters that are all known."""
    successors = [codes[1:][codes[:-1] == letter] for letter in range(OTHER)]
    last_edges = _tree_towards(int(codes[-1]), successors, rng)
    ways = []
    for letter, onward in enumerate(successors):
        last = last_edges.get(letter)
        if last is not None:
            onward = np.delete(onward, np.argmax(onward == last))
        ways.append(iter([*rng.permutation(onward).tolist(), *([] if last is None else [last])]))
    walk = [int(codes[0])]
    for _ in range(len(codes) - 1):
        walk.append(next(ways[walk[-1]]))
    return np.array(walk, np.uint8)


def _tree_towards(end: int, successors: list[np.ndarray], rng: np.random.Generator) -> dict[int, int]:
    """The letter that each letter of the sequence, but `end`, goes to last: a tree drawn uniformly over edges.

    By random walks from each letter until the tree is met; a later step from a letter replaces an earlier one, which
    erases loops.
    """
    elsewhere = [onward[onward != letter] for letter, onward in enumerate(successors)]
    last_edges: dict[int, int] = {}
    in_tree = {end}
    for letter in range(OTHER):
        if not len(successors[letter]):
            continue
        here = letter
        while here not in in_tree:
            last_edges[here] = int(rng.choice(elsewhere[here]))
            here = last_edges[here]
        here = letter
        while here not in in_tree:
            in_tree.add(here)
            here = last_edges[here]
    return last_edges
