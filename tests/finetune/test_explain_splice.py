"""The program that explains a model, at splice sites: of drawn weights, so that any nucleotide may be the likeliest."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.encoder import Encoder
from finetune.explain import main
from finetune.model import Target, new_model, save
from finetune.scoring import Scorer
from finetune.splice_metrics import CLASSES

FLANK, POSITIONS = 10, 256  # nucleotides on each side of a gene, all read; predicted in a window
BP, ROWS, DONOR = POSITIONS + 2 * FLANK, 2, 2
FILES = [
    *("attribution.tsv", "examples.png", "location.png", "location.tsv", "manifest.json", "mutagenesis.tsv.gz"),
    *("profile.png", "rows.tsv"),
]


@pytest.fixture(scope="module")
def genes() -> dict[str, str]:
    """Sequences with flanks, of 40 to 46 bp without; a donor stands at 20, an acceptor at 30."""
    rng = np.random.default_rng(7)
    return {f"g{i}": "".join(rng.choice(list("ACGT"), 40 + 2 * i + 2 * FLANK)) for i in range(4)}


@pytest.fixture(scope="module")
def scorer(checkpoint, tmp_path_factory) -> Scorer:
    encoder, folder = Encoder.at(checkpoint), tmp_path_factory.mktemp("model") / "pretrained"
    longest = BP - encoder.k + 3
    model = new_model(encoder, Target("nucleotides", CLASSES, POSITIONS), "sequence", True, longest, 1)
    model.head.weight.data *= 20
    about = {"longest": longest, "bp": BP, "both_strands": False, "row_shape": [1, 1]}
    save(model, encoder, folder, task="splice", **about)
    return Scorer.of(folder)


@pytest.fixture(scope="module")
def data(genes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("splice")
    for split in ("train", "test"):
        with gzip.open(folder / f"{split}.tsv.gz", "wt") as file:
            file.write("gene\tchrom\tstrand\tstart\tend\tsequence\tacceptors\tdonors\n")
            for name, sequence in genes.items():
                file.write(f"{name}\tchr1\t+\t0\t{len(sequence) - 2 * FLANK}\t{sequence}\t30\t20\n")
    return folder


@pytest.fixture(scope="module")
def out(scorer, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explained") / "out"
    main(
        [
            *("--task", "splice", "--checkpoint", str(scorer.encoder.folder), "--data", str(data)),
            *("--rows", str(ROWS), "--out", str(folder)),
        ]
    )
    return folder


def test_all_files_but_names_of_motifs_are_written(out):
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "manifest.json").read_text())["explained"] == "logit of donor"


def test_the_nucleotides_of_the_highest_probabilities_are_explained(out, scorer, genes):
    tiles = scorer([sequence.ljust(BP, "N") for sequence in genes.values()])[..., DONOR]
    places = [
        (-tile[place], f"{name}:{place}", {20: "donor", 30: "acceptor"}.get(place, "none"))
        for (name, sequence), tile in zip(genes.items(), tiles, strict=True)
        for place in range(len(sequence) - 2 * FLANK)
    ]
    best = sorted(places)[:ROWS]
    rows = pd.read_csv(out / "rows.tsv", sep="\t", keep_default_na=False)
    assert rows["name"].tolist() == [name for _, name, _ in best]
    assert rows["class"].tolist() == [label for *_, label in best]
    assert rows["predicted"].tolist() == pytest.approx([-negative for negative, *_ in best], abs=1e-5)


def test_positions_count_from_each_nucleotide_in_its_window(out, genes):
    rows = pd.read_csv(out / "rows.tsv", sep="\t")
    bases = pd.read_csv(out / "attribution.tsv", sep="\t", keep_default_na=False).groupby("row")
    firsts = []
    for row in rows.itertuples():
        gene, place = row.name.split(":")
        table = bases.get_group(row.row)
        firsts.append(-FLANK - int(place))
        assert "".join(table["base"]) == genes[gene].ljust(BP, "N")
        assert table["position"].tolist() == [*range(firsts[-1], firsts[-1] + BP)]
    location = pd.read_csv(out / "location.tsv", sep="\t").query("L == 1").set_index("position")["rows"]
    assert location.index.tolist() == [*range(min(firsts), max(firsts) + BP)]
    assert location.sum() == ROWS * BP


def test_a_substitution_changes_the_logit_of_the_nucleotide(out, scorer, genes):
    changes = pd.read_csv(out / "mutagenesis.tsv.gz", sep="\t")
    gene, place = pd.read_csv(out / "rows.tsv", sep="\t")["name"][0].split(":")
    for change in changes[(changes["row"] == 0) & changes["position"].isin([-3, 0, 2])].itertuples():
        at = FLANK + int(place) + change.position
        window = genes[gene].ljust(BP, "N")
        p, q = scorer([window, window[:at] + change.alt + window[at + 1 :]])[:, int(place), DONOR]
        assert window[at] == change.base
        assert change.change == pytest.approx(np.log(q / (1 - q)) - np.log(p / (1 - p)), abs=1e-4)


def test_a_folder_of_too_short_flanks_is_refused(scorer, tmp_path, capsys):
    header, row = "gene\tchrom\tstrand\tstart\tend\tsequence\tacceptors\tdonors", "g\tchr1\t+\t0\t40"
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text(f"{header}\n{row}\t{'ACGT' * 11}\t30\t20\n")
    with pytest.raises(SystemExit) as exit_:
        main(["--task", "splice", "--checkpoint", str(scorer.encoder.folder), "--data", str(tmp_path)])
    line = capsys.readouterr().err
    assert (exit_.value.code, line.count("\n")) == (2, 1)
    assert "holds 2 nucleotides on both sides of its genes" in line
