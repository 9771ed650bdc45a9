"""The weights that a run starts from where they are not random: a BERT over k-mers, and a timm model of images.

`--init_sequence` names a folder as transformers writes it: config.json, vocab.txt or tokenizer.json, and the weights as
safetensors or pytorch_model.bin, in one file or several. DNABERT's folders are such, and `sequence/` of
pretrain/convert.py. `--init_region` names a file of timm's weights. Nothing but tensors is unpickled.
"""

import copy
import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import timm
import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from data_prep.bpe import read_tokenizer
from data_prep.errors import InputError, one_line
from data_prep.kmers import length_of_kmers, read_vocabulary
from pretrain import checkpoint, ranks
from pretrain.config import ModelConfig, RunConfig, check
from pretrain.model import GeneBERT, region_encoder_arguments, sequence_config
from pretrain.positions import resized_positions
from pretrain.weights import UNREADABLE, summary

# Names in config.json of what a flag decides, and of what nothing does.
DECIDED_BY_FLAG = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
DECIDED_BY_NOTHING = ("hidden_act", "layer_norm_eps", "type_vocab_size")


def decide_k(model: ModelConfig, run: RunConfig, resumed: Path | None) -> ModelConfig:
    """The configuration with the k of what the run starts from: of `--init_sequence`, or of the checkpoint `resumed`.

    A collective. Raises `InputError` on all ranks where one cannot read the folder, or the folder does not fit.
    """
    if not run.init_sequence or model.sequence_encoder == "roberta":
        return model
    if resumed:
        return replace(model, k=checkpoint.read_state(resumed)["model"]["k"])
    failed, decided = None, model
    try:
        decided = with_vocabulary(model, run.init_sequence)
        check(decided, run)
    except InputError as error:
        failed = error
    ranks.raise_together(failed)
    ranks.check_agreement(decided.k, f"k of --init_sequence {run.init_sequence}")
    instead = f", so k is {decided.k}, not {model.k}" if decided.k != model.k else ""
    ranks.say(f"--init_sequence {run.init_sequence}: its vocabulary is of {decided.k}-mers{instead}")
    return decided


def load(model: nn.Module, run: RunConfig, tokenizer: Tokenizer | None = None) -> None:
    """Load what the run is to start from, and say so. A collective; raises `InputError` on all ranks if one cannot.

    tokenizer: that of the shards, where it is not one of k-mers; the folder's must be the same.
    """
    failed = None
    try:
        if run.init_sequence:
            if tokenizer:
                check_sizes(run.init_sequence, model.sequence.config)
                check_tokenizer(run.init_sequence, tokenizer)
            ranks.say(load_sequence(model, run.init_sequence))
        if run.init_region:
            ranks.say(load_region(model, run.init_region))
    except InputError as error:
        failed = error
    ranks.raise_together(failed)


def with_vocabulary(model: ModelConfig, folder: str) -> ModelConfig:
    """The configuration with k as the folder's vocabulary has it.

    Raises `InputError` where the folder's encoder has another shape than `model`, and where its tokens are not
    `kmer_vocabulary(k)` in order.
    """
    found = check_sizes(folder, sequence_config(model))
    where = f"--init_sequence {folder}"
    vocabulary = read_vocabulary(folder, where)
    if found["vocab_size"] != len(vocabulary):
        raise InputError(
            f"--init_sequence {folder}: vocab_size of config.json is {found['vocab_size']}, "
            f"but the vocabulary holds {len(vocabulary)} tokens"
        )
    return replace(model, k=length_of_kmers(vocabulary, where))


def check_sizes(folder: str, encoder: transformers.PreTrainedConfig) -> dict:
    """config.json of the folder. Raises `InputError` where its encoder is not of `encoder`'s sizes, positions aside."""
    found, expected = stored_config(folder, encoder), encoder.to_dict()
    for flag, name in DECIDED_BY_FLAG.items():
        if found[name] != expected[name]:
            raise InputError(
                f"--init_sequence {folder}: {name} is {found[name]} there, --{flag} {expected[name]} here; "
                f"give --{flag} {found[name]}, or another folder"
            )
    for name in DECIDED_BY_NOTHING:
        if found[name] != expected[name]:
            raise InputError(
                f"--init_sequence {folder}: {name} is {found[name]} there, and must be {expected[name]}; "
                "give another folder"
            )
    return found


def stored_config(folder: str, encoder: transformers.PreTrainedConfig) -> dict:
    """config.json of the folder, with the defaults of `encoder`'s kind for what it leaves out."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"--init_sequence {folder}: config.json cannot be read ({one_line(error)}); "
            "give the folder of a BERT as transformers writes it"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a configuration of a model, but {type(content).__name__}")
    content = type(encoder)().to_dict() | content
    positions = content["max_position_embeddings"]
    if not isinstance(positions, int) or positions < 1:
        raise InputError(f"{path}: max_position_embeddings is {positions!r}, and no count of positions")
    return content


def check_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
    """Raise `InputError` where the folder's tokenizer makes other ids of a promoter than `tokenizer`."""
    path = Path(folder) / "tokenizer.json"
    found, expected = (json.loads(one.to_str()) for one in (read_tokenizer(path), tokenizer))
    parts = ("normalizer", "pre_tokenizer", "model")
    if any(found[part] != expected[part] for part in parts):
        raise InputError(
            f"--init_sequence {folder}: its tokenizer is not that of --shards; make the shards with: "
            f"python data_prep/main.py promoters --tokenizer {path}"
        )


