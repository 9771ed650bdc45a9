"""Scores of bases: by hand where that can be, else against their definition, written down again without batches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from data_prep.bpe import train_tokenizer
from finetune.attribution import (
    Explained,
    attention,
    gradients,
    integrated_gradients,
    location,
    masked,
    mean_change,
    mutagenesis,
    spread,
    token_attention,
    token_spans,
)
from finetune.encoder import Encoder
from finetune.model import Target, new_model, save
from finetune.scoring import Scorer
from pretrain.config import ModelConfig
from pretrain.convert import write_bpe_tokenizer

COMPLEMENT = str.maketrans("ACGT", "TGCA")
LETTERS = "ATCG"
TWO, TISSUES = Target("classes", ("other", "promoter")), Target("values", ("leaf", "root", "seed"))
SITES = Target("nucleotides", ("none", "acceptor", "donor"), 8)
SEQUENCE = "GATTACACCGGTTTTNACGTAGC"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A RoBERTa of a few thousand weights over BPE tokens, as transformers keeps it."""
    folder = tmp_path_factory.mktemp("roberta")
    rng = np.random.default_rng(1)
    tokenizer = train_tokenizer(("".join(rng.choice(list("ACGT"), 300)) for _ in range(20)), 300)
    tokenizer.save(str(folder / "trained.json"))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=34, pad_token_id=1, type_vocab_size=1, **shape
    )
    RobertaModel(config).save_pretrained(folder)
    write_bpe_tokenizer(folder, folder / "trained.json", ModelConfig(max_tokens=32))
    return folder


@pytest.fixture(scope="module")
def scorer_of(checkpoint, roberta, tmp_path_factory) -> Callable[..., Scorer]:
    """A function that makes a model with drawn weights, whose head is not all but zero."""

    def make(kind: str, target: Target = TWO, modality: str = "sequence", both_strands: bool = False) -> Scorer:
        encoder = Encoder.at({"bert": checkpoint, "roberta": roberta}[kind])
        longest = {"bert": 22, "roberta": 32}[kind]
        model = new_model(encoder, target, modality, True, longest, 1)
        torch.nn.init.normal_(model.head.weight)
        folder = tmp_path_factory.mktemp("drawn") / "model"
        about = {"task": "promoter", "longest": longest, "bp": 30, "both_strands": both_strands, "row_shape": [1, 1]}
        save(model, encoder, folder, **about)
        return Scorer.of(folder)

    return make


def mutated(explained: Explained, sequence: str) -> np.ndarray:
    return mean_change(mutagenesis(explained, sequence))


def value(scorer: Scorer, output: int, sequence: str) -> float:
    """What is explained, from what finetune/predict.py would say of one strand."""
    (found,) = scorer([sequence])
    if scorer.model.target.kind == "nucleotides":
        found = found[4]
    return found[output] if scorer.model.target.kind == "values" else np.log(found[output] / (1 - found[output]))


@pytest.mark.parametrize(("kind", "target", "output"), [("bert", TWO, 1), ("bert", TWO, 0), ("roberta", TISSUES, 1)])
def test_what_is_explained_is_the_logit_of_a_probability_or_a_value(scorer_of, kind, target, output):
    scorer = scorer_of(kind, target)
    found = Explained(scorer, output, batch_size=2)([SEQUENCE, "ACGTACGTAC", SEQUENCE[::-1]])
    assert found == pytest.approx(
        [value(scorer, output, s) for s in (SEQUENCE, "ACGTACGTAC", SEQUENCE[::-1])], abs=1e-4
    )


def test_the_scores_of_kmers_are_spread_to_the_bases_below_them():
    """Three 3-mers over five bases: a third of each for each of its bases, and nothing of [CLS] and [SEP]."""
    tokens = SequenceOfK3
    spans = token_spans(tokens, "ACGTA", 64)
    assert spans.tolist() == [[0, 0], [0, 3], [1, 4], [2, 5], [0, 0]]
    assert spread(np.array([9.0, 3.0, 6.0, 9.0, 9.0]), spans, 5).tolist() == [1.0, 3.0, 6.0, 5.0, 3.0]


def test_bases_that_are_not_read_score_0():
    spans = token_spans(SequenceOfK3, "ACGTACGT", 4)
    assert spans.tolist() == [[0, 0], [0, 3], [1, 4], [0, 0]]
    assert spread(np.full(4, 3.0), spans, 8).tolist() == [1, 2, 2, 1, 0, 0, 0, 0]


class SequenceOfK3:
    """What `token_spans` asks of a tokenizer of 3-mers."""

    k = 3


def test_bpe_tokens_lie_over_the_bases_that_they_spell(roberta):
    tokens = Encoder.at(roberta).tokens
    sequence = "".join(np.random.default_rng(2).choice(list("ACGT"), 60))
    ids, spans = tokens.ids(sequence, 32), token_spans(tokens, sequence, 32)
    assert len(ids) == len(spans)
    assert [tokens.tokenizer.decode([number]) for number in ids[1:-1]] == [sequence[a:b] for a, b in spans[1:-1]]
    assert spans[[0, -1]].tolist() == [[0, 0], [0, 0]]
    cut = token_spans(tokens, sequence * 3, 32)
    assert cut[-2, 1] == 180, "promoters are cut at their beginning"
    assert cut[1, 0] > 0


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_attention_to_the_tokens_adds_up_to_1_and_is_that_of_the_last_layer(scorer_of, kind):
    scorer = scorer_of(kind)
    found = token_attention(Explained(scorer, 1), SEQUENCE)
    assert found.sum() == pytest.approx(1)
    assert scorer.model.sequence.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(found, last_attention(scorer, SEQUENCE).mean(0), atol=1e-6)


