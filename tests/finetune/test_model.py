"""Whose weights a model of a task starts from, which tokens it reads, and what its heads read."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from data_prep.bases import encode
from data_prep.kmers import kmer_tokenizer
from finetune import training
from finetune.config import FinetuneConfig
from finetune.encoder import Encoder
from finetune.examples import Examples
from finetune.model import OverPeople, Target, TaskModel, load, new_model, save
from finetune.training import Collator, Row, Rows
from pretrain.model import image_size, region_image

LETTERS = "ATCG"
CLS, SEP, UNK, FIRST_KMER = 2, 3, 1, 5
TWO = Target("classes", ("no", "yes"))


@pytest.fixture(scope="session")
def encoder(checkpoint) -> Encoder:
    return Encoder.at(checkpoint)


def made(encoder: Encoder, pretrained: bool = True, target: Target = TWO, seed: int = 0, **more) -> TaskModel:
    return new_model(
        encoder, target, more.pop("modality", "sequence"), pretrained, more.pop("longest", 0), seed, **more
    )


def of_encoder(model: TaskModel) -> dict[str, torch.Tensor]:
    return model.sequence.state_dict()


def draw(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length))


def test_a_pretrained_model_starts_from_every_weight_of_the_checkpoint(encoder, model):
    found, expected = of_encoder(made(encoder)), model.sequence.bert.state_dict()
    assert found.keys() <= expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)
    of_regions = made(encoder, modality="multimodal").region.state_dict()
    assert all(torch.equal(tensor, of_regions[name]) for name, tensor in model.region.state_dict().items())


def test_a_model_from_scratch_has_the_same_shape_and_other_weights(encoder, model):
    found, expected = of_encoder(made(encoder, pretrained=False)), model.sequence.bert.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: expected[name].shape for name in found}
    fixed = ("LayerNorm", "position_embeddings")  # which every pre-training starts from
    drawn = [name for name in found if name.endswith("weight") and not any(part in name for part in fixed)]
    assert "encoder.layer.0.attention.self.query.weight" in drawn
    assert not any(torch.equal(found[name], expected[name]) for name in drawn)


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_seed_decides_the_drawn_weights(encoder, pretrained):
    one, again, other = (made(encoder, pretrained, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_tokens_are_dnaberts(encoder):
    """[CLS], then 5 plus each 3-mer read as a number of base 4 in the order A, T, C, G, then [SEP]."""
    sequence = "GATTACANCCGGTTTT"
    kmers = [sequence[i : i + 3] for i in range(len(sequence) - 2)]
    ids = [
        UNK if "N" in kmer else FIRST_KMER + sum(4 ** (2 - i) * LETTERS.index(x) for i, x in enumerate(kmer))
        for kmer in kmers
    ]
    assert encoder.tokens.ids(sequence, 64).tolist() == [CLS, *ids, SEP]
    assert encoder.tokens.ids(sequence, 10).tolist() == [CLS, *ids[:8], SEP]
    assert encoder.tokens.ids(sequence, 64).tolist() == kmer_tokenizer(3).encode(sequence).ids


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_a_folder_of_dnaberts_loads_with_its_ids(shared_data, tmp_path, k):
    """Its files as they are published, and weights of a small encoder under the names of that time."""
    for path in (shared_data / "dnabert" / f"{k}mer").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    shape = '"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32'
    config = (tmp_path / "config.json").read_text().rstrip().removesuffix("}")
    (tmp_path / "config.json").write_text(f"{config}, {shape}}}")
    torch.manual_seed(0)
    weights = BertForMaskedLM(BertConfig.from_json_file(tmp_path / "config.json")).state_dict()
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in weights.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in old.items()}
    torch.save(old, tmp_path / "pytorch_model.bin")
    encoder = Encoder.at(tmp_path)
    assert encoder.k == k
    vocabulary = (tmp_path / "vocab.txt").read_text().split()
    sequence = "ACGTTGCAAT"
    expected = [vocabulary.index(sequence[i : i + k]) for i in range(len(sequence) - k + 1)]
    assert encoder.tokens.ids(sequence, 64)[1:-1].tolist() == expected
    found = of_encoder(made(encoder))
    assert found
    assert all(torch.equal(tensor, weights[f"bert.{name}"]) for name, tensor in found.items())


def batch(encoder: Encoder, examples: Examples, rows: list[int], opposite: bool = False) -> dict[str, torch.Tensor]:
    return Collator(encoder.tokens, 64)([Row(examples, row, opposite) for row in rows])


def test_padding_and_the_batch_do_not_change_what_is_predicted(encoder, labelled):
    rng = np.random.default_rng(0)
    examples = labelled([(draw(rng, n), 0) for n in (12, 40, 12)])
    model = made(encoder).eval()
    with torch.no_grad():
        alone, all_ = (model(**batch(encoder, examples, rows))["logits"] for rows in ([0], [0, 1, 2]))
    torch.testing.assert_close(all_[0], alone[0], rtol=0, atol=1e-6)


def test_each_sequence_of_a_batch_is_read_once(encoder):
    sequences = ["ACGTACGT", "CCCCGGGG", "ATATATAT"]
    rows = np.array([[[0, 1]], [[0, 2]], [[0, 1]]], np.int32)
    made_batch = batch(encoder, Examples(sequences, rows, np.zeros(3, np.int64), "abc", None), [0, 2])
    assert made_batch["input_ids"].shape == (2, 8)
    assert made_batch["rows"].tolist() == [[[0, 1]], [[0, 1]]]


def test_the_opposite_strand_is_the_reverse_complement(encoder, labelled):
    examples, opposite = labelled([("AACCGTTA", 0)]), labelled([("TAACGGTT", 0)])
    expected = batch(encoder, opposite, [0])["input_ids"]
    assert torch.equal(batch(encoder, examples, [0], opposite=True)["input_ids"], expected)


def test_rows_of_either_strand_are_read_on_both(labelled):
    torch.manual_seed(0)
    rows = Rows(labelled([("AACCGTTA", 0)]), "either")
    assert {rows[0].opposite for _ in range(20)} == {True, False}


def test_a_rows_regions_stand_side_by_side_the_mean_over_its_haplotypes(encoder):
    """Two haplotypes over two regions, beside the mean of the summaries of each haplotype's binding matrix."""
    rng = np.random.default_rng(1)
    sequences = [draw(rng, 30) for _ in range(4)]
    binding = rng.random((4, 4)).astype(np.float16)
    rows = np.arange(4, dtype=np.int32).reshape(1, 2, 2)
    examples = Examples(sequences, rows, np.zeros(1, np.int64), "a", None, binding=binding)
    model = made(encoder, modality="multimodal", target=replace(TWO, regions=2)).eval()
    given = batch(encoder, examples, [0])
    with torch.no_grad():
        found = model(**given)["logits"]
        encoded = model.sequence(input_ids=given["input_ids"]).last_hidden_state.mean(1)[given["rows"]]
        matrices = torch.from_numpy(binding.astype(np.float32).reshape(2, 2, 4))
        mean, std = torch.full((4,), 0.5), torch.full((4,), 0.1)
        image = region_image(matrices, mean, std, image_size(model.region))
        by_region = encoded.mean((0, 1))
        expected = model.head(torch.cat([by_region[0], by_region[1], model.region(image).mean(0)]))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def test_what_people_share_does_not_drown_what_they_differ_in():
    """Features are normalised over the batch, in evaluation over the batches seen; a lone row by those too."""
    torch.manual_seed(0)
    people = 1000 + 1e-2 * torch.randn(64, 3, dtype=torch.float64)
    over_people = OverPeople(3).double()
    normalised = over_people(people)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-3)
    for _ in range(200):
        over_people(people)
    lone = over_people(people[:1])
    torch.testing.assert_close(lone, over_people.eval()(people)[:1], rtol=0, atol=1e-9)
    torch.testing.assert_close(lone, normalised[:1], rtol=0, atol=0.1)


