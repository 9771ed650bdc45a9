"""The floors of expression: features against sites counted by hand, and what each baseline can and cannot learn."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.promoter_elements import ELEMENTS, STRANDS, sites
from finetune.config import FinetuneConfig
from finetune.examples import Examples
from finetune.expression_baselines import constant_mean, element_features, kmer_counts, kmers, motifs
from finetune.model import Target
from finetune.task import Table, Unit


def features(sequence: str) -> dict[tuple[str, str], tuple[float, float]]:
    """By element and strand: its sites, and the distance of the nearest from the gene."""
    values = iter(element_features([sequence])[0].tolist())
    return {(element, strand): (next(values), next(values)) for element in ELEMENTS for strand in STRANDS}


def test_sites_and_distances_are_those_counted_by_hand():
    #           0    5    10   15   20   25   30   35
    sequence = "GGTATAAATGGGCAACAACAAGGTATATAAGGTTGTTGG"
    #             TATAAAT    CAACAA    TATATAA    rc of CAACAA is TTGTTG
    #                           CAACAA
    found = features(sequence)
    assert found["TATA", "+"] == (2, len(sequence) - 30)
    assert found["CA", "+"] == (2, len(sequence) - 21)
    assert found["CA", "-"] == (1, len(sequence) - 38)
    # The reverse complement of TATAWAW is WTWTATA.
    assert found["TATA", "-"][0] == sum(
        sequence[i] in "AT" and sequence[i + 1] == "T" and sequence[i + 2] in "AT" and sequence[i + 3 : i + 7] == "TATA"
        for i in range(len(sequence) - 6)
    )
    assert found["GA", "+"][0] == found["GA", "-"][0] == 0
    assert math.isnan(found["GA", "+"][1])


def test_overlapping_sites_count_each_and_n_matches_none():
    assert sites("GAGAGAGA", "GA", "+") == [0, 2]
    assert sites("GAGANAGAGA", "GA", "+") == []
    assert features("CTCTCTCTC")["GA", "-"] == (2, 0)
    assert features("CTCTTCTCCC")["Y_patch", "+"] == (3, 0)
    assert features("CTCTTCTCCC")["Y_patch", "-"][0] == 0


@pytest.mark.parametrize("sequence", ["", "ACG"])
def test_a_sequence_too_short_for_any_element_has_none(sequence):
    assert all(count == 0 and math.isnan(distance) for count, distance in features(sequence).values())


@given(st.text("ACGTN", max_size=80))
def test_kmer_counts_are_those_of_a_counter(sequence):
    expected = Counter(sequence[i : i + 5] for i in range(len(sequence) - 4) if "N" not in sequence[i : i + 5])
    (counts,) = kmer_counts([sequence])
    letters = "ATCG"
    found = {
        "".join(letters[int(number) // 4**place % 4] for place in range(4, -1, -1)): counts[number]
        for number in np.flatnonzero(counts)
    }
    assert found == expected


@pytest.fixture(scope="module")
def unit_of(tmp_path_factory) -> Callable[..., Unit]:
    """A function that makes a unit of random promoters with two tissues: the first is 1 + its TATA boxes + noise, the
    second noise."""
    folder = tmp_path_factory.mktemp("unit")

    def make(n: int, seed: int = 0, noise: float = 0.3) -> Unit:
        rng, splits = np.random.default_rng(seed), {}
        for split, rows in (("train", n), ("dev", 80), ("test", 120)):
            boxes = rng.integers(0, 4, rows)
            sequences = []
            for count in boxes:
                letters = rng.choice(list("ACG"), 200)
                for at in 10 + 40 * np.arange(count):
                    letters[at : at + 7] = list("TATAAAT")
                sequences.append("".join(letters))
            values = np.stack([1 + boxes, np.full(rows, 2.0)], axis=1) + noise * rng.normal(size=(rows, 2))
            splits[split] = Examples.of_sequences(sequences, values.astype(np.float32), Path(f"{split}.tsv.gz"))
        table = Table(splits, Target("values", ("boxes", "noise")), 200)
        return Unit(table, FinetuneConfig(task="expression"), 0, folder)

    return make


def errors(unit: Unit, predicted: np.ndarray) -> np.ndarray:
    """Mean squared, by tissue."""
    assert predicted.shape == (120, 2)
    assert predicted.dtype == np.float64
    return ((predicted - unit.table.test.targets) ** 2).mean(axis=0)


def test_the_constant_mean_is_that_of_the_training_genes(unit_of):
    unit = unit_of(50)
    predicted = constant_mean(unit)
    assert (predicted == predicted[0]).all()
    assert predicted[0] == pytest.approx(unit.table.train.targets.mean(axis=0), rel=1e-6)


@pytest.mark.parametrize("baseline", [motifs, kmers])
def test_what_the_promoters_tell_is_learnt_and_noise_is_not(unit_of, baseline):
    unit = unit_of(600)
    floor, found = errors(unit, constant_mean(unit)), errors(unit, baseline(unit))
    assert found[0] < 0.3 * floor[0]
    assert 0.9 * floor[1] < found[1] < 1.3 * floor[1]


def test_fewer_genes_than_kmers_do_not_carry_the_regression_away(unit_of):
    """Without a penalty, 1,024 counts would fit 60 genes exactly, and miss others by far."""
    unit = unit_of(60, noise=1.0)
    floor, found = errors(unit, constant_mean(unit)), errors(unit, kmers(unit))
    assert found[1] < 1.5 * floor[1]


@pytest.mark.parametrize("baseline", [constant_mean, motifs, kmers])
def test_the_same_table_gives_the_same_predictions(unit_of, baseline):
    assert baseline(unit_of(100)).tobytes() == baseline(unit_of(100)).tobytes()


def test_without_a_test_table_dev_is_scored_and_stops_nothing(unit_of):
    """Were dev to say when to stop, its score would be too good."""
    unit = unit_of(300)
    splits = {name: unit.table.splits[name] for name in ("train", "dev")}
    without = Unit(Table(splits, unit.table.target, 200), unit.config, 0, unit.folder)
    predicted = motifs(without)
    assert predicted.shape == (80, 2)
    longer = Unit(Table(splits | {"test": splits["dev"]}, unit.table.target, 200), unit.config, 0, unit.folder)
    assert not np.array_equal(predicted, motifs(longer))
