"""What a run is made of, by its configuration and the manifest of its shards: data, model, groups of parameters."""

import torch
from tokenizers import Tokenizer

from data_prep.bpe import read_shards_tokenizer
from data_prep.errors import InputError
from data_prep.shard_cache import ShardCache
from data_prep.shard_reader import ShardReader
from pretrain import ranks
from pretrain.batches import MicroBatches
from pretrain.config import ModelConfig, RunConfig
from pretrain.cornbert import CornBERT
from pretrain.model import GeneBERT
from pretrain.token_batches import TokenBatches


def tokenizer_of(config: RunConfig, manifest: dict) -> Tokenizer | None:
    """The tokenizer of shards of promoters, None for others. A collective; raises `InputError` on all ranks."""
    if "tokenizer" not in manifest:
        return None
    tokenizer = failed = None
    try:
        tokenizer = read_shards_tokenizer(config.shards, manifest)
    except InputError as error:
        failed = error
    ranks.raise_together(failed)
    return tokenizer


def dataset(
    config: RunConfig,
    model: ModelConfig,
    manifest: dict,
    cache: ShardCache | None,
    split: str,
    tokenizer: Tokenizer | None,
) -> MicroBatches | TokenBatches:
    """The samples of a split, as the model takes them."""
    reader = ShardReader(config.shards, split, manifest, cache)
    if tokenizer:
        return TokenBatches(reader, tokenizer, model.max_tokens)
    return MicroBatches(reader, k=model.k, max_tokens=model.max_tokens, seed=config.seed)


def new_model(config: ModelConfig, manifest: dict, tokenizer: Tokenizer | None, seed: int) -> GeneBERT | CornBERT:
    """A model of random weights, which the seed decides."""
    torch.manual_seed(seed)
    if tokenizer:
        return CornBERT(config, tokenizer.get_vocab_size())
    return GeneBERT(config, torch.tensor(manifest["binding_mean"]), torch.tensor(manifest["binding_std"]))


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices alone: none for biases (also those by relative position), norms, the temperature."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or "bias" in name else decayed).append(parameter)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
