"""The configuration of a run: two frozen dataclasses, filled from a preset or YAML file and then the command line."""

import argparse
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from data_prep.errors import InputError
from data_prep.shard_cache import DEFAULT_FOLDER
from kernels.kmer_mask import span_tokens

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class ModelConfig:
    """What the weights depend on."""

    sequence_encoder: Literal["bert", "roberta"] = field(
        default="bert",
        metadata={"help": "bert: over k-mers of regions; roberta: over the byte-level BPE tokens of promoters."},
    )
    k: int = field(default=6, metadata={"help": "Length of the k-mers, 3 to 6."})
    max_tokens: int = field(default=512, metadata={"help": "Tokens in a row, special tokens included."})
    hidden_size: int = field(default=768, metadata={"help": "Width of the sequence encoder."})
    layers: int = field(default=12, metadata={"help": "Layers of the sequence encoder."})
    heads: int = field(default=12, metadata={"help": "Attention heads of the sequence encoder."})
    intermediate_size: int = field(default=3072, metadata={"help": "Width of its feed-forward layers."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of both encoders."})
    region_encoder: str = field(
        default="swin_base_patch4_window7_224",
        metadata={"help": "timm model that reads the binding matrix; none, with --sequence_encoder roberta."},
    )
    region_encoder_arguments: str = field(
        default="{}", metadata={"help": "JSON of further arguments to timm.create_model."}
    )
    projection_size: int = field(default=512, metadata={"help": "Width in which both modalities are matched."})


@dataclass(frozen=True)
class RunConfig:
    """How the weights are trained. What DeepSpeed decides (batch, precision, optimizer, schedule) is in --ds_config."""

    ds_config: str = field(metadata={"help": "DeepSpeed configuration, such as ds_configs/zero2.json."})
    config: str = field(
        default_factory=lambda: default_preset(),
        metadata={
            "help": "Preset, or YAML file of defaults: genebert-base, the default on CUDA; genebert-tiny, on a CPU."
        },
    )
    shards: str = field(
        default="data/shards",
        metadata={
            "help": "Folder of shards, as data_prep writes it, or a URL of one (https://, s3://, gs://, file://, ...)."
        },
    )
    shard_cache: str = field(
        default=DEFAULT_FOLDER,
        metadata={
            "help": "Where shards of a URL are staged, once for all ranks of a node; best a folder on its own disk."
        },
    )
    shard_cache_gb: float | None = field(
        default=None,
        metadata={
            "help": "GB (1e9 bytes) that --shard_cache may hold; default: no limit. Below the size of all shards they "
            "are staged while the run reads, again and again."
        },
    )
    out: str = field(default="runs/pretrain", metadata={"help": "Run folder: checkpoints, metrics, figures."})
    resume: bool = field(
        default=True,
        metadata={"help": "Go on from the newest checkpoint in --out; --no_resume refuses a folder that holds one."},
    )
    steps: int | None = field(default=None, metadata={"help": "Steps of the run; default: the scheduler's."})
    seed: int = field(default=0, metadata={"help": "Decides the weights, the data order and every mask."})
    mask_rate: float = field(default=0.15, metadata={"help": "Share of k-mers masked."})
    late_mask_rate: float = field(default=0.20, metadata={"help": "The same, in the last part of the run."})
    late_mask_from: float = field(
        default=5 / 6, metadata={"help": "Where the last part begins, as a share of the steps (paper: 100k of 120k)."}
    )
    mask_span: str = field(
        default="dnabert", metadata={"help": "dnabert: a drawn k-mer masks DNABERT's neighbours; bases=M: M bases."}
    )
    mgm_weight: float = field(default=1.0, metadata={"help": "Weight of masked genome modelling."})
    ngsp_weight: float = field(default=1.0, metadata={"help": "Weight of next genome-segment prediction."})
    srm_weight: float = field(default=0.5, metadata={"help": "Weight of sequence-region matching."})
    srm_loss: Literal["clip", "paper"] = field(
        default="clip", metadata={"help": "clip: symmetric InfoNCE; paper: one softmax over all pairs (Eq. 3)."}
    )
    srm_negatives: Literal["global", "micro"] = field(
        default="global",
        metadata={
            "help": "What a pair is told from: global: all of the batch, in two passes where it does not fit at once; "
            "micro: those of its round of micro-batches on all ranks, in one pass."
        },
    )
    init_sequence: str | None = field(
        default=None,
        metadata={"help": "Folder of a BERT over k-mers, such as DNABERT's, to start from; its vocabulary decides k."},
    )
    init_region: str | None = field(
        default=None,
        metadata={"help": "Weights of the timm model to start from: a safetensors file, or imagenet (from the hub)."},
    )
    micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Most samples that a rank takes at once; default: train_micro_batch_size_per_gpu of --ds_config, "
            "else the most that fit, found by a short probe."
        },
    )
    compile: Literal["auto", "on", "off"] = field(
        default="auto", metadata={"help": "torch.compile of both encoders; auto: on CUDA."}
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Compute each layer again on the way back: less memory, more time."}
    )
    timeout: float = field(
        default=60.0, metadata={"help": "Seconds without a sign of life after which a rank is given up, and the run."}
    )
    workers: int = field(default=2, metadata={"help": "Processes that read data, for each rank."})
    log_every: int = field(default=10, metadata={"help": "Steps between two lines of metrics."})
    eval_every: int = field(default=1000, metadata={"help": "Steps between two evaluations on held-out chromosomes."})
    save_every: int = field(default=1000, metadata={"help": "Steps between two checkpoints."})
    keep_last: int = field(default=3, metadata={"help": "Checkpoints kept, besides the best on held-out data."})
    wandb: Literal["auto", "offline", "online", "off"] = field(
        default="auto", metadata={"help": "auto: online where the user is logged in, else offline."}
    )
    wandb_project: str = field(default="genebert", metadata={"help": "W&B project."})
    wandb_artifact: bool = field(default=False, metadata={"help": "Upload the last and the best checkpoint to W&B."})
    local_rank: int = field(default=0, metadata={"help": "Given by the launcher."})


