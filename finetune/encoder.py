"""The encoders that a task starts from: pretrain/convert.py's, or a BERT or RoBERTa of DNA as transformers keeps it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, PreTrainedConfig, PreTrainedModel, RobertaConfig

from data_prep.bases import encode
from data_prep.binding import Scanner
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.kmers import kmer_row, length_of_kmers, read_vocabulary
from data_prep.motifs import load_motifs
from pretrain.model import attend_nearby
from pretrain.positions import resized_positions
from pretrain.weights import DESCRIPTION, UNREADABLE, summary

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class SequenceTokens:
    """Token ids of sequences. k: of a vocabulary of k-mers in DNABERT's order; None where `tokenizer` makes the ids."""

    k: int | None
    tokenizer: transformers.PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, folder: Path, model_type: str) -> "SequenceTokens":
        """The tokenizer of a sequence encoder's folder: a BERT's is of k-mers, a RoBERTa's its own. Raises `InputError`
        where it cannot be read, or is of k-mers in another order than DNABERT's."""
        if model_type == "bert":
            return cls(length_of_kmers(read_vocabulary(str(folder), str(folder)), str(folder)))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # `tokenizers` raises bare exceptions
            raise InputError(f"{folder}: the tokenizer cannot be read: {summary(error)}") from error
        return cls(None, tokenizer)

    @property
    def pad(self) -> int:
        return 0 if self.k else self.tokenizer.pad_token_id

    @property
    def pads_left(self) -> bool:
        return not self.k and self.tokenizer.padding_side == "left"

    def count(self, sequence: str) -> int:
        """Tokens of a whole sequence, special ones included."""
        return len(sequence) - self.k + 3 if self.k else len(self.tokenizer(sequence)["input_ids"])

    def ids(self, sequence: str, longest: int) -> np.ndarray:
        """int64 [tokens], special ones included, `longest` at most. What is too long is cut at its end; by a tokenizer
        that cuts on the left, as of promoters, at its beginning."""
        if self.k:
            return kmer_row(encode(sequence[: longest + self.k - 3]), self.k)
        return np.array(self.tokenizer(sequence, truncation=True, max_length=longest)["input_ids"], np.int64)


