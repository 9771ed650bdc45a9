import numpy as np
import pytest

from data_prep.bases import decode
from data_prep.shard_reader import ShardReader
from pretrain.batches import MicroBatches, window_kmers
from pretrain.data_order import MicroBatch


def ask(samples, epoch=0) -> MicroBatch:
    samples = np.asarray(samples, dtype=np.int64)
    return MicroBatch(samples, np.full_like(samples, epoch), np.ones(len(samples), np.float32))


@pytest.fixture(scope="module")
def dataset(shards) -> MicroBatches:
    return MicroBatches(ShardReader(shards, "train"), k=3, max_tokens=96, seed=0)


@pytest.mark.parametrize("k", [3, 6])
@pytest.mark.parametrize("budget", [93, 509, 5117])
def test_windows_fill_the_budget_in_proportion_or_hold_everything(k, budget):
    lengths = np.random.default_rng(0).integers(1, 2000, size=(500, 10))
    lengths[:100] //= 40
    available = np.maximum(lengths - k + 1, 0)
    kmers = window_kmers(lengths, k, budget)
    fits = available.sum(1) <= budget
    assert (kmers[fits] == available[fits]).all()
    assert (kmers[~fits].sum(1) == budget).all()
    assert (kmers <= available).all()
    exact = available[~fits] * budget / available[~fits].sum(1, keepdims=True)
    assert np.abs(kmers[~fits] - exact).max() < 1


def test_windows_are_stretches_of_the_samples_own_regions(dataset):
    batch = dataset[ask(range(len(dataset)))]
    partner = dataset.partner(np.arange(len(dataset)), np.zeros(len(dataset), np.int64))
    for row in range(len(dataset)):
        packed = decode(batch["bases"][row].numpy())
        first = 0
        for region, kmers in enumerate(batch["window_kmers"][row].tolist()):
            source = dataset.reader[row if region < 5 else int(partner[row])]
            ends = np.cumsum(source.lengths)
            whole = decode(source.bases[ends[region] - source.lengths[region] : ends[region]])
            assert packed[first : first + kmers + 2] in whole
            first += kmers + 2
            np.testing.assert_array_equal(batch["binding"][row, region].numpy(), source.binding[region])
        assert batch["follows"][row] == (partner[row] == row)


def test_over_epochs_every_base_of_a_region_is_seen(dataset):
    sample = dataset.reader[4]
    region = decode(sample.bases[: sample.lengths[0]])
    seen = set()
    for epoch in range(200):
        batch = dataset[ask([4], epoch)]
        window = decode(batch["bases"][0].numpy())[: int(batch["window_kmers"][0, 0]) + 2]
        seen |= set(range(region.index(window), region.index(window) + len(window)))
    assert seen == set(range(len(region)))


def test_half_of_the_pairs_are_of_another_sample_of_the_cell_type_and_each_is_as_likely(dataset):
    n, epochs = len(dataset), 400
    samples, numbers = np.tile(np.arange(n), epochs), np.repeat(np.arange(epochs), n)
    partner = dataset.partner(samples, numbers)
    cell_type = dataset.reader.cell_type
    assert (cell_type[partner] == cell_type[samples]).all()
    assert (partner != samples).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n * epochs))
    others = np.flatnonzero((cell_type == cell_type[7]) & (np.arange(n) != 7))
    counts = np.bincount(partner[(samples == 7) & (partner != samples)], minlength=n)[others]
    expected = counts.sum() / len(others)
    assert counts.min() > 0
    assert ((counts - expected) ** 2 / expected).sum() < len(others) + 4 * np.sqrt(2 * len(others))  # chi-square


def test_a_sample_is_the_same_in_any_batch(dataset):
    together = dataset[ask([3, 9, 27], epoch=2)]
    alone = dataset[ask([9], epoch=2)]
    for name, tensor in alone.items():
        assert (tensor[0] == together[name][1]).all()
