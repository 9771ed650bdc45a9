import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import transformers
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.bases import decode
from data_prep.bpe import MASK, PAD, SPECIAL_TOKENS, read_shards_tokenizer, read_tokenizer, train_tokenizer
from data_prep.errors import InputError
from data_prep.main import main
from data_prep.promoters import SHORTEST, tokenizer_sample
from data_prep.shard_reader import ShardReader, read_manifest

BP = 200
SHARED = 5  # promoters that both species have


def promoters(rng: np.random.Generator, n: int, bp: int = BP) -> list[str]:
    """Random letters with boxes planted, so that there are merges to learn."""
    sequences = []
    for _ in range(n):
        letters = rng.choice(list("ACGT"), bp)
        for box in rng.choice(["TATAAATA", "CACGTGGC", "GCCGCC"], 6):
            at = rng.integers(bp - 8)
            letters[at : at + len(box)] = list(box)
        sequences.append("".join(letters))
    return sequences


def write_fasta(path: Path, sequences: list[str], width: int = 60) -> Path:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        for number, sequence in enumerate(sequences):
            lines = "\n".join(sequence[i : i + width] for i in range(0, len(sequence), width))
            file.write(f">{path.name.partition('.')[0]}_{number} upstream\n{lines}\n")
    return path


def run(out: Path, *arguments: object) -> dict:
    main(["promoters", "--out", str(out), "--workers", "1", *map(str, arguments)])
    return read_manifest(out)


@pytest.fixture(scope="module")
def species(tmp_path_factory) -> dict[str, list[str]]:
    rng = np.random.default_rng(7)
    shared = promoters(rng, SHARED)
    return {"maize": shared + promoters(rng, 195), "sorghum": promoters(rng, 145) + shared}


@pytest.fixture(scope="module")
def files(species, tmp_path_factory) -> list[Path]:
    """Maize, soft-masked in places; sorghum, gzipped; beside the good records one of each kind that is left out."""
    folder = tmp_path_factory.mktemp("fasta")
    maize = [sequence[:50].lower() + sequence[50:] for sequence in species["maize"]]
    odd = ["ACGT" * 5, "N" * 150 + "ACGT" * 5, maize[3]]
    return [write_fasta(folder / "maize.fa", maize + odd), write_fasta(folder / "sorghum.fasta.gz", species["sorghum"])]


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("promoters") / "shards"
    run(out, "--promoters", *files, "--vocabulary", 300, "--val_share", 0.1, "--samples_per_shard", 100)
    return out


def test_every_promoter_is_in_one_sample_of_its_species(shards, species):
    manifest = read_manifest(shards)
    found = {name: Counter() for name in species}
    for split in ("train", "val"):
        reader = ShardReader(shards, split)
        for number in range(len(reader)):
            sample = reader[number]
            assert (sample.bases.dtype, sample.binding.shape, sample.lengths.tolist()) == (np.uint8, (1, 0), [BP])
            assert manifest["cell_types"][reader.cell_type[number]]["name"] == sample.meta["species"]
            assert sample.meta["name"] == f"{sample.meta['species']}_{sample.meta['index']}"
            found[sample.meta["species"]][decode(sample.bases)] += 1
    assert found == {name: Counter(sequences) for name, sequences in species.items()}
    assert manifest["samples"] == {
        split: sum(e["samples"] for e in manifest["shards"] if e["split"] == split) for split in ("train", "val")
    }


def test_webdataset_reads_the_shards(shards):
    paths = [str(shards / entry["name"]) for entry in read_manifest(shards)["shards"]]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert len(samples) == 350
    assert len({sample["__key__"] for sample in samples if len(sample["bases.npy"]) == BP}) > 1


