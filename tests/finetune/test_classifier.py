"""Whose weights a classifier starts from, and which tokens it reads."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from finetune.classifier import TokenizedSequences, load_tokenizer, new_model

LETTERS = "ATCG"
CLS, SEP, UNK, FIRST_KMER = 2, 3, 1, 5


def encoder(classifier) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in classifier.bert.state_dict().items() if "pooler" not in name}


def test_a_pretrained_classifier_starts_from_every_weight_of_the_checkpoint(checkpoint, model):
    found = encoder(new_model(checkpoint, True, 2, 0))
    expected = model.sequence.bert.state_dict()
    assert found.keys() <= expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_a_classifier_from_scratch_has_the_same_shape_and_other_weights(checkpoint, model):
    found, expected = encoder(new_model(checkpoint, False, 2, 0)), model.sequence.bert.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: expected[name].shape for name in found}
    drawn = [name for name in found if name.endswith("weight") and "LayerNorm" not in name]
    assert "encoder.layer.0.attention.self.query.weight" in drawn
    assert not any(torch.equal(found[name], expected[name]) for name in drawn)


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_seed_decides_the_drawn_weights(checkpoint, pretrained):
    one, again, other = (new_model(checkpoint, pretrained, 2, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_classifier_has_an_output_for_each_class(checkpoint, pretrained):
    assert new_model(checkpoint, pretrained, 5, 0)(torch.tensor([[CLS, 7, SEP]])).logits.shape == (1, 5)


def test_tokens_are_dnaberts(checkpoint, labelled):
    """[CLS], then 5 plus each 3-mer read as a number of base 4 in the order A, T, C, G, then [SEP]."""
    sequence = "GATTACANCCGGTTTT"
    kmers = [sequence[i : i + 3] for i in range(len(sequence) - 2)]
    ids = [
        UNK if "N" in kmer else FIRST_KMER + sum(4 ** (2 - i) * LETTERS.index(x) for i, x in enumerate(kmer))
        for kmer in kmers
    ]
    tokens = TokenizedSequences.of(labelled([(sequence, 1)]), load_tokenizer(checkpoint))
    assert tokens[0] == {"input_ids": [CLS, *ids, SEP], "labels": 1}


def test_tokens_are_those_of_dnaberts_vocabulary_file(checkpoint, shared_data):
    expected = (shared_data / "dnabert" / "3mer" / "vocab.txt").read_text().split()
    assert (checkpoint / "sequence" / "vocab.txt").read_text().split() == expected
    assert load_tokenizer(checkpoint).convert_ids_to_tokens(range(len(expected))) == expected


def test_padding_does_not_change_what_is_predicted(checkpoint, labelled):
    rng = np.random.default_rng(0)
    rows = [("".join(rng.choice(list("ACGT"), n)), 0) for n in (12, 40)]
    tokenizer = load_tokenizer(checkpoint)
    tokens, collate = TokenizedSequences.of(labelled(rows), tokenizer), DataCollatorWithPadding(tokenizer)
    classifier = new_model(checkpoint, True, 2, 0).eval()
    with torch.no_grad():
        alone, both = (classifier(**collate(batch)).logits for batch in ([tokens[0]], [tokens[0], tokens[1]]))
    torch.testing.assert_close(both[0], alone[0], rtol=0, atol=1e-6)
