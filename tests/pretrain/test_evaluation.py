"""Evaluation by cell type, samples as text, and the figures of embeddings."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_prep.bases import encode
from data_prep.shard_reader import ShardReader, read_manifest
from kernels.kmer_mask import IGNORED
from pretrain.batches import MicroBatches
from pretrain.config import RunConfig
from pretrain.data_order import MicroBatch
from pretrain.drawing import Embeddings
from pretrain.ds_config import BatchLayout
from pretrain.embedding_figures import draw, tsne
from pretrain.evaluation import Evaluation, evaluate
from pretrain.held_out_samples import described, hidden_bases
from pretrain.model import GeneBERT
from pretrain.run_record import safe_names
from pretrain.trainer import Trainer, to_device

K = 3


class Engine:
    """DeepSpeed's, as far as an evaluation asks."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.eval, self.train = module.eval, module.train

    def __call__(self, *arguments):
        return self.module(*arguments)


@pytest.fixture(scope="module")
def dataset(shards) -> MicroBatches:
    return MicroBatches(ShardReader(shards, "val"), k=K, max_tokens=96, seed=0)


@pytest.fixture(scope="module")
def trainer(shards, model_config, world_of_one) -> Trainer:
    torch.manual_seed(0)
    manifest = read_manifest(shards)
    model = GeneBERT(model_config, torch.tensor(manifest["binding_mean"]), torch.tensor(manifest["binding_std"]))
    with torch.no_grad():  # so that cell types differ
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Trainer(Engine(model), RunConfig(ds_config="", workers=0), BatchLayout.of(9, 1, 4), 20)


@pytest.fixture(scope="module")
def evaluation(trainer, dataset) -> Evaluation:
    return evaluate(trainer, dataset)


@pytest.fixture(scope="module")
def whole(trainer, dataset):
    """All held-out samples as one micro-batch, and the model's outputs."""
    number = np.arange(len(dataset))
    batch = dataset[MicroBatch(number, np.zeros_like(number), np.ones(len(number), np.float32))]
    batch = to_device(batch, torch.device("cpu"))
    rows = trainer.mask(batch, trainer.config.mask_rate)
    with torch.no_grad():
        return batch, rows, trainer.model(rows, batch["binding"])


def test_metrics_by_cell_type_are_those_of_its_samples(evaluation, whole, dataset):
    batch, rows, outputs = whole
    pools = np.array_split(np.arange(len(dataset)), 3)
    for number, name in enumerate(("alpha", "beta", "gamma")):
        own = batch["cell_type"] == number
        labels = rows.masked_labels[own]
        used = labels != IGNORED
        logits = outputs.mgm_logits[own][used]
        ngsp, follows = outputs.ngsp_logits[own], batch["follows"][own]
        hits = sum(
            int((outputs.sequence[i] @ outputs.region[pool].T).argmax() == place)
            for pool in pools
            for place, i in enumerate(pool)
            if own[i]
        )
        expected = {
            "loss/mgm": F.cross_entropy(logits, labels[used]),
            "mgm/accuracy": (logits.argmax(-1) == labels[used]).float().mean(),
            "loss/ngsp": F.cross_entropy(ngsp, follows),
            "ngsp/accuracy": (ngsp.argmax(-1) == follows).float().mean(),
            "srm/recall_at_1": hits / int(own.sum()),
        }
        found = {metric: evaluation.metrics[f"val/{metric}/{name}"] for metric in expected}
        assert found == pytest.approx({metric: float(value) for metric, value in expected.items()}, rel=1e-5)


def test_the_whole_is_the_sum_of_the_cell_types(evaluation, dataset):
    samples = np.bincount(dataset.reader.cell_type)
    for metric in ("ngsp/accuracy", "srm/recall_at_1", "loss/ngsp"):
        by_type = [evaluation.metrics[f"val/{metric}/{name}"] for name in ("alpha", "beta", "gamma")]
        assert evaluation.metrics[f"val/{metric}"] == pytest.approx(np.average(by_type, weights=samples))
    assert evaluation.metrics["val/srm/chance"] == pytest.approx(3 / len(dataset))