def test_what_is_left_out_is_counted(shards, capsys, files, tmp_path):
    summary = json.loads((shards / "summary.json").read_text())
    records = {one["name"]: one["records"] for one in summary["species"]}
    assert records["maize"] == {"records": 203, "promoters": 200, "too_short": 1, "over_n": 1, "duplicate": 1}
    assert records["sorghum"] == {"records": 150, "promoters": 150, "too_short": 0, "over_n": 0, "duplicate": 0}
    run(tmp_path / "again", "--promoters", files[0], "--vocabulary", 300)
    printed = capsys.readouterr().out
    assert "203 read = 200 used + 1 shorter than 50 bp + 1 mostly N + 1 repeated in their species" in printed


def sides(shards: Path) -> dict[str, str]:
    readers = {split: ShardReader(shards, split) for split in ("train", "val")}
    return {decode(r[i].bases): split for split, r in readers.items() for i in range(len(r))}


def test_a_promoter_is_held_out_by_its_bases_and_the_seed_alone(shards, files, species, tmp_path):
    expected = sides(shards)
    assert len(expected) == 350 - SHARED  # equal promoters of two species lie on one side
    assert 15 <= sum(side == "val" for side in expected.values()) <= 60
    run(tmp_path / "maize", "--promoters", files[0], "--tokenizer", shards / "tokenizer.json", "--val_share", 0.1)
    assert sides(tmp_path / "maize") == {sequence: expected[sequence] for sequence in species["maize"]}
    run(tmp_path / "other", "--promoters", files[0], "--vocabulary", 256, "--val_share", 0.1, "--seed", 1)
    assert sides(tmp_path / "other") != sides(tmp_path / "maize")


def test_the_same_input_gives_the_same_bytes(shards, files, tmp_path):
    """Whatever the order of the files, the processes and the threads."""
    arguments = [*("--vocabulary", "300", "--val_share", "0.1", "--samples_per_shard", "100"), "--promoters"]
    for number, (order, threads) in enumerate([(files, "1"), (files[::-1], "3")]):
        out = tmp_path / str(number)
        command = [sys.executable, "-m", "data_prep.main", "promoters", "--out", str(out), "--workers", "2"]
        subprocess.run(
            [*command, *arguments, *map(str, order)],
            check=True,
            capture_output=True,
            env={**os.environ, "RAYON_NUM_THREADS": threads},
        )
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in shards.iterdir()}


def test_a_second_run_leaves_what_is_there(shards, files, capsys):
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    run(shards, "--promoters", *files, "--vocabulary", 300, "--val_share", 0.1, "--samples_per_shard", 100)
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in shards.iterdir()}


def test_of_a_long_promoter_the_bases_next_to_the_gene_stay(tmp_path):
    sequences = promoters(np.random.default_rng(1), 20, bp=130)
    run(tmp_path / "out", "--promoters", write_fasta(tmp_path / "a.fa", sequences), "--bp", 100, "--val_share", 0)
    assert set(sides(tmp_path / "out")) == {sequence[-100:] for sequence in sequences}


def test_the_tokenizer_is_that_of_the_manifest(shards, files):
    manifest, content = read_manifest(shards), (shards / "tokenizer.json").read_bytes()
    assert manifest["tokenizer"]["sha256"] == hashlib.sha256(content).hexdigest()
    tokenizer = read_shards_tokenizer(shards, manifest)
    assert tokenizer.get_vocab_size() == manifest["tokenizer"]["tokens"] == 304
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert max(map(len, tokenizer.get_vocab())) > 4  # merges of the planted boxes


def test_the_tokenizer_is_trained_on_training_promoters_alone(shards, species):
    training = {sequence for sequence, side in sides(shards).items() if side == "train"}
    expected = train_tokenizer(sorted(training), 300).to_str()
    assert read_tokenizer(shards / "tokenizer.json").to_str() == expected
    assert train_tokenizer(sorted(training, key=lambda s: s[::-1]), 300).to_str() == expected
    assert train_tokenizer([*training, *species["maize"]], 300).to_str() != expected


def test_the_tokenizers_sample_holds_each_promoter_once():
    class Table:
        hash = np.array([9, 4, 4, 1, 7], np.uint64)

    assert tokenizer_sample(Table, np.array([True, True, True, False, True]), 2) == [1, 4]
    assert tokenizer_sample(Table, np.array([True, True, True, False, True]), 9) == [1, 4, 0]