@pytest.mark.parametrize("context", [10, 11])
def test_a_nucleotide_is_read_from_the_kmer_over_it(encoder, context):
    """The last k-mers before the head are made to tell their own ids."""
    positions, length = 8, 8 + 2 * context
    sequence = draw(np.random.default_rng(2), length)
    model = made(encoder, target=Target("nucleotides", ("none", "acceptor", "donor"), positions))
    ids = torch.from_numpy(encoder.tokens.ids(sequence, 64))
    read = ids[model.kmers_over_nucleotides(len(ids))]
    over = [encoder.tokens.ids(sequence[i - 1 : i + 2], 64)[1] for i in range(context, context + positions)]
    assert read.tolist() == over


def test_a_nucleotide_is_read_beside_the_binding_of_its_sequence(encoder, labelled):
    rng = np.random.default_rng(7)
    examples = replace(labelled([(draw(rng, 28), 0) for _ in range(2)]), binding=rng.random((2, 4)).astype(np.float16))
    target = Target("nucleotides", ("none", "acceptor", "donor"), positions=8)
    model = made(encoder, target=target, modality="multimodal").eval()
    given = batch(encoder, examples, [0, 1]) | {"labels": None}
    with torch.no_grad():
        found = model(**given)["logits"]
        other = model(**given | {"binding": given["binding"].flip(0)})["logits"]
    assert found.shape == (2, 8, 3)
    shift = (other - found)[0]
    torch.testing.assert_close(shift, shift[:1].expand(8, -1))
    assert shift.abs().min() > 0