def test_a_nucleotide_is_explained_by_its_logit_and_the_attention_of_its_token(scorer_of):
    """Of 22 bp the 8 from base 7 on are predicted; the fifth of them, base 11, is that of the 3-mer from base 10 on,
    which stands behind [CLS] and ten others."""
    scorer, window = scorer_of("bert", SITES), SEQUENCE[:22]
    explained = Explained(scorer, 2, place=4)
    assert explained([window, window[::-1]]) == pytest.approx([value(scorer, 2, s) for s in (window, window[::-1])])
    np.testing.assert_allclose(token_attention(explained, window), last_attention(scorer, window)[11], atol=1e-6)


def last_attention(scorer: Scorer, sequence: str) -> np.ndarray:
    """The last layer's attention from its queries and keys, the mean over heads, [tokens, tokens]."""
    model, batch = scorer.model.sequence, scorer.batch(scorer.examples([sequence]))
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-2][0]
        of_layer = model.encoder.layer[-1].attention.self
        query, key = (part(states).unflatten(1, (2, 16)).transpose(0, 1) for part in (of_layer.query, of_layer.key))
        return (query @ key.transpose(1, 2) / 4).softmax(-1).mean(0).numpy()


@pytest.mark.parametrize(
    ("kind", "target", "modality"),
    [
        ("bert", TWO, "sequence"),
        ("bert", TWO, "multimodal"),
        ("bert", SITES, "sequence"),
        ("roberta", TISSUES, "sequence"),
    ],
)
def test_integrated_gradients_add_up_to_the_change_from_the_masked_sequence(scorer_of, kind, target, modality):
    scorer = scorer_of(kind, target, modality)
    explained = Explained(scorer, 1)
    batch = scorer.batch(scorer.examples([SEQUENCE]))
    found = integrated_gradients(explained, SEQUENCE)
    assert found.shape == batch["input_ids"].shape[1:]
    assert found[[0, -1]].tolist() == [0, 0]
    with torch.no_grad():
        at_end = explained.of(scorer.model(**batch)["logits"])
        without = batch | {"input_ids": masked(scorer.encoder.tokens, batch["input_ids"])}
        at_start = explained.of(scorer.model(**without)["logits"])
    assert found.sum() == pytest.approx(float(at_end - at_start), rel=2e-3, abs=1e-4)
    assert np.abs(found).max() > 1e-3
    assert gradients(explained, SEQUENCE).sum() == pytest.approx(found.sum())


def test_the_gradients_start_from_a_sequence_of_masks(scorer_of):
    scorer = scorer_of("roberta")
    ids = scorer.batch(scorer.examples([SEQUENCE]))["input_ids"]
    words = scorer.encoder.tokens.tokenizer.convert_ids_to_tokens(masked(scorer.encoder.tokens, ids)[0])
    assert words == ["<s>", *["<mask>"] * (len(words) - 2), "</s>"]


@pytest.mark.parametrize(("kind", "modality"), [("bert", "sequence"), ("bert", "multimodal"), ("roberta", "sequence")])
def test_mutagenesis_is_the_change_of_each_substitution(scorer_of, kind, modality):
    scorer = scorer_of(kind, modality=modality)
    sequence = SEQUENCE[8:20]
    found = mutagenesis(Explained(scorer, 1, batch_size=5), sequence)
    reference = value(scorer, 1, sequence)
    for place, base in enumerate(sequence):
        expected = [
            0.0
            if "N" in (base, alt) or alt == base
            else value(scorer, 1, sequence[:place] + alt + sequence[place + 1 :]) - reference
            for alt in LETTERS
        ]
        assert found[place] == pytest.approx(expected, abs=1e-4)
    assert np.abs(found).max() > 0.01


def test_a_base_matters_by_its_mean_absolute_substitution():
    change = np.array([[0.0, -3.0, 1.0, 2.0], [0.5, 0.0, -0.25, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert mean_change(change).tolist() == [2.0, 0.25, 0.0]


def test_bases_past_what_the_model_reads_change_nothing(scorer_of):
    """22 tokens are 20 3-mers over 22 bp."""
    explained = Explained(scorer_of("bert"), 1)
    sequence = SEQUENCE + "ACGTACG"
    for method in (attention, mutated, gradients):
        scores = method(explained, sequence)
        assert scores.shape == (30,)
        assert scores[22:] == pytest.approx(np.zeros(8), abs=1e-6)
        assert np.abs(scores[:22]).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_importance_of_location_is_the_change_where_bases_become_their_complements(scorer_of, kind):
    scorer = scorer_of(kind)
    sequence = SEQUENCE[8:22]
    found = location(Explained(scorer, 1, batch_size=7), sequence)
    assert found.shape == (6, 14)
    reference = value(scorer, 1, sequence)
    for size in range(1, 7):
        for start in range(14):
            if start + size > 14:
                assert np.isnan(found[size - 1, start])
                continue
            end = start + size
            flipped = sequence[:start] + sequence[start:end].translate(COMPLEMENT) + sequence[end:]
            assert found[size - 1, start] == pytest.approx(abs(value(scorer, 1, flipped) - reference), abs=1e-4)
    assert np.nanmax(found) > 0.01


@pytest.mark.parametrize("method", [attention, mutated, gradients])
def test_both_strands_of_a_model_of_both_are_explained(scorer_of, method):
    """The opposite strand's scores are the same ones, read backwards."""
    explained = Explained(scorer_of("bert", both_strands=True), 1)
    sequence = SEQUENCE[:20].replace("N", "A")
    opposite = sequence.translate(COMPLEMENT)[::-1]
    np.testing.assert_allclose(method(explained, opposite)[::-1], method(explained, sequence), atol=1e-5)
    assert explained([sequence]) == pytest.approx(explained([opposite]), abs=1e-5)