def test_embeddings_are_those_of_the_samples_in_order_without_padding(evaluation, whole, dataset):
    _, _, outputs = whole
    for name in ("cls", "sequence", "region"):
        expected = getattr(outputs, name).numpy()
        np.testing.assert_allclose(getattr(evaluation.embeddings, name), expected, rtol=0, atol=1e-5)
    names = np.array(["alpha", "beta", "gamma"])[dataset.reader.cell_type]
    assert evaluation.embeddings.cell_type.tolist() == names.tolist()


def test_samples_show_the_bases_and_the_kmers_that_were_masked(whole, dataset, shards):
    batch, rows, outputs = whole
    samples = described(dataset, batch, rows, outputs)
    assert len(samples) == 3
    reader = ShardReader(shards, "val")
    for number, sample in enumerate(samples):
        stored = reader[number]
        region = stored.meta["starts"].index(sample["start"])
        assert (sample["end"], sample["cell_type"]) == (stored.meta["ends"][region], stored.meta["cell_type"])
        first = int(stored.lengths[:region].sum())
        own = stored.bases[first : first + int(stored.lengths[region])]
        assert bytes(encode(sample["bases"])) in bytes(own)
        assert sample["kmers"]
        masked = {kmer["at"] for kmer in sample["kmers"]}
        for kmer in sample["kmers"]:
            assert sample["bases"][kmer["at"] : kmer["at"] + K] == kmer["true"]
            assert 0 < kmer["probability"] < 1
        for base, hidden in enumerate(sample["hidden"]):
            over = {at for at in range(base - K + 1, base + 1) if 0 <= at <= len(sample["bases"]) - K}
            assert hidden == (over <= masked)
        assert sample["follows"] == bool(batch["follows"][number])


def test_one_masked_base_hides_one():
    assert hidden_bases(np.array([2, 3, 4]), 8, 3).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert hidden_bases(np.array([0, 7]), 8, 3).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert hidden_bases(np.zeros(0, int), 0, 3).tolist() == []


def test_names_of_cell_types_are_safe_and_stay_apart():
    names = ["B cells", "T/NK (CD4+)", "B/cells", "naïve", "???"]
    assert safe_names(names) == ["B_cells", "T_NK_CD4+", "B_cells_3", "na_ve", "_5"]


def embeddings(n: int, n_types: int = 3) -> Embeddings:
    rng = np.random.default_rng(0)
    cell_type = rng.integers(0, n_types, n)
    unit = F.normalize(torch.from_numpy(rng.normal(size=(n, 16)))).float().numpy()
    cls = rng.normal(size=(n_types, 32))[cell_type] * 4 + rng.normal(size=(n, 32))
    return Embeddings(cls.astype(np.float32), unit, unit, np.array([f"type <{t}>" for t in cell_type]))


def test_tsne_keeps_cell_types_together_and_gives_the_same_map_twice():
    some = embeddings(150)
    points = tsne(some.cls)
    np.testing.assert_array_equal(points, tsne(some.cls))
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (some.cell_type[distance.argmin(1)] == some.cell_type).mean() > 0.98


def test_collapsed_embeddings_have_no_map():
    """scikit-learn's t-SNE ends the process on them."""
    assert tsne(np.ones((50, 8), np.float32)) is None
    assert tsne(np.full((50, 8), np.nan, np.float32)) is None
    nearly = np.ones((50, 8), np.float32)
    nearly[0] += 1e-6
    assert np.isfinite(tsne(nearly)).all()


@pytest.mark.parametrize(("n", "n_types", "drawn"), [(120, 25, {"similarity", "tsne"}), (5, 2, {"similarity"})])
def test_figures_are_drawn_of_many_cell_types_and_of_few_samples(tmp_path: Path, n, n_types, drawn):
    paths = draw(tmp_path, 200, embeddings(n, n_types))
    assert paths.keys() == drawn
    for name, path in paths.items():
        assert path == tmp_path / "figures" / f"{name}-000200.png"
        assert matplotlib.image.imread(path).std() > 0.05
