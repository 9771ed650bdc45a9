"""Labelled sequences from files: what is read, and what is refused with the file and the line."""

import re

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.labelled_sequences import joined
from finetune.sequence_table import read_splits, read_table

GOOD = "sequence,label\nACGTACGTAC,0\nTTGACCATGA,1\n"


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_gives_its_sequences_and_labels_in_order(tmp_path, ending, separator):
    path = tmp_path / f"train.{ending}"
    path.write_text(GOOD.replace(",", separator))
    table = read_table(path, 2, 6)
    assert table.sequences == ["ACGTACGTAC", "TTGACCATGA"]
    assert table.targets.dtype == np.int64
    assert table.targets.tolist() == [0, 1]
    assert (len(table), table.path) == (2, path)


def test_columns_are_found_by_name_whatever_else_stands_there(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("name,label,sequence\nx,1,ACGTAC\ny,0,TTTTTT\n")
    assert read_table(path, 2, 6).sequences == ["ACGTAC", "TTTTTT"]


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_a_kmer_sentence_is_joined_to_the_sequence_it_was_made_from(k):
    sequence = "".join(np.random.default_rng(k).choice(list("ACGTN"), 50))
    assert joined(" ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))) == sequence


def test_dnaberts_file_is_read_as_sequences(shared_data):
    path = shared_data / "dnabert" / "ft6_dev.tsv"
    table = read_table(path, 2, 6)
    first = path.read_text().splitlines()[1].split("\t")[0].split()
    assert len(table) == 1000
    assert set(map(len, table.sequences)) == {101}
    assert [table.sequences[0][i : i + 6] for i in range(96)] == first


def test_words_that_do_not_overlap_are_no_kmer_sentence(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(GOOD + "ACGTAC TTTTTT,0\n")
    assert refusal(read_table, path, 2, 6).startswith(f"{path}:4: ")


def test_lower_case_counts_as_upper_case(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(GOOD.replace("ACGTACGTAC", "acgtacGTAC"))
    assert read_table(path, 2, 6).sequences[0] == "ACGTACGTAC"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("ACGTXCGTAC,0", "not a DNA sequence: 'ACGTXCGTAC'"),
        (",0", "not a DNA sequence: ''"),
        ("ACGTA,0", "5 bp; the shortest usable is 6"),
        ("ACGTACGTAC,2", "label '2'; this task has 2 classes, 0 to 1"),
        ("ACGTACGTAC,promoter", "label 'promoter'; this task has 2 classes, 0 to 1"),
        ("ACGTACGTAC", "label ''; this task has 2 classes, 0 to 1"),
    ],
    ids=["letter", "empty", "short", "third class", "word", "no label"],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_line(tmp_path, row, said):
    path = tmp_path / "train.csv"
    path.write_text(f"{GOOD}{row}\n")
    assert refusal(read_table, path, 2, 6) == f"{path}:4: {said}"


def test_a_label_may_name_any_class_of_the_task(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(GOOD + "ACGTACGTAC,2\n")
    assert read_table(path, 3, 6).targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize("column", ["sequence", "label"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, column):
    path = tmp_path / "train.csv"
    path.write_text(GOOD.replace(column, "value"))
    message = refusal(read_table, path, 2, 6)
    assert message.startswith(f"{path}: has no column '{column}'")
    assert "value" in message


@pytest.mark.parametrize("content", ["", "sequence,label\n", "sequence,label\nACGTAC,1\nTTTTTT,1\n"])
def test_a_file_of_fewer_than_two_classes_is_refused(tmp_path, content):
    path = tmp_path / "train.csv"
    path.write_text(content)
    assert refusal(read_table, path, 2, 6).startswith(f"{path}: ")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe\x00\x81" * 8)
    assert refusal(read_table, path, 2, 6).startswith(f"{path}: ")


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert len(read_table(path, 2, 6)) == 2


def test_a_folder_gives_its_splits_in_the_order_train_dev_test(tmp_path):
    for name in ("test.csv", "train.tsv", "dev.csv"):
        (tmp_path / name).write_text(GOOD.replace(",", "\t") if name.endswith("tsv") else GOOD)
    splits = read_splits(tmp_path, 2, 6)
    assert list(splits) == ["train", "dev", "test"]
    assert [split.path.name for split in splits.values()] == ["train.tsv", "dev.csv", "test.csv"]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([], "there is none of them"),
        (["train.csv"], "there is train$"),
        (["dev.csv", "test.csv"], "there is dev, test$"),
        (["train.csv", "train.tsv", "dev.csv"], "holds train.csv and train.tsv; remove one"),
    ],
)
def test_a_folder_without_the_files_it_needs_is_refused(tmp_path, there, said):
    for name in there:
        (tmp_path / name).write_text(GOOD)
    message = refusal(read_splits, tmp_path, 2, 6)
    assert message.startswith(f"{tmp_path}: ")
    assert re.search(said, message)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    message = refusal(read_splits, tmp_path / "nowhere", 2, 6)
    assert message.startswith(f"{tmp_path / 'nowhere'}: no such folder")
    assert "--data" in message