@pytest.fixture(scope="module")
def tokenizer(shards) -> Tokenizer:
    return read_tokenizer(shards / "tokenizer.json")


@settings(max_examples=50, deadline=None)
@given(st.text("ACGTacgtNRYn", max_size=80))
def test_tokens_spell_the_sequence(tokenizer, sequence):
    ids = tokenizer.encode(sequence).ids
    assert (ids[0], ids[-1]) == (0, 2)
    letters = "".join(letter if letter in "ACGT" else "N" for letter in sequence.upper())
    assert tokenizer.decode(ids) == letters
    assert tokenizer.encode(f" {sequence}\n").ids == ids
    assert not {PAD, MASK} & set(ids)


def test_transformers_reads_the_tokenizer(shards, tokenizer):
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(shards / "tokenizer.json"), pad_token="<pad>", padding_side="left"
    )
    assert fast("TATAAATACGT")["input_ids"] == tokenizer.encode("TATAAATACGT").ids


def test_a_servers_tokenizer_is_read_and_checked(shards, serve, tmp_path):
    server, manifest = serve(shards), read_manifest(shards)
    assert read_shards_tokenizer(server.url, manifest).to_str() == read_tokenizer(shards / "tokenizer.json").to_str()
    other = {**manifest, "tokenizer": {**manifest["tokenizer"], "sha256": "0" * 64}}
    for location in (server.url, shards):
        with pytest.raises(InputError, match=r"tokenizer\.json: truncated or altered: expected sha256 0{64}"):
            read_shards_tokenizer(location, other)
    server.status["tokenizer.json"] = 404
    with pytest.raises(InputError, match=r"tokenizer\.json: the manifest names it, but it is not there"):
        read_shards_tokenizer(server.url, manifest)


def test_bad_input_ends_in_one_line(refused, files, shards, tmp_path):
    (tmp_path / "proteins.fa").write_text(">p\n" + "MKLVWE" * 20 + "\n")
    (tmp_path / "empty.fa").write_text("no header\n")
    (tmp_path / "cut.fa.gz").write_bytes(files[1].read_bytes()[:300])
    (tmp_path / "maize.fasta").write_text(">a\nACGT\n")
    (tmp_path / "bert.json").write_text(
        Tokenizer.from_file(str(shards / "tokenizer.json")).to_str().replace("<s>", "<S>")
    )
    good = ("promoters", "--out", tmp_path / "out", "--promoters", files[0])
    for extra, message in [
        (("--val_share", 1), "--val_share 1.0: give 0 or more, below 1"),
        (("--vocabulary", 200), "--vocabulary 200: give at least 256"),
        (("--bp", SHORTEST - 1), "--bp 49: give at least 50"),
        (("--tokenizer", tmp_path / "none.json"), "none.json: cannot be read"),
        (("--tokenizer", files[0]), "maize.fa: not a tokenizer"),
        (("--tokenizer", tmp_path / "bert.json"), "bert.json: its first tokens are <S>"),
    ]:
        assert message in refused(*good, *extra)
    for names, message in [
        (["none.fa"], "none.fa: no such FASTA file"),
        (["proteins.fa"], "no promoter to train on, of 1 records: 0 used + 0 shorter than 50 bp + 1 mostly N"),
        (["empty.fa"], "empty.fa: holds no FASTA record"),
        (["cut.fa.gz"], "cut.fa.gz: not a readable FASTA file"),
        ([files[0], "maize.fasta"], "would both be species 'maize'; rename one"),
    ]:
        paths = [tmp_path / name for name in names]
        assert message in refused("promoters", "--out", tmp_path / "out", "--promoters", *paths)
    assert not (tmp_path / "out").exists()
    for verify in ([], ["--verify"]):
        assert "shards of promoters; inspect" in refused("inspect", shards, *verify)