@dataclass(frozen=True)
class Encoder:
    """A folder of weights, found readable. sequence: the folder of the sequence encoder, `folder` itself or one in it;
    config: of that; tokens: its tokenizer; description: genebert.json, empty where there is none."""

    folder: Path
    sequence: Path
    config: PreTrainedConfig
    tokens: SequenceTokens
    description: dict

    @classmethod
    def at(cls, folder: Path) -> "Encoder":
        """Raises `InputError` where the folder is not a converted checkpoint, nor a BERT or RoBERTa of DNA."""
        description = folder / DESCRIPTION
        if not description.is_file() and not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder}: holds no model; make one with: python pretrain/convert.py RUN_DIR {folder}, or give the "
                "folder of a BERT or RoBERTa"
            )
        sequence = folder / "sequence" if description.is_file() else folder
        if not any((sequence / name).is_file() for name in WEIGHTS):
            raise InputError(f"{sequence}: {WEIGHTS[0]} is missing; copy the folder, or convert the checkpoint, again")
        config = _read_config(sequence)
        tokens = SequenceTokens.of(sequence, config.model_type)
        return cls(folder, sequence, config, tokens, _read(description) if description.is_file() else {})

    @property
    def longest(self) -> int:
        """Tokens that it reads, special ones included."""
        return self.config.max_position_embeddings - _n_fixed_positions(self.config)

    @property
    def k(self) -> int | None:
        return self.tokens.k

    @property
    def fingerprint(self) -> dict[str, str]:
        """sha256 of its files of weights, by name."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.suffix in (".safetensors", ".bin")]
        return {str(path.relative_to(self.folder)): sha256_of_file(path) for path in files}

    def sequence_encoder(self, pretrained: bool, longest: int = 0) -> PreTrainedModel:
        """The encoder with its weights or, not `pretrained`, with those that pre-training would draw. Raises
        `InputError` where the weights cannot be read or do not fill it.

        longest: tokens that it is to read; beyond its own number its position table is lengthened
        (`pretrain.positions.resized_positions`).
        """
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if not pretrained:
            model = AutoModel.from_config(self.config, dtype=torch.float32, add_pooling_layer=False)
            if self.config.model_type == "bert":
                attend_nearby(model)
        else:
            try:
                model, info = AutoModel.from_pretrained(
                    self.sequence,
                    config=self.config,
                    dtype=torch.float32,
                    add_pooling_layer=False,
                    local_files_only=True,
                    output_loading_info=True,
                )
            except UNREADABLE as error:
                raise InputError(f"{self.sequence}: the weights cannot be read: {summary(error)}") from error
            if info["missing_keys"]:
                missing = min(info["missing_keys"])
                raise InputError(f"{self.sequence}: the weights do not fill the encoder: {missing} is missing")
        if longest > self.longest:
            lengthen(model, longest)
        return model

    def region_encoder(self, pretrained: bool) -> nn.Module:
        """The region encoder of a converted checkpoint, with its weights or drawn ones."""
        self.check_multimodal()
        return timm.create_model(f"local-dir:{self.folder / 'region'}", pretrained=pretrained)

    def check_multimodal(self) -> None:
        """Raise `InputError` where there is no region encoder."""
        if "motifs" not in self.description or not (self.folder / "region").is_dir():
            raise InputError(
                f"{self.folder}: has no region encoder; give the checkpoint of a multi-modal pre-training, or "
                "--modality sequence"
            )

    @cached_property
    def scanner(self) -> Scanner:
        """Of the checkpoint's motifs in its order, by its affinity. Raises `InputError` where its file of motifs is
        no more there."""
        self.check_multimodal()
        source = self.description.get("motif_source", "JASPAR2018")
        known = {motif.matrix_id: motif for motif in load_motifs(source, "all")}
        missing = [name for name in self.description["motifs"] if name not in known]
        if missing:
            raise InputError(f"{source}: has no motif {missing[0]}, which {self.folder / DESCRIPTION} names")
        return Scanner.of([known[name] for name in self.description["motifs"]], self.description["affinity"])


def lengthen(model: PreTrainedModel, longest: int) -> None:
    """Let an encoder read `longest` tokens, in place: its position table is lengthened."""
    embeddings, n_fixed = model.embeddings, _n_fixed_positions(model.config)
    old = embeddings.position_embeddings
    n_rows = longest + n_fixed
    rows = resized_positions(old.weight.data, n_rows, n_fixed)
    embeddings.position_embeddings = nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=old.padding_idx)
    embeddings.register_buffer("position_ids", torch.arange(n_rows)[None], persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros(1, n_rows, dtype=torch.long), persistent=False)
    model.config.max_position_embeddings = n_rows


def _n_fixed_positions(config: PreTrainedConfig) -> int:
    """The first rows of RoBERTa's position table are of padding."""
    return config.pad_token_id + 1 if config.model_type == "roberta" else 0


def _read(path: Path) -> dict:
    """A file that holds a JSON object. Raises `InputError` where it does not."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {summary(error)}; copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; copy it again")
    return content


def _read_config(folder: Path) -> PreTrainedConfig:
    """config.json of a sequence encoder. DNABERT's, of before there were types, is a BERT's."""
    content = _read(folder / CONFIG)
    kinds = {"bert": BertConfig, "roberta": RobertaConfig}
    kind = content.get("model_type", "bert")
    if kind not in kinds:
        raise InputError(f"{folder / CONFIG}: is of a {kind}; give a BERT or a RoBERTa")
    return kinds[kind].from_dict({"attn_implementation": "sdpa", **content})
