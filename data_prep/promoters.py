"""`promoters`: FASTA files of promoters, one a species, to shards for CornBERT's pre-training, and their tokenizer.

A sample is one promoter. It is held out for validation by a hash of its bases, so that equal promoters, of whichever
species, lie on one side. The byte-level BPE is trained on training promoters, or is the one given: a second stage must
have the first one's.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from Bio.SeqIO.FastaIO import SimpleFastaParser
from tokenizers import Tokenizer
from tqdm import tqdm

from data_prep.bases import OTHER, decode, encode
from data_prep.bpe import SMALLEST_VOCABULARY, TOKENIZER, read_tokenizer, train_tokenizer
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, one_line
from data_prep.output_folder import MANIFEST, SCRATCH, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.samples import MAX_N_SHARE, Samples
from data_prep.shard_format import FORMAT, FORMAT_VERSION, MEMBERS, PROMOTERS, SPLITS, npy_bytes
from data_prep.shard_summary import SUMMARY
from data_prep.shard_writer import shard_tasks, shuffled, write_shards
from data_prep.text_table import aligned
from data_prep.workers import available

MADE_BY = 1  # to be raised where the same input gives other bytes than before
SHORTEST = 50  # bp of a promoter
FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".fas")
MEASURED = 2000  # promoters whose tokens are counted for the report
_NO_BINDING = npy_bytes(np.zeros((1, 0), np.float16))


@dataclass(frozen=True)
class PromotersConfig:
    promoters: list[str] = field(
        metadata={"help": "FASTA files of promoters, gzipped or not, one a species; the file's stem is its name."}
    )
    out: str = field(default="data/promoters", metadata={"help": "Folder to write."})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "tokenizer.json to use, of the first stage's shards; default: one is trained."},
    )
    vocabulary: int = field(
        default=5000, metadata={"help": "Tokens of the tokenizer that is trained; 4 special ones come on top."}
    )
    tokenizer_sample: int = field(
        default=20_000, metadata={"help": "Training promoters that it is trained on; some 70 kB of memory each."}
    )
    bp: int = field(
        default=1000, metadata={"help": "Length of a promoter; of a longer one the last bases stay, next to the gene."}
    )
    val_share: float = field(default=0.05, metadata={"help": "Share of the promoters held out for validation."})
    samples_per_shard: int = field(default=10_000, metadata={"help": "Samples in a shard; about 5 kB each."})
    seed: int = field(default=0, metadata={"help": "Seed of the split and of the shuffle."})
    workers: int = field(
        default=available(), metadata={"help": "Processes; the output does not depend on their number."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


@dataclass(frozen=True)
class PromoterTable:
    """All promoters, in order of species and file.

    bases: uint8, their base codes one after another: promoter i is bases[offset[i]:offset[i + 1]];
    hash: uint64 [n], uniform, of the bases and the seed; species: int32 [n]; index: int32 [n], within the species;
    names: of their records; counts: of each species' records by fate.
    """

    bases: np.ndarray
    offset: np.ndarray
    hash: np.ndarray
    species: np.ndarray
    index: np.ndarray
    names: list[str]
    counts: list[Counter]

    def __len__(self) -> int:
        return len(self.names)

    def sequence(self, number: int) -> str:
        """The letters of a promoter."""
        return decode(self.bases[self.offset[number] : self.offset[number + 1]])


@dataclass(frozen=True)
class PromoterSource:
    """The members' contents of each sample."""

    samples: Samples
    table: PromoterTable
    species: list[str]

    def contents(self, number: int) -> list[bytes]:
        """Of sample `number`, in the format's order."""
        table = self.table
        bases = table.bases[table.offset[number] : table.offset[number + 1]]
        meta = {
            "species": self.species[table.species[number]],
            "name": table.names[number],
            "index": int(table.index[number]),
        }
        lengths = np.array([len(bases)], np.int32)
        return [npy_bytes(bases), npy_bytes(lengths), _NO_BINDING, json.dumps(meta).encode()]


