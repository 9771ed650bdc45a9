"""Embed held-out samples of several cell types, by the sequence alone and by both modalities (Figure 2 of the paper).

    python finetune/embed.py --checkpoint runs/genebert --data data/shards
    python finetune/embed.py --checkpoint runs/genebert --unimodal runs/genebert-mgm

A sample is ten consecutive accessible regions of one cell type, of held-out chromosomes.
  uni-modal     the sequence encoder alone: the mean of the k-mers' last hidden states
  multi-modal   both sides of what pre-training matches: the projections of that mean and of the region encoder's output
Each part has length 1. The silhouette score (Rousseeuw 1987) tells how well cell types are apart, by cosine distance
between the embeddings themselves, not between the points of the t-SNE. Writes:
  embeddings.npz     both embeddings, cell types, and the samples' numbers in the split
  embeddings.tsv     cell type and t-SNE of each sample
  silhouettes.json   the scores, of all samples and by cell type
  tsne.png
"""

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import silhouette_samples
from torch import nn
from tqdm import tqdm
from transformers import HfArgumentParser

from data_prep.errors import InputError, ends_on_input_error
from data_prep.kmers import CLS, SEP, SPECIAL_TOKENS, kmer_row
from data_prep.output_folder import fingerprint, is_up_to_date, output_folder, write_json
from data_prep.shard_format import REGIONS
from data_prep.shard_reader import ShardReader, check_content, read_manifest
from finetune.encoder import Encoder
from pretrain.batches import FIRST_HALF, Batch, MicroBatches
from pretrain.data_order import MicroBatch
from pretrain.embedding_figures import MOST_COLOURS, colours, shortened, tsne
from pretrain.model import image_size, region_image
from pretrain.weights import UNREADABLE, summary

SILHOUETTES = "silhouettes.json"
PROJECTIONS = "projections.safetensors"
FEWEST = 4  # samples that a map is drawn of
MODALITIES = {"unimodal": "uni-modal: sequence", "multimodal": "multi-modal: sequence and binding matrix"}


