"""Convert a pre-training checkpoint, of any number of ranks, to files that need nothing of this project.

    python pretrain/convert.py runs/pretrain runs/genebert

OUT_DIR/sequence/   transformers: AutoModel.from_pretrained and AutoTokenizer.from_pretrained read it
OUT_DIR/region/     timm: timm.create_model("local-dir:OUT_DIR/region", pretrained=True) reads it
OUT_DIR/projections.safetensors   both projections and the temperature, fp32
OUT_DIR/genebert.json   k, motifs in order, the matrix's transform, projection size, the run's config, step, versions
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
from pathlib import Path

import timm
import torch
import transformers
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file

from data_prep.errors import InputError, ends_on_input_error
from data_prep.kmers import kmer_tokenizer, kmer_vocabulary
from data_prep.output_folder import fingerprint, is_up_to_date, output_folder, write_json
from pretrain import checkpoint
from pretrain.config import ModelConfig
from pretrain.model import SMALLEST_STD, GeneBERT

DESCRIPTION = "genebert.json"


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="pretrain/convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run folder of pretrain/main.py")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to write")
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best (on held-out chromosomes), or a name such as step-000200"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT_DIR holds")
    given = parser.parse_args(arguments)
    convert(given.run_dir, given.out_dir, given.checkpoint, given.overwrite)


def convert(run_dir: Path, out_dir: Path, which: str, overwrite: bool) -> None:
    """Write OUT_DIR, or say that it is there. Raises `InputError` where the run holds no such checkpoint."""
    source = find_checkpoint(run_dir, which)
    state = checkpoint.read_state(source)
    record = state["config"]
    made_from = fingerprint(checkpoint=source.name, state=state)
    if is_up_to_date(out_dir, made_from, overwrite, [run_dir], DESCRIPTION):
        print(f"{out_dir}: up to date with {source}")
        return
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of ImageNet's colour statistics, which are not used
    config = ModelConfig(**state["model"])
    model = load_model(source, config, len(record["motifs"]))

    with output_folder(out_dir) as folder:
        model.sequence.save_pretrained(folder / "sequence")
        write_tokenizer(folder / "sequence", config)
        timm.models.save_for_hf(model.region, folder / "region", safe_serialization=True)
        projections = {
            name: tensor.contiguous()
            for name, tensor in model.state_dict().items()
            if name.endswith("_projection.weight") or name == "logit_scale"
        }
        save_file(projections, folder / "projections.safetensors")
        write_json(
            folder / DESCRIPTION,
            {
                "fingerprint": made_from,
                "k": config.k,
                "motifs": record["motifs"],
                "motif_names": record["motif_names"],
                "affinity": record["affinity"],
                "transform": {
                    "mean": model.binding_mean.tolist(),
                    "std": model.binding_std.clamp(min=SMALLEST_STD).tolist(),
                    "resize": {"size": list(model.image_size), "mode": "bilinear", "antialias": True},
                },
                "projection_size": config.projection_size,
                "ngsp_labels": ["B is of another sample", "B follows A"],
                "step": state["step"],
                "config": record,
                "versions": {
                    name: importlib.metadata.version(name)
                    for name in ("genebert", "torch", "deepspeed", "transformers", "timm")
                },
            },
        )
    print(f"{out_dir}: step {state['step']} of {run_dir}, {config.k}-mers, {config.region_encoder}")


def find_checkpoint(run_dir: Path, which: str) -> Path:
    """The folder of the checkpoint asked for. Raises `InputError` where the run has none."""
    newest = checkpoint.newest(run_dir)
    if newest is None:
        raise InputError(f"{run_dir}: holds no checkpoint; make one with pretrain/main.py --out {run_dir}")
    if which == "latest":
        return newest
    if which == "best":
        best = checkpoint.read_state(newest).get("best")
        if not best:
            raise InputError(f"{run_dir}: was never evaluated on held-out chromosomes, so no checkpoint is the best")
        which = checkpoint.name_of(best["step"])
    found = checkpoint.folder(run_dir) / which
    if not (found / checkpoint.STATE).is_file():
        there = ", ".join(sorted(path.parent.name for path in found.parent.glob(f"*/{checkpoint.STATE}")))
        raise InputError(f"{found}: no such checkpoint; there are {there}")
    return found


def load_model(source: Path, config: ModelConfig, n_motifs: int) -> GeneBERT:
    """The model of a ZeRO checkpoint, fp32, on the CPU."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            weights = get_fp32_state_dict_from_zero_checkpoint(str(source.parent), tag=source.name)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: not a whole checkpoint: {error}; give another with --checkpoint") from error
    model = GeneBERT(config, torch.zeros(n_motifs), torch.ones(n_motifs))
    model.load_state_dict(weights)
    return model.eval()


def write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """tokenizer.json and its configuration for AutoTokenizer, and DNABERT's vocab.txt."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=kmer_tokenizer(config.k),
        model_max_length=config.max_tokens,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    # The class by the name that every version of transformers knows.
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in kmer_vocabulary(config.k)))


if __name__ == "__main__":
    main()