def test_longer_sequences_than_the_encoder_reads_get_their_positions(encoder):
    model = made(encoder, longest=150).eval()
    table = model.sequence.embeddings.position_embeddings.weight
    assert len(table) == 150
    assert torch.equal(table[:64], made(encoder).sequence.embeddings.position_embeddings.weight)
    alike = table.detach() @ table.detach().T
    for place in (63, 64, 100, 128):  # no place far away looks like a neighbour
        assert set(alike[place].topk(3).indices.tolist()) == {place - 1, place, place + 1}
    with torch.no_grad():
        assert model.sequence(input_ids=torch.full((1, 150), 7)).last_hidden_state.shape == (1, 150, 32)


@pytest.mark.parametrize("regions", [1, 2])
def test_a_saved_model_predicts_the_same(encoder, tmp_path, regions):
    rng = np.random.default_rng(3)
    rows = np.arange(3 * regions, dtype=np.int32).reshape(3, 1, regions)
    sequences = [draw(rng, 30) for _ in range(rows.size)]
    examples = Examples(sequences, rows, np.zeros(3, np.int64), "abc", None)
    model = made(encoder, target=replace(TWO, regions=regions))
    given = batch(encoder, examples, [0, 1, 2])
    model(**given)  # in training, which moves what is kept of the batches
    save(model.eval(), encoder, tmp_path / "saved", task="promoter")
    again, read, about = load(tmp_path / "saved")
    assert (about["task"], again.target, read.k) == ("promoter", model.target, 3)
    with torch.no_grad():
        torch.testing.assert_close(again(**given)["logits"], model(**given)["logits"], rtol=0, atol=0)


# What is trained.