@dataclass(frozen=True)
class EmbedConfig:
    checkpoint: str = field(default="runs/genebert", metadata={"help": "Folder that pretrain/convert.py wrote."})
    data: str = field(
        default="data/shards", metadata={"help": "Folder or URL of shards; their held-out samples are read."}
    )
    unimodal: str | None = field(
        default=None,
        metadata={
            "help": "Another converted checkpoint, of a pre-training by mgm alone, for the uni-modal embeddings."
        },
    )
    cell_types: int = field(default=10, metadata={"help": "Cell types, those with the most held-out samples."})
    samples: int = field(default=100, metadata={"help": "Samples of each, at most, drawn at random."})
    out: str = field(default="runs/embed", metadata={"help": "Folder to write."})
    batch_size: int = field(default=16, metadata={"help": "Samples in a batch."})
    seed: int = field(default=0, metadata={"help": "Draws the samples, and the windows of regions that do not fit."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


class WholeSamples(MicroBatches):
    """Micro-batches of samples as they are: B is always the sample's own."""

    def partner(self, sample: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        return sample


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        EmbedConfig, prog="finetune/embed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    (config,) = parser.parse_args_into_dataclasses(arguments)
    run(config)


def run(config: EmbedConfig) -> None:
    """Write the embeddings, or say that they are there. Raises `InputError` for bad input."""
    check(config)
    encoder, out = Encoder.at(Path(config.checkpoint)), Path(config.out)
    if "motifs" not in encoder.description or not (encoder.folder / "region").is_dir():
        raise InputError(f"{encoder.folder}: has no region encoder; give the checkpoint of a multi-modal pre-training")
    alone = Encoder.at(Path(config.unimodal)) if config.unimodal else encoder
    if alone.k is None:
        raise InputError(
            f"{alone.folder}: its tokens are no k-mers; give a checkpoint of pretrain/main.py by mgm alone"
        )
    manifest = read_manifest(config.data)
    check_content(config.data, manifest, REGIONS, "this program")
    for what in ("motifs", "affinity"):
        if manifest[what] != encoder.description[what]:
            raise InputError(
                f"{config.data}: not the {what} of {config.checkpoint}; give the shards that it was trained on"
            )
    made_from = fingerprint(
        data=manifest["fingerprint"],
        checkpoints=[encoder.fingerprint, alone.fingerprint],
        config=asdict(config) | dict.fromkeys(("data", "checkpoint", "unimodal", "out", "batch_size", "overwrite")),
    )
    inputs = [config.data, config.checkpoint, *([config.unimodal] if config.unimodal else [])]
    if is_up_to_date(out, made_from, config.overwrite, inputs, SILHOUETTES):
        print(f"{out}: up to date")
        return
    reader = ShardReader(config.data, "val", manifest)
    names = np.array([cell_type["name"] for cell_type in manifest["cell_types"]])
    samples = chosen(reader.cell_type, config.cell_types, config.samples, config.seed)
    cell_type = names[reader.cell_type[samples]]
    n_types = len(np.unique(cell_type))
    if n_types < 2 or len(samples) < max(FEWEST, n_types + 1):
        raise InputError(f"{config.data}: {len(samples)} held-out samples of {n_types} cell types; too few to compare")
    print(f"{len(samples):,} held-out samples of {n_types} cell types, of {len(reader):,}")
    multimodal, of_sequence = embedded(encoder, reader, samples, config, projections_of(encoder))
    embeddings = {
        "unimodal": of_sequence if alone is encoder else embedded(alone, reader, samples, config)[1],
        "multimodal": multimodal,
    }
    maps = {modality: tsne(vectors) for modality, vectors in embeddings.items()}
    for modality, points in maps.items():
        if points is None:
            folder = alone.folder if modality == "unimodal" else encoder.folder
            raise InputError(f"{folder}: its embeddings are all the same, or not finite; give another checkpoint")
    scores = {modality: silhouettes(vectors, cell_type) for modality, vectors in embeddings.items()}
    simulated = "simulated" in manifest["genome"]["name"].lower()
    with output_folder(out) as folder:
        np.savez(folder / "embeddings.npz", **embeddings, cell_type=cell_type, sample=samples)
        columns = {f"{modality}_{axis + 1}": maps[modality][:, axis] for modality in maps for axis in range(2)}
        table = pd.DataFrame({"sample": samples, "cell_type": cell_type, **columns})
        table.to_csv(folder / "embeddings.tsv", sep="\t", index=False, float_format="%.5g")
        draw(folder / "tsne.png", maps, cell_type, scores, simulated)
        about = {"measure": "silhouette, cosine distance between embeddings", "simulated": simulated}
        write_json(folder / SILHOUETTES, {"fingerprint": made_from, **about, **scores, "config": asdict(config)})
    for modality, of_modality in scores.items():
        print(f"{MODALITIES[modality]}: silhouette {of_modality['all']:.3f}")
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def check(config: EmbedConfig) -> None:
    """Raise `InputError` for values that cannot be."""
    for name, least in (("cell_types", 2), ("samples", 2), ("batch_size", 1)):
        if getattr(config, name) < least:
            raise InputError(f"--{name} {getattr(config, name)}: give at least {least}")
    if config.cell_types > MOST_COLOURS:
        raise InputError(f"--cell_types {config.cell_types}: give {MOST_COLOURS} at most; there are no more colours")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed}: give a whole number from 0 to 4294967295")


def chosen(cell_type: np.ndarray, n_cell_types: int, n_samples: int, seed: int) -> np.ndarray:
    """Numbers of the samples to embed, sorted, int64: of each of the most frequent cell types at most `n_samples`.
    cell_type: int32 [samples]."""
    found, counts = np.unique(cell_type, return_counts=True)
    frequent = np.sort(found[np.argsort(-counts, kind="stable")[:n_cell_types]])
    rng = np.random.default_rng(seed)
    of_each = [rng.permutation(np.flatnonzero(cell_type == one))[:n_samples] for one in frequent]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *of_each]))