def load_sequence(model: nn.Module, folder: str) -> str:
    """Load the folder's weights into `model.sequence`: the encoder and, where the file holds them, its heads.

    A position table of another length is cut or lengthened (`resized_positions`): in both cases neighbours keep the
    positions that the encoder has learnt to tell apart, which stretching would not.
    Returns a line that says what was loaded and what stayed random.
    Raises `InputError` where the weights cannot be read, or do not fill the encoder.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sequence = model.sequence
    config = copy.deepcopy(sequence.config)
    config.max_position_embeddings = stored_config(folder, config)["max_position_embeddings"]
    try:
        loaded, info = type(sequence).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        raise InputError(f"--init_sequence {folder}: the weights cannot be read: {summary(error)}") from error

    check_filled(sequence.base_model_prefix, info, folder)
    weights = {name: weight for name, weight in loaded.state_dict().items() if name not in info["missing_keys"]}
    positions = sequence.base_model.embeddings.position_embeddings
    name = f"{sequence.base_model_prefix}.embeddings.position_embeddings.weight"
    n_before, n_now = len(weights[name]), positions.num_embeddings
    # RoBERTa's first rows are of padding.
    n_fixed = 0 if positions.padding_idx is None else positions.padding_idx + 1
    weights[name] = resized_positions(weights[name], n_now, n_fixed)
    sequence.load_state_dict(weights, strict=False)

    said = f"--init_sequence {folder}: {len(weights)} weights"
    if n_now != n_before:
        said += f", position table {'lengthened' if n_now > n_before else 'cut'} from {n_before} to {n_now} rows"
    random = sorted({".".join(name.split(".")[:2]) for name in info["missing_keys"]})
    return said + (f"; not there, so random: {', '.join(random)}" if random else ", none is missing")


def check_filled(encoder: str, info: dict, folder: str) -> None:
    """Raise `InputError` unless the loaded weights are the whole encoder's, and of its shapes. The pooler may lack."""
    for name, there, here in sorted(info["mismatched_keys"]):
        raise InputError(f"--init_sequence {folder}: {name} is {list(there)} there, {list(here)} here")
    missing = sorted(
        name for name in info["missing_keys"] if name.startswith(f"{encoder}.") and f"{encoder}.pooler." not in name
    )
    if missing:
        raise InputError(
            f"--init_sequence {folder}: the weights do not fill the encoder: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more" if missing[1:] else "")
        )
    beyond = sorted(name for name in info["unexpected_keys"] if "encoder.layer." in name)
    if beyond:
        raise InputError(f"--init_sequence {folder}: {beyond[0]} has no place in the layers of its config.json")


def load_region(model: GeneBERT, source: str) -> str:
    """Load timm's weights into the region encoder: a file of them, or "imagenet" for those that timm names on the hub.

    timm fits them: three input channels are summed to one, patches and tables of relative positions are resized to the
    model's. The classifier is left out. Returns a line that says what was loaded.
    Raises `InputError` where they cannot be read, and where they are not all the weights of `--region_encoder`.
    """
    # It warns of what is refused here, and of ImageNet's colour statistics, which are not used.
    logging.getLogger("timm").setLevel(logging.ERROR)
    config = model.config
    if config.region_encoder == "none":
        raise InputError(f"--init_region {source}: there is no region encoder to load it into; leave it out")
    stated = model.region.pretrained_cfg
    weights = imagenet_weights(config.region_encoder, stated) if source == "imagenet" else read_weights(source)
    classifiers = stated.get("classifier") or ()
    # "head" is the classifier of Swin's first files.
    for name in ("head", *((classifiers,) if isinstance(classifiers, str) else classifiers)):
        weights.pop(f"{name}.weight", None)
        weights.pop(f"{name}.bias", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of how timm indexes where it resizes
            loaded = timm.create_model(
                config.region_encoder,
                pretrained=True,
                # Without a classifier to leave out, timm accepts no weight that is missing or left over.
                pretrained_cfg_overlay={"state_dict": weights, "source": None, "classifier": None},
                **region_encoder_arguments(config),
            )
    except (AssertionError, AttributeError, IndexError, KeyError, *UNREADABLE) as error:
        raise InputError(
            f"--init_region {source}: not the weights of {config.region_encoder} "
            f"with {config.region_encoder_arguments}: {summary(error)}"
        ) from error
    model.region.load_state_dict(loaded.state_dict())
    height, width = model.image_size
    return f"--init_region {source}: {config.region_encoder} for 1 x {height} x {width}, without its classifier"


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The weights in a file, by timm's names."""
    if not Path(path).is_file():
        raise InputError(f"--init_region {path}: no such file; give a file of timm's weights, or imagenet")
    try:
        weights = timm.models.load_state_dict(path)
    except (*UNREADABLE, AttributeError, KeyError) as error:
        raise InputError(f"--init_region {path}: the weights cannot be read: {summary(error)}") from error
    if not weights or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise InputError(f"--init_region {path}: not a file of named weights")
    return weights


def imagenet_weights(name: str, stated: dict) -> dict[str, torch.Tensor]:
    """The weights on the hub that timm's registry names for a model, from the hub's cache where they are in it."""
    if "hf_hub_id" not in stated:
        raise InputError(f"--init_region imagenet: timm names no weights of {name} on the hub; give a file of them")
    filename = {"filename": stated["hf_hub_filename"]} if "hf_hub_filename" in stated else {}
    try:
        return timm.models.load_state_dict_from_hf(stated["hf_hub_id"], **filename)
    except UNREADABLE as error:
        raise InputError(
            f"--init_region imagenet: {stated['hf_hub_id']} cannot be had from the hub: {summary(error)}; "
            "give a file of its weights"
        ) from error
