"""From shards of promoters to micro-batches: byte-level BPE tokens, padded on the left.

A row is `<pad> ... <s> tokens </s>`. Its end lies next to the gene, so a token's place in the row says how far from the
gene it is; of a promoter that does not fit, the tokens next to the gene stay.
"""

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from data_prep.bases import decode
from data_prep.bpe import PAD, SPECIAL_TOKENS
from data_prep.shard_reader import ShardReader
from pretrain.batches import Batch
from pretrain.data_order import MicroBatch


class TokenBatches(Dataset):
    """Map-style dataset whose items are whole micro-batches, asked for by a `MicroBatch`. An item's tensors:

    token_ids: int32 [n, max_tokens]; sample, epoch: int64 [n]; cell_type: int64 [n], the species; weight: float32 [n];
    binding: float16 [n, 1, 0] and follows: int64 [n], of no use to a model of sequences alone.
    """

    def __init__(self, reader: ShardReader, tokenizer: Tokenizer, max_tokens: int):
        self.reader = reader
        self.tokenizer = left_padding(tokenizer, max_tokens)

    def __len__(self) -> int:
        """Samples, not micro-batches."""
        return len(self.reader)

    def __getitem__(self, asked: MicroBatch) -> Batch:
        # Those of one shard are read together, as it may have to come from far.
        read = {number: decode(self.reader.arrays(number)[0]) for number in sorted(set(asked.sample.tolist()))}
        rows = self.tokenizer.encode_batch_fast([read[number] for number in asked.sample.tolist()])
        return {
            "token_ids": torch.from_numpy(np.array([row.ids for row in rows], dtype=np.int32)),
            "binding": torch.zeros(len(rows), 1, 0, dtype=torch.float16),
            "follows": torch.zeros(len(rows), dtype=torch.int64),
            "sample": torch.from_numpy(asked.sample),
            "epoch": torch.from_numpy(asked.epoch),
            "cell_type": torch.from_numpy(self.reader.cell_type[asked.sample].astype(np.int64)),
            "weight": torch.from_numpy(asked.weight),
        }


def left_padding(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    """A copy whose rows are all `max_tokens` long."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_truncation(max_tokens, direction="left")
    tokenizer.enable_padding(direction="left", pad_id=PAD, pad_token=SPECIAL_TOKENS[PAD], length=max_tokens)
    return tokenizer
