"""Tables of people: which columns are taken, how a status is read, and what is refused."""

import gzip
from pathlib import Path

import pytest

from data_prep.errors import InputError
from data_prep.phenotypes import Phenotypes, read_phenotypes


def read(folder: Path, text: str, name: str = "samples.tsv", **named: str) -> Phenotypes:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_phenotypes(path, named)


def rows(found: Phenotypes) -> list[list]:
    return found.people.to_numpy().tolist()


def test_columns_are_guessed_and_people_of_unknown_status_left_out_and_counted(tmp_path):
    text = "sample.id\tfamily.id\tPopulation\tstatus\na\tf1\tX\t0\nb\tf1\tX\t1\nc\t\tY\tNA\nd\t0\tY\t1\n"
    found = read(tmp_path, text)
    assert rows(found) == [["a", 0, "X", "family f1"], ["b", 1, "X", "family f1"], ["d", 1, "Y", "sample d"]]
    assert found.columns == {
        "sample": "sample.id",
        "status": "status",
        "population": "Population",
        "family": "family.id",
    }
    assert (found.coding, found.unknown) == ("0 = control, 1 = case", 1)


@pytest.mark.parametrize(
    ("values", "labels", "coding"),
    [
        (["0", "1"], [0, 1], "0 = control"),
        (["1", "2", "0", "-9"], [0, 1], "PLINK"),
        (["1", "2"], [0, 1], "PLINK"),
        (["1.0", "0.0", ""], [1, 0], "0 = control"),
        (["Case", "control", "Unaffected"], [1, 0, 0], "in words"),
    ],
)
def test_a_status_is_read_by_the_coding_that_all_values_are_of(tmp_path, values, labels, coding):
    text = "#IID,PHENO\n" + "".join(f"s{i},{value}\n" for i, value in enumerate(values))
    found = read(tmp_path, text, "samples.csv.gz")
    assert found.people["label"].tolist() == labels
    assert coding in found.coding
    assert found.people["family"].tolist() == [f"sample {name}" for name in found.people["sample"]]


def test_columns_can_be_named(tmp_path):
    text = "person\tsample\tdisease\tclan\n1\tx\t0\tp\n2\tx\t1\tp\n"
    found = read(tmp_path, text, sample="person", status="disease", family="clan")
    assert rows(found) == [["1", 0, "", "family p"], ["2", 1, "", "family p"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "samples.tsv: holds no rows"),
        ("sample\tstatus\n", "samples.tsv: holds no rows"),
        ("sample\tstatus\na\t0\t1\n", "samples.tsv:2: 3 columns; the header has 2"),
        ("sample,status\na,0\n", "samples.tsv: has no column 'sample'; name one of sample,status with --sample-column"),
        ("sample\tdisease\na\t0\n", "samples.tsv: has no column 'status'; name one of sample, disease with"),
        ("sample\tstatus\na\t0\na\t1\n", "samples.tsv:2: sample 'a' stands 2 times in it"),
        ("sample\tstatus\n\t0\n", "samples.tsv:2: no sample's name"),
        ("sample\tstatus\na\t0\n\nb\t0.7\n", "samples.tsv:4: status '0.7' is none; write 0 and 1"),
        ("sample\tstatus\na\t2\nb\tcase\n", "samples.tsv: column 'status' mixes codings; write 0 and 1"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_table_and_a_missing_named_column_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        read_phenotypes(tmp_path / "none.tsv", {})
    (tmp_path / "bad.tsv.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(InputError, match=r"bad\.tsv\.gz: cannot be read as CSV or TSV"):
        read_phenotypes(tmp_path / "bad.tsv.gz", {})
    with pytest.raises(InputError, match="has no column 'tribe'; name one of sample, status with --population-column"):
        read(tmp_path, "sample\tstatus\na\t0\n", population="tribe")