def default_preset() -> str:
    from pretrain import ranks  # and with it DeepSpeed, which who reads a configuration does without

    return "genebert-base" if ranks.on_cuda() else "genebert-tiny"


class Parser(HfArgumentParser):
    """Raises `InputError` where argparse would print its usage and exit, on every rank."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists all arguments")


def parse(arguments: list[str] | None, description: str) -> tuple[ModelConfig, RunConfig]:
    """Command line over preset over default. Raises `InputError` for a preset or value that cannot be used."""
    first = Parser(add_help=False)
    first.add_argument("--config", default=default_preset())
    preset = read_preset(first.parse_known_args(arguments)[0].config)
    parser = Parser(
        (ModelConfig, RunConfig),
        prog="pretrain/main.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(**preset)
    model, run, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise InputError(f"{unknown[0]}: no such argument; --help lists them")
    check(model, run)
    return model, run


def read_preset(name: str) -> dict:
    """Defaults from a preset by name or a YAML file by path."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise InputError(f"--config {name}: neither a preset ({known}) nor a YAML file")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a mapping of names to values")
    if isinstance(content.get("region_encoder_arguments"), dict):
        content["region_encoder_arguments"] = json.dumps(content["region_encoder_arguments"])
    if content.get("wandb") is False:
        content["wandb"] = "off"  # as YAML 1.1 reads the bare word
    types = {entry.name: entry.type for config in (ModelConfig, RunConfig) for entry in fields(config)}
    for name, value in content.items():
        if name not in types or name in ("config", "local_rank"):
            raise InputError(f"{path}: unknown key {name!r}")
        if not _fits(value, types[name]):
            raise InputError(f"{path}: {name}: {value!r} is no value for it")
    return content


def _fits(value: object, type_: object) -> bool:
    """True where a value read from YAML is one of a field's type."""
    if get_origin(type_) is Literal:
        return value in get_args(type_)
    if type_ in (float, float | None):
        type_ = int | type_
    return isinstance(value, type_) and (type_ is bool or not isinstance(value, bool))


def check(model: ModelConfig, run: RunConfig) -> None:
    """Raise `InputError` for values that no run can have."""
    try:
        arguments = json.loads(model.region_encoder_arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError(f"--region_encoder_arguments: not a JSON object: {model.region_encoder_arguments}")
    if not 3 <= model.k <= 6:
        raise InputError(f"--k {model.k}: give 3 to 6")
    least = {"max_tokens": 16, "hidden_size": 1, "layers": 1, "heads": 1, "intermediate_size": 1, "projection_size": 1}
    least |= {"workers": 0, "log_every": 1, "eval_every": 1, "save_every": 1, "keep_last": 1, "steps": 1}
    least |= {"timeout": 5}
    for name, smallest in least.items():
        value = getattr(model, name, None) if hasattr(model, name) else getattr(run, name)
        if value is not None and value < smallest:
            raise InputError(f"--{name} {value}: give at least {smallest}")
    if (model.region_encoder == "none") != (model.sequence_encoder == "roberta"):
        raise InputError(
            f"--sequence_encoder {model.sequence_encoder} with --region_encoder {model.region_encoder}: roberta, and "
            "it alone, trains without a region encoder; give both, as --config cornbert does, or neither"
        )
    if model.sequence_encoder == "roberta" and (run.ngsp_weight or run.srm_weight):
        raise InputError(
            f"--ngsp_weight {run.ngsp_weight:g} --srm_weight {run.srm_weight:g}: --sequence_encoder roberta has masked "
            "tokens as its one objective; give 0 for both"
        )
    if not 0 <= model.dropout < 1:
        raise InputError(f"--dropout {model.dropout}: give 0 or more, below 1")
    if model.hidden_size % model.heads:
        raise InputError(f"--hidden_size {model.hidden_size} is no multiple of --heads {model.heads}")
    if not 0 <= run.seed < 2**32:
        raise InputError(f"--seed {run.seed}: give a whole number from 0 to 4294967295")
    if not (0 < run.mask_rate < 1 and 0 < run.late_mask_rate < 1):
        raise InputError("--mask_rate and --late_mask_rate must lie between 0 and 1")
    if run.shard_cache_gb is not None and not 0 < run.shard_cache_gb < math.inf:
        raise InputError(f"--shard_cache_gb {run.shard_cache_gb}: give more than 0, or leave it out for no limit")
    try:
        span_tokens(run.mask_span, model.k)
    except ValueError as error:
        raise InputError(f"--mask_span: {error}") from None