def run(config: PromotersConfig) -> None:
    """Write the shards of `config`, or say that they are there. Raises `InputError` for bad input."""
    check(config)
    out, files = Path(config.out), promoter_files(config.promoters)
    given = read_tokenizer(config.tokenizer) if config.tokenizer else None
    made_from = fingerprint(
        format_version=FORMAT_VERSION,
        made_by=MADE_BY,
        promoters={name: sha256_of_file(path) for name, path in files.items()},
        tokenizer=sha256_of_file(config.tokenizer)
        if config.tokenizer
        else [config.vocabulary, config.tokenizer_sample],
        bp=config.bp,
        val_share=config.val_share,
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
    )
    inputs = [*files.values(), *([config.tokenizer] if config.tokenizer else [])]
    if is_up_to_date(out, made_from, config.overwrite, inputs):
        print(f"{out}: up to date")
        return
    with output_folder(out, resume=made_from) as folder:
        table = read_promoters(files, config.bp, config.seed, folder / SCRATCH / "bases.bin")
        is_val = table.hash < np.uint64(config.val_share * 2**64)
        if is_val.all():
            raise InputError(
                f"{', '.join(map(str, files.values()))}: no promoter to train on, of "
                f"{sum(one['records'] for one in table.counts)} records: {_fates(sum(table.counts, Counter()))}"
            )
        samples = Samples(np.arange(len(table))[:, None], table.species, np.zeros_like(table.species), table.index)
        orders = {
            split: numbers[shuffled(len(numbers), config.seed)]
            for split, numbers in zip(SPLITS, (np.flatnonzero(~is_val), np.flatnonzero(is_val)), strict=True)
        }
        tasks = shard_tasks(orders, config.samples_per_shard)
        shards = write_shards(folder, folder / SCRATCH, tasks, PromoterSource(samples, table, [*files]), config.workers)

        drawn = tokenizer_sample(table, ~is_val, config.tokenizer_sample)
        tokenizer = given or train_tokenizer(map(table.sequence, drawn), config.vocabulary)
        tokenizer.save(str(folder / TOKENIZER))
        summary = summarise([*files], table, is_val) | {
            "tokens_per_promoter": token_quantiles(tokenizer, table, drawn[:MEASURED]),
            "shards": len(shards),
            "bytes": sum(shard["bytes"] for shard in shards),
        }
        write_json(folder / SUMMARY, summary)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "content": PROMOTERS,
            "fingerprint": made_from,
            "samples": summary["samples"],
            "members": list(MEMBERS),
            "chromosomes": ["promoters"],  # what the index of each sample points to
            "cell_types": [{"name": one["name"], "samples": one["samples"]} for one in summary["species"]],
            "tokenizer": {
                "name": TOKENIZER,
                "sha256": sha256_of_file(folder / TOKENIZER),
                "tokens": tokenizer.get_vocab_size(),
            },
            "genome": {"name": next(iter(files)) if len(files) == 1 else f"{len(files)} species", "sha256": None},
            "motifs": [],
            "motif_names": [],
            "affinity": None,
            "bp": config.bp,
            "seed": config.seed,
            "val_share": config.val_share,
            "shards": shards,
        }
        write_json(folder / MANIFEST, manifest)
    print_summary(summary, manifest["tokenizer"]["tokens"], out)


def check(config: PromotersConfig) -> None:
    """Raise `InputError` for values that no set of shards can have."""
    if config.samples_per_shard < 1 or config.workers < 1 or config.tokenizer_sample < 1:
        raise InputError("--samples_per_shard, --tokenizer_sample and --workers must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed}: give a whole number from 0 to 4294967295")
    if not 0 <= config.val_share < 1:
        raise InputError(f"--val_share {config.val_share}: give 0 or more, below 1")
    if config.vocabulary < SMALLEST_VOCABULARY:
        raise InputError(f"--vocabulary {config.vocabulary}: give at least {SMALLEST_VOCABULARY}, the bytes")
    if config.bp < SHORTEST:
        raise InputError(f"--bp {config.bp}: give at least {SHORTEST}")


def promoter_files(paths: list[str]) -> dict[str, Path]:
    """FASTA files by species, sorted by it. Raises `InputError` for a missing file or two of one stem."""
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"{path}: no such FASTA file")
        name = path.name.removesuffix(".gz")
        for suffix in FASTA_SUFFIXES:
            name = name.removesuffix(suffix)
        if name in files:
            raise InputError(f"{files[name]} and {path} would both be species {name!r}; rename one")
        files[name] = path
    return dict(sorted(files.items()))


