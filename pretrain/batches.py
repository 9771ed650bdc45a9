"""From shards to micro-batches on the wire: windows of the regions, and next-segment pairs.

What a sample looks like depends on (seed, epoch, its number) alone. Bases travel as uint8; tokens are made and masked
on the device (`kernels.kmer_mask`).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_prep.errors import InputError
from data_prep.shard_format import REGIONS_PER_SAMPLE
from data_prep.shard_reader import Arrays, ShardReader
from kernels.philox import Stream, below, draw, threshold
from pretrain.data_order import MicroBatch
from pretrain.pre_emption import left_to_parent

N_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
FIRST_HALF = REGIONS_PER_SAMPLE // 2
SECONDS_FOR_A_BATCH = 20 * 60  # below what a collective may take, so that the rank whose storage hangs is named

Batch = dict[str, torch.Tensor]
ON_HOST = {"full"}  # decides what is launched on the device, so it must be known without waiting for the device


class MicroBatches(Dataset):
    """Map-style dataset whose items are whole micro-batches, asked for by a `MicroBatch`. An item's tensors:

    bases: uint8 [n, n_bases], the regions' windows, one after another; window_kmers: int32 [n, 10], k-mers of each;
    binding: float16 [n, 10, n_motifs]; follows: int64 [n], 1 where B follows A, 0 where it is another sample's;
    full: bool [n], whether its tokens will fill the row; sample, epoch, cell_type: int64 [n]; weight: float32 [n].
    """

    def __init__(self, reader: ShardReader, *, k: int, max_tokens: int, seed: int):
        self.reader = reader
        self.k, self.max_tokens, self.seed = k, max_tokens, seed
        # Samples sorted by cell type, to draw a partner of the same one.
        self._by_cell_type = np.argsort(reader.cell_type, kind="stable")
        sorted_types = reader.cell_type[self._by_cell_type]
        self._first = np.searchsorted(sorted_types, reader.cell_type, side="left")
        self._count = np.searchsorted(sorted_types, reader.cell_type, side="right") - self._first
        self._place = np.empty(len(reader), dtype=np.int64)
        self._place[self._by_cell_type] = np.arange(len(reader))

    def __len__(self) -> int:
        """Samples, not micro-batches."""
        return len(self.reader)

    @property
    def n_bases(self) -> int:
        """Bases in a row of `bases`, whatever the samples: shapes are static."""
        return self.max_tokens - N_SPECIAL_TOKENS + REGIONS_PER_SAMPLE * (self.k - 1)

    def partner(self, sample: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Which sample gives B: in half of the cases the sample itself, else another one of its cell type, uniformly.

        A cell type's only sample keeps its own B. int64 [n].
        """
        coin, choice, *_ = draw(self.seed, epoch, Stream.PAIR, sample, 0)
        others = self._count[sample] - 1
        # Skip the sample itself: a draw over the others, shifted by one from its own place on.
        own = self._place[sample] - self._first[sample]
        offset = below(choice, others)
        other = self._by_cell_type[self._first[sample] + np.minimum(offset + (offset >= own), others)]
        return np.where((coin < threshold(0.5)) & (others > 0), other, sample)

    def __getitem__(self, asked: MicroBatch) -> Batch:
        n, partner = len(asked.sample), self.partner(asked.sample, asked.epoch)
        differs = partner != asked.sample
        read = self._read(np.concatenate([asked.sample, partner[differs]]))
        # Where in `read` each row's first and second half stand.
        first, second = np.arange(n), np.arange(n)
        second[differs] = np.arange(n, len(read))

        codes = np.concatenate([bases for bases, _, _ in read])
        every_length = np.array([lengths for _, lengths, _ in read], dtype=np.int64)
        every_start = (np.cumsum(every_length) - every_length.ravel()).reshape(every_length.shape)
        lengths, region_start = paired(every_length, first, second), paired(every_start, first, second)
        kmers = window_kmers(lengths, self.k, self.max_tokens - N_SPECIAL_TOKENS)
        word, *_ = draw(
            self.seed,
            asked.epoch[:, None],
            Stream.WINDOW,
            asked.sample[:, None],
            np.arange(REGIONS_PER_SAMPLE)[None],
        )
        window_bases = np.where(kmers > 0, kmers + self.k - 1, 0)
        window_start = region_start + below(word, lengths - window_bases + 1)
        binding = [matrix for _, _, matrix in read]
        halves = [
            half for a, b in enumerate(second.tolist()) for half in (binding[a][:FIRST_HALF], binding[b][FIRST_HALF:])
        ]
        return {
            "bases": torch.from_numpy(packed(codes, window_start, window_bases, self.n_bases)),
            "window_kmers": torch.from_numpy(kmers.astype(np.int32)),
            "binding": torch.from_numpy(np.concatenate(halves).reshape(n, REGIONS_PER_SAMPLE, -1)),
            "follows": torch.from_numpy((~differs).astype(np.int64)),
            "full": torch.from_numpy(kmers.sum(axis=1) == self.max_tokens - N_SPECIAL_TOKENS),
            "sample": torch.from_numpy(asked.sample),
            "epoch": torch.from_numpy(asked.epoch),
            "cell_type": torch.from_numpy(self.reader.cell_type[asked.sample].astype(np.int64)),
            "weight": torch.from_numpy(asked.weight),
        }

    def _read(self, numbers: np.ndarray) -> list[Arrays]:
        """bases, lengths and binding of each sample; those of one shard are read together, as it may have to come from
        far."""
        read = {number: self.reader.arrays(number) for number in sorted(numbers.tolist())}
        return [read[number] for number in numbers.tolist()]