def trained_by(model: TaskModel, config: FinetuneConfig, examples: Examples, encoder: Encoder, folder) -> list[str]:
    """The names of the weights that a short training changes."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = training.trainer(model, encoder.tokens, 64, examples, None, config, 0, folder, "test")
    training.fit(trainer)
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


@pytest.fixture
def few(labelled) -> Examples:
    rng = np.random.default_rng(4)
    return labelled([(draw(rng, 20), n % 2) for n in range(16)])


def test_freezing_trains_the_head_alone(encoder, few, tmp_path):
    config = FinetuneConfig("promoter", freeze=True, epochs=1, batch_size=8)
    model = made(encoder)
    training.restrict(model, config)
    assert trained_by(model, config, few, encoder, tmp_path) == ["head.weight", "head.bias"]


def test_lora_trains_low_ranks_and_the_head_and_can_be_merged(encoder, few, tmp_path):
    config = FinetuneConfig("promoter", lora=2, epochs=1, batch_size=8, learning_rate=1e-2)
    model = made(encoder, modality="multimodal")
    examples = replace(few, binding=encoder.scanner.scan([encode(sequence) for sequence in few.sequences]))
    training.restrict(model, config)
    changed = trained_by(model, config, examples, encoder, tmp_path)
    assert all("lora_" in name or name.startswith("head.") for name in changed)
    assert {name.split(".")[0] for name in changed} == {"sequence", "region", "head"}
    given = batch(encoder, examples, [0, 1])
    model.eval()
    with torch.no_grad():
        before = model(**given)["logits"]
        training.merge_adapters(model)
        assert not any("lora_" in name for name in model.state_dict())
        torch.testing.assert_close(model(**given)["logits"], before, rtol=0, atol=1e-5)


def test_layers_are_unfrozen_from_the_top_each_pair_at_half_of_the_rate_above(encoder, few, tmp_path):
    """Two layers, so three stages: the head from step 0 on, both layers from 2 on, the embeddings from 4 on."""
    config = FinetuneConfig("expression", unfreeze=2, epochs=4, batch_size=8)
    model = made(encoder)
    trainer = training.trainer(model, encoder.tokens, 64, few, None, config, 0, tmp_path, "test")
    trainer.create_optimizer_and_scheduler(8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(one)].split(".")[1] for one in group["params"]} for group in trainer.optimizer.param_groups]
    assert [a | b for a, b in zip(groups[::2], groups[1::2], strict=True)] == [
        {"weight", "bias"},
        {"encoder"},
        {"embeddings"},
    ]
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups][::2])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    whole = [min(1.0, (8 - step) / 7) for step in range(8)]
    assert [row[0] for row in rates] == pytest.approx([2e-3 * share for share in whole])
    assert [row[1] for row in rates] == pytest.approx([1e-3 * share * (step >= 2) for step, share in enumerate(whole)])
    assert [row[2] for row in rates] == pytest.approx([5e-4 * share * (step >= 4) for step, share in enumerate(whole)])


def test_what_is_still_frozen_does_not_change(encoder, few, tmp_path):
    config = FinetuneConfig("promoter", unfreeze=100, epochs=1, batch_size=8, optimizer="lamb")
    model = made(encoder)
    changed = trained_by(model, config, few, encoder, tmp_path)
    assert changed == ["head.weight", "head.bias"]


def test_features_are_normalised_by_the_final_weights(encoder, tmp_path):
    """Trained so fast that what the batches before left would be far off."""
    rng = np.random.default_rng(4)
    sequences = [draw(rng, 30) for _ in range(32)]
    rows = np.arange(32, dtype=np.int32).reshape(16, 1, 2)
    people = Examples(sequences, rows, np.arange(16) % 2, [*map(str, range(16))], tmp_path)
    config = FinetuneConfig("hscr", epochs=4, batch_size=8, learning_rate=1e-2)
    model = made(encoder, target=replace(TWO, regions=2))
    trainer = training.trainer(model, encoder.tokens, 64, people, None, config, 0, tmp_path / "run", "test")
    training.fit(trainer)
    normalised = []
    model.eval().normalise.register_forward_hook(lambda _, __, output: normalised.append(output))
    with torch.no_grad():
        model(**batch(encoder, people, [*range(16)]))
    torch.testing.assert_close(normalised[0].mean(0), torch.zeros(64), rtol=0, atol=1e-3)
    torch.testing.assert_close(normalised[0].var(0, correction=0), torch.ones(64), rtol=0, atol=0.6)
