"""CornBERT (Levy et al. 2020): a RoBERTa over byte-level BPE tokens of promoters, with a masked-token head alone."""

import math

import torch
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM

from data_prep.bpe import BOS, EOS, PAD
from kernels.kmer_mask import MaskedBatch
from pretrain.config import ModelConfig
from pretrain.model import Outputs, at_slots, keys_mask


class CornBERT(nn.Module):
    """The encoder and its head. vocabulary: the tokenizer's tokens, special ones included."""

    def __init__(self, config: ModelConfig, vocabulary: int):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.sequence = RobertaForMaskedLM(roberta_config(config, vocabulary))

    def forward(self, batch: MaskedBatch, binding: torch.Tensor | None = None, heads: bool = True) -> Outputs:
        """As `GeneBERT.forward`; there is no binding matrix to read."""
        encoded = self.sequence.roberta(input_ids=batch.token_ids, attention_mask=keys_mask(batch.attention_mask))
        hidden = encoded.last_hidden_state
        first = batch.attention_mask.argmax(1, keepdim=True)  # <s>, after the padding
        cls = at_slots(hidden, first)[:, 0].detach()
        return Outputs(
            mgm_logits=self.sequence.lm_head(at_slots(hidden, batch.masked_positions)) if heads else None, cls=cls
        )


def roberta_config(config: ModelConfig, vocabulary: int) -> RobertaConfig:
    """The encoder's Hugging Face configuration. Positions count from the first token that is not padding."""
    return RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=PAD + 1 + config.max_tokens,
        type_vocab_size=1,
        initializer_range=0.02 * math.sqrt(768 / config.hidden_size),
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        attn_implementation="sdpa",
    )
