import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from Bio import SeqIO
from Bio.Seq import reverse_complement

from data_prep import promoter_data
from data_prep.bases import encode
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.main import main
from data_prep.negatives import FAR, GC_BINS, Tiles, gc_bins, matched, tiles

COLUMNS = ["sequence", "label", "chrom", "start", "end", "strand"]
LENGTH = 60_000
KMERS = {"train": 12, "dev": 4, "test": 6}


def table(folder: Path, split: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{split}.tsv.gz", sep="\t")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def gc(sequence: str) -> float:
    return (sequence.count("G") + sequence.count("C")) / len(sequence)


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    """Four chromosomes of 2 kb stretches of unlike GC content, in both cases, with N in the middle of chr1."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    with open(path, "w") as file:
        for name in ("chr1", "chr2", "chr3", "chr4"):
            parts = []
            for _ in range(0, LENGTH, 2000):
                rich = rng.uniform(0.15, 0.35)
                parts += rng.choice(
                    list("ACGTacgt"), 2000, p=np.tile([0.5 - rich, rich, rich, 0.5 - rich], 2) / 2
                ).tolist()
            if name == "chr1":
                parts[30_000:30_200] = "N" * 200
            file.write(f">{name}\n{''.join(parts)}\n")
    return path


@pytest.fixture(scope="module")
def letters(genome) -> dict[str, str]:
    return {record.id: str(record.seq).upper() for record in SeqIO.parse(genome, "fasta")}


@pytest.fixture(scope="module")
def genes(tmp_path_factory) -> Path:
    """A gene each 4 kb, of 300 bp, on either strand; on chr4 named without `chr`."""
    rows = []
    for name in ("chr1", "chr2", "chr3", "4"):
        for number, start in enumerate(range(1500, LENGTH - 1000, 4000)):
            rows.append(f"{name}\t{start + number}\t{start + number + 300}\tgene{number}\t0\t{'+-'[number % 2]}\n")
    path = tmp_path_factory.mktemp("genes") / "genes.bed"
    path.write_text("# genes\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def made(genome, genes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "promoter"
    main(["promoter", "--tss", str(genes), "--genome", str(genome), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def start_sites(genes) -> dict[str, list[tuple[int, str]]]:
    """Position and strand of each gene's 5' end, by the FASTA's names."""
    sites = {}
    for line in genes.read_text().splitlines()[1:]:
        name, start, end, _, _, strand = line.split("\t")
        name = f"chr{name.removeprefix('chr')}"
        sites.setdefault(name, []).append((int(start) if strand == "+" else int(end) - 1, strand))
    return sites


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A folder of tables as GUE has them."""
    rng, folder = np.random.default_rng(2), tmp_path_factory.mktemp("labelled")
    for split, n in KMERS.items():
        rows = [f"{''.join(rng.choice(list('ACGT'), 70))},{number % 2}\n" for number in range(n)]
        (folder / f"{split}.csv").write_text("sequence,label\n" + "".join(rows))
    return folder


def test_windows_lie_around_start_sites_on_their_strands(made, letters, start_sites):
    """The start site itself is base 34 of 70."""
    splits = {"train": ("chr1", "chr2"), "dev": ("chr4",), "test": ("chr3",)}
    for split, names in splits.items():
        rows = table(made, split)
        assert list(rows.columns) == COLUMNS
        expected = []
        for name in names:
            for site, strand in sorted(start_sites[name]):
                if strand == "+":
                    expected.append((letters[name][site - 34 : site + 36], name, site - 34, site + 36, strand))
                else:
                    first, last = site - 35, site + 35
                    expected.append((reverse_complement(letters[name][first:last]), name, first, last, strand))
        found = rows[rows.label == 1].drop(columns="label")
        assert [tuple(row) for row in found.itertuples(index=False)] == expected


def test_wide_windows_hold_250_bases_before_the_start_site(genome, genes, letters, start_sites, tmp_path):
    arguments = ["--window", "300", "--dev-chroms", "none", "--test-chroms", "3"]
    main(["promoter", "--tss", str(genes), "--genome", str(genome), "--out", str(tmp_path / "wide"), *arguments])
    assert not (tmp_path / "wide" / "dev.tsv.gz").exists()
    rows = table(tmp_path / "wide", "test")
    promoters = rows[rows.label == 1]
    assert len(promoters) == len(start_sites["chr3"])
    assert set(rows.sequence.str.len()) == {300}
    for row, (site, strand) in zip(promoters.itertuples(), sorted(start_sites["chr3"]), strict=True):
        at_site = letters["chr3"][site]
        assert row.sequence[250] == (at_site if strand == "+" else reverse_complement(at_site))
        cut = letters["chr3"][row.start : row.end]
        assert row.sequence == (cut if strand == "+" else reverse_complement(cut))


def test_negatives_are_stretches_of_the_splits_own_chromosomes(made, letters):
    for split in KMERS:
        rows = table(made, split)
        negatives = rows[rows.label == 0]
        assert 2 * len(negatives) == len(rows)
        assert set(negatives.chrom) <= set(rows[rows.label == 1].chrom)
        for row in negatives.itertuples():
            cut = letters[row.chrom][row.start : row.end]
            assert row.sequence == (cut if row.strand == "+" else reverse_complement(cut))
            assert row.sequence.count("N") <= 0.05 * 70
    strands = pd.concat([table(made, split) for split in KMERS]).query("label == 0").strand
    assert 0.25 < (strands == "+").mean() < 0.75


def test_negatives_match_the_promoters_gc_content(made):
    assert json.loads((made / "manifest.json").read_text())["counts"]["of_another_gc"] == 0
    for split in KMERS:
        rows = table(made, split)
        bins = [
            sorted(int(np.floor(GC_BINS * gc(sequence) + 1e-9)) for sequence in rows.sequence[rows.label == label])
            for label in (0, 1)
        ]
        assert bins[0] == bins[1]
        assert len(set(bins[0])) > 5


def test_negatives_keep_a_kilobase_from_start_sites_and_do_not_overlap(made, start_sites):
    for split in KMERS:
        rows = table(made, split).query("label == 0")
        for name, here in rows.groupby("chrom"):
            sites = np.array([site for site, _ in start_sites[name]])
            nearest = np.minimum(abs(here.start.values[:, None] - sites), abs(here.end.values[:, None] - 1 - sites))
            assert nearest.min() > FAR
            assert not ((here.start.values[:, None] <= sites) & (sites < here.end.values[:, None])).any()
            assert (np.diff(np.sort(here.start)) >= 70).all()


def test_what_is_left_out_is_counted(genome, tmp_path):
    """Windows that just fit and those that just do not, at both ends and on both strands."""
    lines = [
        *(("chr1", 33, "+"), ("chr1", 34, "+"), ("chr1", LENGTH - 36, "+"), ("chr1", LENGTH - 35, "+")),
        *(("chr2", 34, "-"), ("chr2", 35, "-"), ("chr2", LENGTH - 35, "-"), ("chr2", LENGTH - 34, "-")),
        *(("chr1", 30_100, "+"), ("chr1", 34, "+"), ("chr1", 34, "-"), ("chrUn", 5, "+"), ("chr3", 9000, "-")),
    ]
    bed = tmp_path / "sites.bed"
    bed.write_text("".join(f"{name}\t{site}\t{site + 1}\t.\t.\t{strand}\n" for name, site, strand in lines))
    out = tmp_path / "out"
    main(["promoter", "--tss", str(bed), "--genome", str(genome), "--out", str(out), "--dev-chroms", "none"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {
        **{"tss": 13, "unknown_chromosome": 1, "duplicate": 1, "off_chromosome": 5, "over_n": 1, "of_another_gc": 0}
    }
    promoters = table(out, "train").query("label == 1")
    places = list(zip(promoters.chrom, promoters.start, promoters.strand, strict=True))
    assert places == [
        *(("chr1", 0, "+"), ("chr1", LENGTH - 70, "+")),
        *(("chr2", 0, "-"), ("chr2", LENGTH - 70, "-")),
    ]
    assert manifest["classes"]["train"] == {"promoters": 4, "rows": 8}
    assert manifest["split"] == "by chromosome; test: chr3; train: all others"
    assert not manifest["simulated"]


def test_a_seed_fixes_every_byte_and_another_draws_other_negatives(made, genome, genes, tmp_path):
    command = ["promoter", "--tss", str(genes), "--genome", str(genome)]
    main([*command, "--out", str(tmp_path / "again")])
    main([*command, "--out", str(tmp_path / "other"), "--seed", "1"])
    assert bytes_of(tmp_path / "again") == bytes_of(made)
    one, other = table(made, "train"), table(tmp_path / "other", "train")
    assert one[one.label == 1].equals(other[other.label == 1])
    assert not one.equals(other)


def test_a_second_run_changes_nothing_and_says_so(genome, genes, tmp_path, capsys):
    command = ["promoter", "--tss", str(genes), "--genome", str(genome), "--out", str(tmp_path / "out")]
    main(command)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    main(command)
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: up to date\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_labelled_sequences_are_written_as_they_are(labelled, tmp_path):
    main(["promoter", "--tables", str(labelled), "--out", str(tmp_path / "folder")])
    files = [str(labelled / f"{split}.csv") for split in ("test", "train", "dev")]
    main(["promoter", "--tables", *files, "--out", str(tmp_path / "files")])
    for split, n in KMERS.items():
        given = pd.read_csv(labelled / f"{split}.csv")
        assert len(given) == n
        for out in ("folder", "files"):
            assert table(tmp_path / out, split).equals(given)
    assert bytes_of(tmp_path / "folder")["train.tsv.gz"] == bytes_of(tmp_path / "files")["train.tsv.gz"]


def test_kmer_sentences_are_joined_whatever_the_format(labelled, tmp_path):
    (tmp_path / "kmers").mkdir()
    for split in KMERS:
        given = pd.read_csv(labelled / f"{split}.csv")
        lines = [
            f"{' '.join(sequence[i : i + 6].lower() for i in range(65))}\t{label}\n"
            for sequence, label in given.itertuples(index=False)
        ]
        with gzip.open(tmp_path / "kmers" / f"{split}.tsv.gz", "wt") as file:
            file.write("sequence\tlabel\n" + "".join(lines))
    main(["promoter", "--tables", str(tmp_path / "kmers"), "--out", str(tmp_path / "out")])
    for split in KMERS:
        assert table(tmp_path / "out", split).equals(pd.read_csv(labelled / f"{split}.csv"))


def test_with_no_argument_it_takes_the_simulated_promoters_and_says_so(labelled, tmp_path, monkeypatch, capsys):
    shutil.copytree(labelled, tmp_path / "data" / "demo" / "promoter")
    (tmp_path / "data" / "demo" / "manifest.json").write_text('{"simulated": true}')
    monkeypatch.chdir(tmp_path)
    main(["promoter"])
    assert "simulated" in capsys.readouterr().out
    assert json.loads(Path("data/promoter/manifest.json").read_text())["simulated"]


def test_without_simulated_promoters_it_names_the_command_that_makes_them(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("promoter")
    assert "data/demo/promoter" in line
    assert "python data_prep/main.py simulate" in line


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("ACGTACGTJJ,1", ":14: not a DNA sequence"),
        ("ACGTA,1", ":14: 5 bp"),
        (",1", ":14: "),
        ("ACGTACGT,2", ":14: label '2'"),
        ("ACGTACGT,", ":14: label ''"),
        ("ACGTAC ACGTAC,1", ":14: ACGTAC and ACGTAC"),
    ],
)
def test_a_bad_row_is_named_with_its_line(labelled, refused, tmp_path, row, said):
    bad = shutil.copytree(labelled, tmp_path / "bad")
    with open(bad / "train.csv", "a") as file:
        file.write(f"{row}\n")
    line = refused("promoter", "--tables", bad)
    assert f"{bad / 'train.csv'}{said}" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sequence,label\nACGTACGT,1\nTTTTACGT,1\n", "fewer than two classes"),
        ("sequence,label\n", "fewer than two classes"),
        ("ACGTACGT,1\n", "no column 'sequence'"),
        (None, "there is dev, test"),
    ],
)
def test_a_table_of_no_use_is_named(labelled, refused, tmp_path, content, said):
    bad = shutil.copytree(labelled, tmp_path / "bad")
    (bad / "train.csv").unlink()
    if content is not None:
        (bad / "train.csv").write_text(content)
    line = refused("promoter", "--tables", bad)
    assert str(bad) in line
    assert said in line


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.csv"], "needs train and dev or test"),
        (["dev.csv", "test.csv"], "needs train and dev or test"),
        (["train.csv", "nowhere.csv"], "nowhere.csv: no such file"),
        (["train.csv", "valid.csv"], "valid.csv: name it train, dev or test"),
        (["train.csv", "more/train.csv"], "are both of train"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
def test_files_that_make_no_split_are_named(labelled, refused, tmp_path, names, said):
    folder = shutil.copytree(labelled, tmp_path / "given")
    (folder / "more").mkdir()
    for name in ("valid.csv", "more/train.csv"):
        shutil.copy(folder / "train.csv", folder / name)
    assert said in refused("promoter", "--tables", *(folder / name for name in names))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chr1\t500\t501", ":62: strand ''"),
        ("chr1\t500\t501\tx\t0\t.", ":62: strand '.'"),
        ("chr1\t500\t500\tx\t0\t+", ":62: start 500 and end 500"),
        ("chr1 500 501 x 0 +", ":62: columns are separated by spaces"),
        (f"chr1\t500\t{LENGTH + 1}\tx\t0\t+", "past the chromosome's end"),
    ],
)
def test_a_bad_start_site_is_named(genome, genes, refused, tmp_path, line, said):
    bad = tmp_path / "bad.bed"
    bad.write_text(f"{genes.read_text()}{line}\n")
    found = refused("promoter", "--tss", bad, "--genome", genome)
    assert str(bad) in found
    assert said in found


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--test-chroms", "chr9"], "--test-chroms"),
        (["--dev-chroms", "chr9"], "--dev-chroms"),
        (["--dev-chroms", "none", "--test-chroms", "none"], "hold out at least one"),
        (["--dev-chroms", "chr3"], "both name chr3"),
        (["--dev-chroms", "1", "2", "--test-chroms", "3", "4"], "leave to train no start site"),
        (["--tables", "x"], "give one of them"),
        (["--seed", "-1"], "--seed"),
        (["--tss", "nowhere.bed"], "nowhere.bed: no such BED file"),
        (["--genome", "nowhere.fa"], "nowhere.fa: no such FASTA file"),
    ],
)
def test_bad_usage_is_named(genome, genes, refused, changed, said):
    assert said in refused("promoter", "--tss", genes, "--genome", genome, *changed)


def test_start_sites_and_a_genome_are_needed_together(genome, genes, refused):
    assert "--genome" in refused("promoter", "--tss", genes)
    assert "--tss" in refused("promoter", "--genome", genome)


def test_a_split_without_a_start_site_is_named_with_its_flag(genome, tmp_path, refused):
    bed = tmp_path / "sites.bed"
    bed.write_text("".join(f"chr1\t{site}\t{site + 1}\t.\t.\t+\n" for site in range(2000, 50_000, 9000)))
    line = refused("promoter", "--tss", bed, "--genome", genome)
    assert f"{bed}: --dev-chroms chr4" in line


def test_a_genome_full_of_start_sites_has_no_room_for_negatives(genome, tmp_path, refused):
    bed = tmp_path / "sites.bed"
    sites = [(name, site) for name in ("chr1", "chr3", "chr4") for site in range(100, LENGTH - 100, 900)]
    bed.write_text("".join(f"{name}\t{site}\t{site + 1}\t.\t.\t+\n" for name, site in sites))
    line = refused("promoter", "--tss", bed, "--genome", genome)
    assert f"{genome}, train: has 0 stretches" in line


def test_none_of_the_names_meet(genome, tmp_path, refused):
    bed = tmp_path / "sites.bed"
    bed.write_text("NC_000001\t500\t501\t.\t.\t+\n")
    assert f"{bed}: none of its 1 start sites" in refused("promoter", "--tss", bed, "--genome", genome)


def test_a_bin_with_too_few_tiles_takes_from_the_nearest():
    """Four wanted of bin 20, which has one tile; bins 18 and 23 have two to spare, and 19 those that it wants."""
    bins = np.array([20, 18, 18, 23, 23, 19, 19])
    have = Tiles(np.zeros(7, np.int32), 100 * np.arange(7), bins, np.linspace(0, 1, 7))
    chosen, elsewhere = matched(np.array([20, 20, 20, 20, 19, 19]), have, "x")
    assert elsewhere == 3
    assert sorted(chosen.gc_bin) == [18, 18, 19, 19, 20, 23]
    assert len(set(chosen.start)) == 6
    with pytest.raises(InputError, match="x: has 7 stretches"):
        matched(np.full(8, 20), have, "x")


def test_tiles_lie_side_by_side_over_a_kilobase_from_start_sites():
    codes = encode("ACGT" * 1500)
    codes[5000:5004] = 4
    site = 2000
    found = tiles(codes, 3, np.array([site]), 70, np.random.default_rng(0))
    assert (np.diff(found.start) % 70 == 0).all()
    assert set(found.chromosome) == {3}
    # All that a grid of this phase has, but what comes near the site and the one or two tiles with N over 5%.
    grid = np.arange(found.start[0] % 70, 6000 - 69, 70)
    allowed = [start for start in grid if start > site + 1000 or start + 69 < site - 1000]
    with_n = [start for start in allowed if (codes[start : start + 70] == 4).sum() > 3.5]
    assert found.start.tolist() == [start for start in allowed if start not in with_n]
    assert len(with_n) <= 1


def test_gc_bins_count_known_letters_alone():
    windows = np.array([encode("GGCCNNAAAA"), encode("AAAATTTTAA"), encode("GCGCGCGCGC")])
    assert gc_bins(windows).tolist() == [GC_BINS // 2, 0, GC_BINS - 1]


def test_real_transcripts_become_a_table(shared_data, tmp_path):
    """Of the genes that the cut chromosomes reach some 30 lie where they have sequence."""
    genome = shared_data / "hg19" / "hg19_windows.fa.gz"
    lengths = Genome(genome).lengths
    lines = (shared_data / "hg19" / "splice" / "canonical_dataset.txt").read_text().splitlines()
    genes = [line.split("\t")[:6] for line in lines]
    rows = [
        f"{chromosome}\t{int(start) - 1}\t{end}\t{name}\t0\t{strand}\n"
        for name, _, chromosome, strand, start, end in genes
        if int(end) <= lengths[chromosome]
    ]
    bed = tmp_path / "genes.bed"
    bed.write_text("".join(rows))
    arguments = ["--dev-chroms", "none", "--test-chroms", "22"]
    main(["promoter", "--tss", str(bed), "--genome", str(genome), "--out", str(tmp_path / "out"), *arguments])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    promoters = sum(one["promoters"] for one in manifest["classes"].values())
    assert manifest["counts"]["tss"] == len(rows) == promoters + manifest["counts"]["over_n"]
    assert promoters > 25
    for split in ("train", "test"):
        rows = table(tmp_path / "out", split)
        assert rows.label.mean() == 0.5
        assert set("".join(rows.sequence)) == set("ACGT")
    promoters = pd.concat([table(tmp_path / "out", split) for split in ("train", "test")]).query("label == 1")
    assert promoters.sequence.map(gc).mean() > 0.5  # CpG islands


@pytest.mark.slow
def test_real_labelled_sequences_are_read(shared_data, tmp_path):
    main(["promoter", "--tables", str(shared_data / "gue" / "prom" / "prom_core_all"), "--out", str(tmp_path / "out")])
    assert len(table(tmp_path / "out", "train")) == 47_356
    assert len(table(tmp_path / "out", "dev")) == 5_920


def test_the_window_sizes_are_those_of_the_papers():
    assert {name: sum(sides) for name, sides in promoter_data.WINDOWS.items()} == {"core": 70, "300": 300}