def paired(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rows of the first five regions of samples `first` and the last five of samples `second`; values: [m, 10]."""
    return np.concatenate([values[first, :FIRST_HALF], values[second, FIRST_HALF:]], axis=1)


def packed(codes: np.ndarray, start: np.ndarray, size: np.ndarray, width: int) -> np.ndarray:
    """Each row's windows one after another, then zeros. uint8 [n, width].

    codes: uint8 [bases]; start, size: int64 [n, n_windows], a window's place in `codes` and its bases.
    """
    source = memoryview(codes)
    windows = b"".join(
        [source[a:b] for a, b in zip(start.ravel().tolist(), (start + size).ravel().tolist(), strict=True)]
    )
    rows = np.zeros((len(start), width), dtype=np.uint8)
    rows[np.arange(width) < size.sum(axis=1, keepdims=True)] = np.frombuffer(windows, dtype=np.uint8)
    return rows


def window_kmers(lengths: np.ndarray, k: int, budget: int) -> np.ndarray:
    """k-mers that each region's window holds: all where they fit into `budget`, else in proportion to the region.

    lengths: int64 [n, n_regions], bp. What rounding down leaves goes to the regions with the largest remainder, so that
    a sample which does not fit fills its budget. int64 [n, n_regions].
    """
    available = np.maximum(lengths - k + 1, 0)
    total = available.sum(axis=1, keepdims=True)
    exact = available * budget
    share, remainder = np.divmod(exact, np.maximum(total, 1))
    left = budget - share.sum(axis=1, keepdims=True)
    rank = np.argsort(np.argsort(-remainder, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(total <= budget, available, share + (rank < left))


def loader(dataset: MicroBatches, order: Iterable[MicroBatch], workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Micro-batches in the given order, read ahead by `workers` processes. An `InputError` of theirs is raised here."""
    batches = DataLoader(
        ErrorsAsItems(dataset),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=left_to_parent,
        timeout=SECONDS_FOR_A_BATCH if workers else 0,
    )
    return map(raise_error, iter(batches))


class ErrorsAsItems(Dataset):
    """A dataset that gives an `InputError` instead of raising it: a worker would put its traceback into the message."""

    def __init__(self, dataset: MicroBatches):
        self.dataset = dataset

    def __getitem__(self, asked: MicroBatch) -> Batch | InputError:
        try:
            return self.dataset[asked]
        except InputError as error:
            return error


def raise_error(item: Batch | InputError) -> Batch:
    if isinstance(item, InputError):
        raise item
    return item
