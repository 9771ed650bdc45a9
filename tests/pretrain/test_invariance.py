"""The curve of a run does not depend on how its batch lies over ranks and rounds of micro-batches."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BATCH = 10
NAMES = ("loss/total", "loss/mgm", "loss/ngsp", "loss/srm", "optim/grad_norm")


def curves(run_dir: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {name: [row[name] for row in rows if name in row] for name in NAMES}


@pytest.fixture(scope="module")
def run(tmp_path_factory, pretrain, ds_config):
    """A function that trains 30 steps on so many ranks, in so many rounds; gives its curves."""

    def train(n_ranks: int, rounds: int, *more: str, batch: int = BATCH) -> dict[str, list[float]]:
        out = tmp_path_factory.mktemp("invariance")
        micro_batch = -(-batch // (n_ranks * rounds))
        given = ("--ds_config", str(ds_config(batch, micro_batch)), "--steps", "30", "--out", str(out))
        pretrain(n_ranks, *given, "--workers", "0", "--eval_every", "30", *more)
        return curves(out)

    return train


@pytest.fixture(scope="module")
def of_one_rank(run) -> dict[str, list[float]]:
    return run(1, 1)


@pytest.mark.parametrize(("n_ranks", "rounds"), [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_ranks_and_rounds_give_the_curve_of_one(run, of_one_rank, n_ranks, rounds):
    found = run(n_ranks, rounds)
    worst = 0.0
    for name in NAMES:
        assert len(found[name]) == len(of_one_rank[name]) == 30
        for one, other in zip(found[name], of_one_rank[name], strict=True):
            worst = max(worst, abs(one - other) / abs(other))
    print(f"{n_ranks} ranks x {rounds} rounds: {worst:.1e}")
    assert worst <= 1e-5


def test_negatives_of_a_round_do_not_depend_on_the_ranks_that_share_it(run):
    whole = run(1, 1, batch=8)
    one, two = (run(n_ranks, 2, "--srm_negatives", "micro", batch=8) for n_ranks in (1, 2))
    for name in NAMES:
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    # Half as many pairs to tell from: at first the loss is lower by about log 2.
    assert 0.4 < whole["loss/srm"][0] - one["loss/srm"][0] < 1.0