def read_promoters(files: dict[str, Path], bp: int, seed: int, scratch: Path) -> PromoterTable:
    """The promoters of each species; their bases lie in the file `scratch`, mapped.

    Left out are those that are too short, mostly N, or repeat another one of their species. Raises `InputError` for a
    file that is not FASTA.
    """
    lengths, hashes, species, index, names, counts = [], [], [], [], [], []
    with open(scratch, "wb") as bases:
        for number, path in enumerate(files.values()):
            seen, count = set(), Counter()
            for name, codes in tqdm(records(path), desc=f"reading {path.name}", unit="promoter", disable=None):
                codes = codes[-bp:]
                count["records"] += 1
                if len(codes) < SHORTEST:
                    count["too_short"] += 1
                    continue
                if (codes == OTHER).mean() > MAX_N_SHARE:
                    count["over_n"] += 1
                    continue
                digest = hashlib.blake2b(codes.tobytes(), digest_size=16, key=seed.to_bytes(4, "little")).digest()
                if digest in seen:
                    count["duplicate"] += 1
                    continue
                seen.add(digest)
                bases.write(codes.tobytes())
                lengths.append(len(codes))
                hashes.append(int.from_bytes(digest[:8], "little"))
                species.append(number)
                index.append(count["promoters"])
                names.append(name)
                count["promoters"] += 1
            if not count["records"]:
                raise InputError(f"{path}: holds no FASTA record")
            counts.append(count)
    return PromoterTable(
        np.memmap(scratch, np.uint8, "r") if names else np.zeros(0, np.uint8),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        np.array(hashes, np.uint64),
        np.array(species, np.int32),
        np.array(index, np.int32),
        names,
        counts,
    )


def records(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name (the header's first word) and base codes of each record of a FASTA file, gzipped or not."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for title, sequence in SimpleFastaParser(file):
                yield (title.split() or [""])[0], encode(sequence)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: not a readable FASTA file: {one_line(error)}; copy the file again") from error


def tokenizer_sample(table: PromoterTable, in_training: np.ndarray, most: int) -> list[int]:
    """Up to `most` different training promoters, drawn by their hashes."""
    _, first = np.unique(table.hash, return_index=True)
    return first[in_training[first]][:most].tolist()


def token_quantiles(tokenizer: Tokenizer, table: PromoterTable, numbers: list[int]) -> dict[str, int]:
    """Tokens of the given promoters, special ones included: median, 95th percentile and maximum."""
    counts = [len(one.ids) for one in tokenizer.encode_batch([table.sequence(number) for number in numbers])]
    quantiles = zip(("median", "p95", "max"), np.quantile(counts, [0.5, 0.95, 1.0]), strict=True)
    return {name: int(value) for name, value in quantiles}


def summarise(names: list[str], table: PromoterTable, is_val: np.ndarray) -> dict:
    """Counts of records by fate and of samples by split, in all and by species."""
    by_split = dict(zip(SPLITS, (~is_val, is_val), strict=True))
    species = [
        {
            "name": name,
            "samples": {split: int((here & (table.species == number)).sum()) for split, here in by_split.items()},
            "records": {fate: count[fate] for fate in ("records", "promoters", *_CAUSES)},
        }
        for number, (name, count) in enumerate(zip(names, table.counts, strict=True))
    ]
    return {"samples": {split: int(here.sum()) for split, here in by_split.items()}, "species": species}


_CAUSES = {"too_short": f"shorter than {SHORTEST} bp", "over_n": "mostly N", "duplicate": "repeated in their species"}


def _fates(count: Counter) -> str:
    return " + ".join(
        [f"{count['promoters']:,} used", *(f"{count[cause]:,} {words}" for cause, words in _CAUSES.items())]
    )


def print_summary(summary: dict, n_tokens: int, out: Path) -> None:
    """The totals in three lines, then a table of species."""
    samples, tokens = summary["samples"], summary["tokens_per_promoter"]
    print(
        f"{out}: {sum(samples.values()):,} samples ({samples['train']:,} train, {samples['val']:,} val) of "
        f"{len(summary['species'])} species, {summary['shards']} shards, {summary['bytes'] / 1e6:,.1f} MB"
    )
    total = sum((Counter(one["records"]) for one in summary["species"]), Counter())
    print(f"records: {total['records']:,} read = {_fates(total)}")
    print(
        f"tokenizer: {n_tokens:,} tokens; a promoter takes {tokens['median']} (median), 95% at most {tokens['p95']}, "
        f"the longest {tokens['max']}"
    )
    rows = [
        [one["name"], *(f"{count:,}" for count in (*one["records"].values(), *one["samples"].values()))]
        for one in summary["species"]
    ]
    header = ["species", "records", "used", "too short", "mostly N", "duplicate", *SPLITS]
    print("", *aligned([header, *rows], right=range(1, len(header))), sep="\n")
