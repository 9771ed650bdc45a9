"""GeneBERT: a BERT over k-mers, a timm vision model over the binding matrix, and the heads of three objectives."""

import json
import math
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForPreTraining, BertModel

from data_prep.errors import InputError
from kernels.kmer_mask import MASK, N_SPECIAL, MaskedBatch
from pretrain import t2t_vit  # noqa: F401 (registers T2T-ViT with timm)
from pretrain.config import ModelConfig
from pretrain.positions import sinusoids

INITIAL_TEMPERATURE = 0.07
SMALLEST_STD = 1e-3  # of a motif's affinity; one that hardly varies is not blown up
LARGEST_SCALE = 100.0  # of the logits of sequence-region matching, as CLIP clips it
POSITION_WEIGHT = 3.0  # of new position embeddings, in units of the k-mers'
QUERY_WEIGHT = 2.2  # of the first layer's new queries, in units of other layers'


@dataclass(frozen=True)
class Outputs:
    """One micro-batch's outputs; None is what a model has no part for, or was not asked for.

    mgm_logits: [batch, capacity, vocabulary], at each slot of the batch's masked tokens, used or not;
    ngsp_logits: [batch, 2], 1 where B follows A; sequence, region: fp32 [batch, projection_size], normalised;
    cls: [batch, hidden_size], the last hidden state of the first token, without gradient.
    """

    mgm_logits: torch.Tensor | None = None
    ngsp_logits: torch.Tensor | None = None
    sequence: torch.Tensor | None = None
    region: torch.Tensor | None = None
    cls: torch.Tensor | None = None


class GeneBERT(nn.Module):
    """Both encoders and their heads. binding_mean, binding_std: [n_motifs], over the training samples."""

    def __init__(self, config: ModelConfig, binding_mean: torch.Tensor, binding_std: torch.Tensor):
        super().__init__()
        self.config = config
        self.sequence = BertForPreTraining(sequence_config(config))
        attend_nearby(self.sequence.bert)
        self.region = region_encoder(config)
        self.sequence_projection = nn.Linear(config.hidden_size, config.projection_size, bias=False)
        self.region_projection = nn.Linear(region_width(self.region), config.projection_size, bias=False)
        # Logarithm of the inverse temperature; of shape [1], because DeepSpeed cannot broadcast a scalar.
        self.logit_scale = nn.Parameter(torch.tensor([1 / INITIAL_TEMPERATURE]).log())
        self.register_buffer("binding_mean", binding_mean.float())
        self.register_buffer("binding_std", binding_std.float())

    @property
    def scale(self) -> torch.Tensor:
        """Inverse temperature of sequence-region matching, fp32 [1]."""
        scale = self.logit_scale.float().exp()
        # Bounded in value but not in gradient: a clamp would hold a scale above the bound there for ever.
        return scale - (scale - scale.clamp(max=LARGEST_SCALE)).detach()

    def forward(self, batch: MaskedBatch, binding: torch.Tensor, heads: bool = True) -> Outputs:
        """batch: masked rows, with an attention mask of None where they are known to hold no padding; binding: [batch,
        10, n_motifs]; heads: compute logits too, not embeddings alone."""
        encoded = self.sequence.bert(
            input_ids=batch.token_ids,
            token_type_ids=batch.segment_ids,
            attention_mask=keys_mask(batch.attention_mask),
        )
        hidden = encoded.last_hidden_state
        kmers = ((batch.token_ids >= N_SPECIAL) | (batch.token_ids == MASK))[..., None]
        mean = (hidden * kmers).sum(1) / kmers.sum(1).clamp(min=1)
        region = self.region(region_image(binding, self.binding_mean, self.binding_std, self.image_size))
        embeddings = {
            "sequence": F.normalize(self.sequence_projection(mean).float(), dim=1),
            "region": F.normalize(self.region_projection(region).float(), dim=1),
            "cls": hidden[:, 0].detach(),
        }
        if not heads:
            return Outputs(**embeddings)
        return Outputs(
            mgm_logits=self.sequence.cls.predictions(at_slots(hidden, batch.masked_positions)),
            ngsp_logits=self.sequence.cls.seq_relationship(encoded.pooler_output),
            **embeddings,
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the region encoder reads."""
        return image_size(self.region)


def keys_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Which tokens of its row each token attends to, bool [batch, 1, 1, tokens]. attention_mask: [batch, tokens], 0 for
    none.

    With four dimensions Transformers takes it as it is; of two it would ask whether any is 0, and wait for the device.
    None, for all, lets attention take its fastest kernel.
    """
    return None if attention_mask is None else attention_mask.bool()[:, None, None]


def at_slots(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states at positions of their rows, [batch, capacity, width]. hidden: [batch, tokens, width]; positions:
    int64 [batch, capacity]."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def image_size(region_encoder: nn.Module) -> tuple[int, int]:
    """Height and width that a timm model reads."""
    patches = getattr(region_encoder, "patch_embed", None)
    return tuple(getattr(patches, "img_size", None) or region_encoder.pretrained_cfg["input_size"][1:])


def region_width(region_encoder: nn.Module) -> int:
    """Width of a timm model's output without a classifier."""
    return getattr(region_encoder, "head_hidden_size", None) or region_encoder.num_features


def region_image(binding: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The binding matrix as a region encoder reads it, [batch, 1, height, width].

    Each motif is standardised, so that all weigh alike; then the matrix [batch, 10, n_motifs] is resized bilinearly,
    with anti-aliasing, since it is narrowed from 579 columns.
    """
    standardised = (binding.float() - mean) / std.clamp(min=SMALLEST_STD)
    return F.interpolate(standardised[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)


def sequence_config(config: ModelConfig) -> BertConfig:
    """The sequence encoder's Hugging Face configuration."""
    return BertConfig(
        vocab_size=N_SPECIAL + 4**config.k,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_tokens,
        # BERT-base's 0.02, and for other widths what keeps a layer's output on the same scale.
        initializer_range=0.02 * math.sqrt(768 / config.hidden_size),
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        attn_implementation="sdpa",
    )


@torch.no_grad()
def attend_nearby(bert: BertModel) -> None:
    """Let the first layer of new weights attend to what is near, in place.

    A masked k-mer is known from its neighbours' letters. With BERT's own drawn weights a token attends to all alike, so
    that a neighbour is one of some hundred voices, and masked genome modelling stays at the frequencies of k-mers for
    thousands of steps. Here positions start from sinusoids, which outweigh the k-mers, and the keys equal the queries:
    the product of two positions then falls with their distance. All is trained.
    """
    table = bert.embeddings.position_embeddings.weight
    scale = POSITION_WEIGHT * bert.config.initializer_range * math.sqrt(2)
    table.copy_(scale * sinusoids(*table.shape, table.device))
    attention = bert.encoder.layer[0].attention.self
    attention.query.weight.mul_(QUERY_WEIGHT)
    attention.key.weight.copy_(attention.query.weight)


def region_encoder(config: ModelConfig) -> nn.Module:
    """The timm model, for one channel and without a classifier. Raises `InputError` for one that timm cannot build."""
    arguments = region_encoder_arguments(config)
    try:
        return timm.create_model(config.region_encoder, **arguments)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"--region_encoder {config.region_encoder} {arguments}: {error}") from error


def region_encoder_arguments(config: ModelConfig) -> dict:
    """The arguments with which timm builds the region encoder."""
    return {
        "in_chans": 1,
        "num_classes": 0,
        "drop_rate": config.dropout,
        "drop_path_rate": config.dropout,
        **json.loads(config.region_encoder_arguments),
    }