def projections_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Weights of both projections, float32 [projection size, width]. Raises `InputError` where they cannot be read."""
    path = encoder.folder / PROJECTIONS
    if not path.is_file():
        raise InputError(
            f"{path}: is missing; convert the checkpoint again with: python pretrain/convert.py RUN_DIR OUT_DIR"
        )
    try:
        weights = load_file(path)
        return {name: weights[f"{name}_projection.weight"] for name in ("sequence", "region")}
    except (*UNREADABLE, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {summary(error)}; convert the checkpoint again") from error


@torch.no_grad()
def embedded(
    encoder: Encoder,
    reader: ShardReader,
    samples: np.ndarray,
    config: EmbedConfig,
    projections: dict[str, torch.Tensor] | None = None,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Multi-modal embeddings, float32 [n, 2 * projection size], None without projections, and uni-modal ones, float32
    [n, hidden size]."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sequence = encoder.sequence_encoder(True).to(device).eval()
    region = encoder.region_encoder(True).to(device).eval() if projections else None
    transform = encoder.description.get("transform")
    dataset = WholeSamples(reader, k=encoder.k, max_tokens=encoder.longest, seed=config.seed)
    both, alone = [], []
    for first in tqdm(range(0, len(samples), config.batch_size), desc=str(encoder.folder), disable=None):
        part = samples[first : first + config.batch_size]
        batch = dataset[MicroBatch(part, np.zeros_like(part), np.ones(len(part), np.float32))]
        mean = mean_of_kmers(sequence, {name: tensor.to(device) for name, tensor in tokens(batch, encoder.k).items()})
        alone.append(F.normalize(mean, dim=1).cpu())
        if region is not None:
            of_region = summary_of_regions(region, batch["binding"].to(device), transform)
            parts = {"sequence": mean, "region": of_region}
            both.append(
                [F.normalize(F.linear(x, projections[name].to(device)), dim=1).cpu() for name, x in parts.items()]
            )
    multimodal = torch.cat([torch.cat(parts, dim=1) for parts in both]).numpy() if both else None
    return multimodal, torch.cat(alone).numpy()


def tokens(batch: Batch, k: int) -> dict[str, torch.Tensor]:
    """`[CLS] A [SEP] B [SEP]` of each sample, without a mask: what the sequence encoder takes, int64 [n, tokens]."""
    rows, segments = [], []
    for bases, kmers in zip(batch["bases"].numpy(), batch["window_kmers"].numpy(), strict=True):
        ends = np.cumsum(np.where(kmers > 0, kmers + k - 1, 0))
        windows = [kmer_row(window, k)[1:-1] for window in np.split(bases[: ends[-1]], ends[:-1])]
        a, b = (np.concatenate(half) for half in (windows[:FIRST_HALF], windows[FIRST_HALF:]))
        rows.append(torch.from_numpy(np.concatenate([[CLS], a, [SEP], b, [SEP]])))
        segments.append(torch.arange(len(rows[-1])) >= len(a) + 2)
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "token_type_ids": pad(segments, batch_first=True).long(),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }


def mean_of_kmers(sequence: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean last hidden state of the k-mers, as pre-training takes it, float32 [n, hidden size]."""
    hidden = sequence(**given).last_hidden_state
    kmers = (given["input_ids"] >= len(SPECIAL_TOKENS))[..., None]
    return (hidden * kmers).sum(1) / kmers.sum(1).clamp(min=1)


def summary_of_regions(region: nn.Module, binding: torch.Tensor, transform: dict) -> torch.Tensor:
    """The region encoder's output, float32 [n, width]. binding: [n, 10, n_motifs]; transform: of genebert.json."""
    mean, std = (torch.tensor(transform[name], device=binding.device) for name in ("mean", "std"))
    return region(region_image(binding, mean, std, image_size(region)))


def silhouettes(vectors: np.ndarray, cell_type: np.ndarray) -> dict:
    """Mean silhouette of all samples and of each cell type's, by cosine distance. vectors: [n, d]; cell_type: [n]."""
    each = silhouette_samples(vectors, cell_type, metric="cosine")
    by_type = {name: float(each[cell_type == name].mean()) for name in np.unique(cell_type).tolist()}
    return {"all": float(each.mean()), "by_cell_type": by_type}


def draw(
    path: Path, maps: dict[str, np.ndarray], cell_type: np.ndarray, scores: dict[str, dict], simulated: bool
) -> None:
    """The maps side by side, coloured by cell type, each with its silhouette. maps: [n, 2] by modality."""
    names = np.unique(cell_type)
    figure, axes = plt.subplots(1, len(maps), figsize=(11.5, 4.8), layout="constrained")
    for axis, (modality, points) in zip(axes, maps.items(), strict=True):
        for name, colour in zip(names, colours(len(names)), strict=True):
            label = shortened(name) if axis is axes[0] else None
            axis.scatter(*points[cell_type == name].T, s=12, lw=0, color=colour, label=label)
        axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        score = f"silhouette {scores[modality]['all']:.3f} (of the embeddings, not of this map)"
        axis.set_title(f"{MODALITIES[modality]}\n{score}", fontsize=10)
    figure.suptitle(f"{len(cell_type):,} held-out samples{' (simulated data)' if simulated else ''}")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, markerscale=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
