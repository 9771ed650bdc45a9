import numpy as np
import pytest

from data_prep.shard_reader import ShardReader
from pretrain.batches import MicroBatches, loader
from pretrain.data_order import DataOrder
from pretrain.ds_config import BatchLayout

SIZES = [8] * 40 + [3]


def test_an_epoch_holds_each_sample_once_in_another_order_each_time():
    order = DataOrder(SIZES, seed=1)
    first, second = order.epoch(0), order.epoch(1)
    for epoch in (first, second, DataOrder(SIZES, seed=2).epoch(0)):
        assert sorted(epoch) == list(range(323))
    assert (first != second).any()
    assert (first != DataOrder(SIZES, seed=2).epoch(0)).any()
    assert (first == DataOrder(SIZES, seed=1).epoch(0)).all()


def test_a_block_of_consecutive_samples_comes_from_few_shards():
    shard = DataOrder(SIZES, seed=1).epoch(0) // 8
    assert len(set(shard[:100])) <= 16
    assert len(set(shard[:20])) > 5


def test_steps_go_through_the_epochs_without_gap_or_repeat():
    order = DataOrder(SIZES, seed=0)
    batches = [order.batch(step, 50) for step in range(2 * 323 // 50 + 1)]
    samples, epochs = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert (samples[:323] == order.epoch(0)).all()
    assert (samples[323:646] == order.epoch(1)).all()
    assert (epochs[:646] == np.repeat([0, 1], 323)).all()


@pytest.mark.parametrize(
    ("global_batch", "world_size", "largest", "expected"),
    [
        (2000, 32, 64, (63, 1)),
        (2000, 32, None, (63, 1)),
        (2000, 8, 64, (63, 4)),
        (2000, 1, 64, (63, 32)),
        (7, 2, 2, (2, 2)),
    ],
)
def test_layout_holds_the_batch_with_the_least_padding(global_batch, world_size, largest, expected):
    layout = BatchLayout.of(global_batch, world_size, largest)
    assert (layout.micro_batch, layout.accumulation) == expected
    assert global_batch <= layout.slots < global_batch + world_size * layout.accumulation


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("largest_micro_batch", [None, 2])
def test_global_batches_are_the_same_for_any_ranks_workers_and_rounds(shards, n_ranks, workers, largest_micro_batch):
    reader = ShardReader(shards, "train")
    order = DataOrder([shard["samples"] for shard in reader.shards], seed=3)
    layout = BatchLayout.of(10, n_ranks, largest_micro_batch)
    dataset = MicroBatches(reader, k=3, max_tokens=96, seed=3)
    steps = -(-len(order) // 10)
    seen: list[dict[int, tuple]] = [{} for _ in range(steps)]
    for rank in range(n_ranks):
        batches = loader(dataset, order.micro_batches(layout, rank, range(steps)), workers, pin_memory=False)
        for number, batch in enumerate(batches):
            step = seen[number // layout.accumulation]
            for row in np.flatnonzero(batch["weight"]):
                key = int(batch["sample"][row]), int(batch["epoch"][row])
                assert key not in step
                step[key] = batch["bases"][row].numpy().tobytes(), batch["binding"][row].numpy().tobytes()
    alone = next(iter(loader(dataset, order.micro_batches(BatchLayout.of(10, 1, None), 0, range(1)), 0, False)))
    assert {int(sample) for sample in alone["sample"]} == {sample for sample, _ in seen[0]}
    for row, sample in enumerate(alone["sample"].tolist()):
        assert seen[0][sample, 0][0] == alone["bases"][row].numpy().tobytes()
        assert seen[0][sample, 0][1] == alone["binding"][row].numpy().tobytes()
    for number, step in enumerate(seen):
        samples, epochs = order.batch(number, 10)
        assert set(step) == set(zip(samples.tolist(), epochs.tolist(), strict=True))
    in_first_epoch = [sample for step in seen for sample, epoch in step if epoch == 0]
    assert sorted(in_first_epoch) == list(range(len(order)))
