"""The loss and its gradients against float64, and against eager PyTorch in the same dtype."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import infonce_kernels
from kernels.infonce import PANEL_ROWS, info_nce, info_nce_reference
from kernels.infonce_panel import Panel, gradient, log_sum_exps
from tests.kernels.infonce_oracle import (
    EPS,
    Answer,
    Batch,
    answer_of,
    check,
    draw_batch,
    eager,
    exact_answer,
    poisoned,
    size_of_terms,
)

# In the interpreter NumPy warns of what a kernel computes and then masks.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

UPSTREAM = 1.75
WIDTHS, SCALES, DTYPES, LOSSES = (64, 100, 256, 768), (1.0, 100.0), (torch.float32, torch.bfloat16), ("clip", "paper")


def two_pairs(number: int) -> list[tuple[float, str]]:
    """Each loss with one of the scales; the next number takes the other."""
    return [(SCALES[(number + i) % 2], loss) for i, loss in enumerate(LOSSES)]


SMALL = product((1, 2, 63, 64, 65), enumerate(WIDTHS), DTYPES)
FEW = [(n, d, dtype, *pair) for n, (number, d), dtype in SMALL for pair in two_pairs(n + number)]
ALL = set(product((1, 2, 63, 64, 65, 400, 2000), WIDTHS, DTYPES, SCALES, LOSSES))
REST = sorted(ALL - set(FEW), key=str)


@pytest.mark.parametrize(
    ("n", "d", "dtype", "scale", "loss"), FEW + [pytest.param(*case, marks=pytest.mark.slow) for case in REST]
)
def test_loss_and_gradients_equal_those_in_fp64(n, d, dtype, scale, loss, implementation, device):
    batch = draw_batch(n, d, scale, dtype)
    found = answer_of(info_nce, poisoned(batch.to(device)), UPSTREAM, loss=loss)
    check(found, batch, loss, UPSTREAM, dtype)


@pytest.mark.parametrize(("dtype", "d", "scale"), [(torch.float32, 256, 100.0), (torch.bfloat16, 100, 1.0)])
def test_the_batch_of_2000_with_what_runs_by_default(dtype, d, scale, device):
    batch = draw_batch(2000, d, scale, dtype)
    check(answer_of(info_nce, poisoned(batch.to(device)), UPSTREAM), batch, "clip", UPSTREAM, dtype)


COMPARED = [(400, torch.float32, 256, 100.0, "clip"), (400, torch.bfloat16, 64, 100.0, "clip")]
COMPARED += [(400, torch.float32, 100, 1.0, "paper"), (400, torch.bfloat16, 100, 1.0, "clip")]
ALL_COMPARED = set(product((400, 2000), DTYPES, WIDTHS, SCALES, LOSSES))


@pytest.mark.parametrize(
    ("n", "dtype", "d", "scale", "loss"),
    COMPARED + [pytest.param(*case, marks=pytest.mark.slow) for case in sorted(ALL_COMPARED - set(COMPARED), key=str)],
)
def test_errors_are_at_most_twice_those_of_eager_pytorch(n, dtype, d, scale, loss, implementation, device):
    batch = draw_batch(n, d, scale, dtype)
    truth, size = exact_answer(batch, loss), size_of_terms(batch, loss)
    ours = answer_of(info_nce, batch.to(device), loss=loss).errors(truth, size)
    theirs = answer_of(eager, batch.to(device), loss=loss).errors(truth, size)
    # Roundings of eager's may happen to cancel: below 8 ulp nobody is better.
    assert all(error <= 2 * theirs[part] + 8 * EPS for part, error in ours.items()), (ours, theirs)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_closed_form_is_the_definition_and_its_gradient(loss):
    batch = Batch(*(tensor.double() for tensor in draw_batch(20, 16, 14.3)))
    truth, defined = exact_answer(batch, loss, UPSTREAM), answer_of(info_nce_reference, batch, UPSTREAM, loss=loss)
    for part, value in vars(truth).items():
        torch.testing.assert_close(getattr(defined, part), value, rtol=1e-12, atol=1e-13)


def test_the_gradient_of_the_scale_is_the_slope_of_the_loss(implementation, device):
    batch = draw_batch(40, 64, 10.0).to(device)
    above, below = (info_nce(*batch._replace(scale=batch.scale + step)) for step in (0.05, -0.05))
    slope = float(above - below) / 0.1
    # The losses, of about 2, are right to some 2e-7, so their difference over 0.1 to 1e-5; the slope is about 0.1.
    assert float(answer_of(info_nce, batch).scale) == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_that_are_almost_all_recognised(loss, implementation, device):
    # The loss and its gradients, some 1e-2 for `clip` and 1e-10 for `paper`, are then small differences of numbers of
    # the size of the scale, of which an ulp is 8e-6.
    batch = draw_batch(130, 64, 100.0, nearness=6.0)
    truth = exact_answer(batch, loss)
    ours = answer_of(info_nce, batch.to(device), loss=loss)
    check(ours, batch, loss)
    assert float((ours.loss - truth.loss).abs()) <= 4 * EPS


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_that_are_all_mistaken_for_others(loss, implementation, device):
    # Others lie 200 above the matched ones: e to that power is no fp32 number.
    axis = F.normalize(torch.ones(70, 64), dim=1) * torch.tensor([1.0, -1.0]).repeat(35)[:, None]
    batch = Batch(axis, -axis, torch.tensor([100.0]), torch.ones(70))
    check(answer_of(info_nce, batch.to(device), loss=loss), batch, loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_far_below_the_scale_do_not_underflow(loss, implementation, device):
    one = F.normalize(torch.ones(70, 64, device=device), dim=1)
    batch = Batch(one, -one, torch.tensor([100.0], device=device), torch.ones(70, device=device))
    found = answer_of(info_nce, batch, loss=loss)
    # Every logit is -100, to some ulp of it, and every probability 1/70.
    assert float(found.loss) == pytest.approx(np.log(70), abs=8 * EPS * 100)
    assert abs(float(found.scale)) <= 8 * EPS * 100


def test_chance_at_scale_zero(implementation, device):
    batch = draw_batch(70, 16)._replace(scale=torch.zeros(1), weight=torch.ones(70))
    assert info_nce(*batch.to(device)).item() == pytest.approx(np.log(70), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("panel_rows", "programs"), [(100, 512), (1000, 1), (130, 4)])
def test_panels_and_runs_of_tiles_of_any_length(panel_rows, programs, dtype, loss, implementation, device, monkeypatch):
    # 300 columns are 5 tiles; 4 programs for 2 tiles of rows take runs of 3, so the last tile of the last lies outside.
    monkeypatch.setattr("kernels.infonce.PANEL_ROWS", panel_rows)
    monkeypatch.setattr("kernels.infonce_kernels.PROGRAMS", programs)
    batch = draw_batch(300, 64, 14.3, dtype)
    check(answer_of(info_nce, poisoned(batch.to(device)), loss=loss), batch, loss, dtype=dtype)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_runs_give_the_same_bits(loss, implementation, device):
    batch = draw_batch(5000 if device.type == "cuda" else 130, 64, 30.0).to(device)
    first, second = (answer_of(info_nce, batch, loss=loss) for _ in range(2))
    assert all(torch.equal(value, getattr(second, part)) for part, value in vars(first).items())


class LiveMemory(TorchDispatchMode):
    """Records the most bytes that the results of operations hold at a time, and the largest result."""

    def __init__(self):
        super().__init__()
        self.peak = self.largest = 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.storages = {at: (storage, size) for at, (storage, size) in self.storages.items() if not storage.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


def test_memory_grows_with_the_batch_not_with_its_square(implementation, device, monkeypatch):
    # So many panels that a vector kept of each would be seen; in the interpreter, few.
    n, d, panel_rows = 512, 64, 64 if implementation == "triton" and device.type == "cpu" else 1
    monkeypatch.setattr("kernels.infonce.PANEL_ROWS", panel_rows)
    leaves = [tensor.requires_grad_() for tensor in draw_batch(n, d, 14.3).to(device)[:3]]
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with LiveMemory() as memory, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = info_nce(*leaves, torch.ones(n, device=device))
        between = sum(kept.values())
        loss.backward()
    both_embeddings, panel = 2 * n * d * 4, panel_rows * n * 4
    assert max(both_embeddings, panel) <= n * n * 4 / 4  # a quarter of the matrix
    assert memory.largest <= max(both_embeddings, panel)
    assert memory.peak <= 4 * both_embeddings
    assert both_embeddings <= between <= 2 * both_embeddings


def test_a_batch_without_rows(implementation, device):
    batch = Batch(
        *(torch.ones(0, 64, device=device) for _ in range(2)), *(torch.ones(n, device=device) for n in (1, 0))
    )
    found = answer_of(info_nce, batch)
    assert found.loss == 0
    assert found.scale == 0
    assert found.sequence.shape == found.region.shape == (0, 64)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_padding_alone(loss, implementation, device):
    batch = draw_batch(70, 64, 14.3).to(device)
    found = answer_of(info_nce, poisoned(batch._replace(weight=torch.zeros(70, device=device))), loss=loss)
    assert all((value == 0).all() for value in vars(found).values())


def test_inputs_of_any_stride(implementation, device):
    batch = draw_batch(70, 64, 14.3)
    by_column = batch.sequence.to(device).T.contiguous().T
    repeated = batch.region[:1].to(device).expand(70, 64)
    weight = torch.full((70, 3), torch.nan, device=device)
    weight[:, 1] = batch.weight.to(device)
    assert by_column.stride() == (1, 70)
    assert weight[:, 1].stride() == (3,)
    found = answer_of(info_nce, Batch(by_column, repeated, batch.scale.to(device), weight[:, 1]))
    check(found, batch._replace(region=batch.region[:1].expand(70, 64)))


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)]
)
def test_other_dtypes_are_computed_in_fp32_and_gradients_have_the_inputs_dtypes(dtypes, implementation, device):
    batch = draw_batch(70, 64, 14.3)
    batch = batch._replace(sequence=batch.sequence.to(dtypes[0]), region=batch.region.to(dtypes[1]))
    leaves = [tensor.to(device).clone().requires_grad_() for tensor in batch[:3]]
    loss = info_nce(*leaves, batch.weight.to(device))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert [leaf.grad.dtype for leaf in leaves] == [*dtypes, torch.float32]
    assert leaves[2].grad.shape == (1,)
    check(Answer.of(loss, *(leaf.grad for leaf in leaves)), batch, dtype=torch.bfloat16)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_inputs_that_need_no_gradient_get_none(needed, implementation, device):
    batch = draw_batch(40, 64, 14.3).to(device)
    leaves = [tensor.requires_grad_(number == needed) for number, tensor in enumerate(batch[:3])]
    info_nce(*leaves, batch.weight).backward()
    assert [leaf.grad is not None for leaf in leaves] == [number == needed for number in range(3)]
    expected = list(vars(answer_of(info_nce, batch)).values())[1:]
    assert torch.equal(leaves[needed].grad.double().cpu(), expected[needed])


def test_autocast_changes_no_bit(implementation, device):
    batch = draw_batch(70, 64, 14.3).to(device)
    expected = answer_of(info_nce, batch)
    with torch.autocast(device.type, torch.bfloat16):
        found = answer_of(info_nce, batch)
    assert all(torch.equal(getattr(found, part), value) for part, value in vars(expected).items())


@pytest.mark.parametrize(("precision", "unit"), [("tf32", 2.0**-11), ("tf32x3", 2.0**-20)])
def test_precision_of_the_kernels_own_products(precision, unit, implementation, device):
    batch = draw_batch(200, 256, 14.3)
    found = answer_of(info_nce, batch.to(device), input_precision=precision)
    errors = found.errors(exact_answer(batch), size_of_terms(batch))
    # tf32 has 11 bits, three products of it about 20 together; a logit's error is that, times the scale.
    assert max(errors.values()) <= 2 * unit * (1 + 14.3)


def classes_of(n: int, d: int) -> torch.Tensor:
    """[n] whole numbers below d, in no order."""
    return torch.randint(d, (n,), generator=torch.Generator().manual_seed(0))


def check_one_hot_batch(n: int, device: torch.device) -> None:
    """Each sequence and its region are the same row of the unit matrix, in bf16: of that, all is known.

    Of n_c rows in class c, a row's sum of exponentials is Z_c = n_c e^s + n - n_c, and so is a column's.
    """
    d, s = 256, 5.0
    classes = classes_of(n, d).to(device)
    sequence, region = (torch.eye(d, dtype=torch.bfloat16, device=device)[classes].requires_grad_() for _ in range(2))
    scale = torch.tensor([s], device=device).requires_grad_()
    loss = info_nce(sequence, region, scale, torch.ones(n, device=device))
    loss.backward()

    count = classes.bincount(minlength=d).double()
    total = count * np.exp(s) + n - count
    share, same = count / n, torch.eye(d, dtype=torch.float64, device=device)
    # Sums of n numbers in tiles and panels: some tens of ulp each, and of log(n) in all.
    assert loss.item() == pytest.approx(float((share * (total.log() - s)).sum()), rel=1e-5)
    assert float(scale.grad) == pytest.approx(float((share * (count * np.exp(s) / total - 1)).sum()), rel=1e-4)
    probability = torch.exp(s * same) * count * (1 / total[:, None] + 1 / total) / 2
    of_class = (s / n * (probability - same)).float()
    for whole in (sequence.grad, region.grad):
        for rows, c in zip(whole.split(2**16), classes.split(2**16), strict=True):
            # As in `tolerance`; all elements of a class are rounded alike.
            assert (rows.float() - of_class[c]).norm() <= 2**-7 * of_class[c].norm()


def test_one_hot_batch(implementation, device):
    check_one_hot_batch(300, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_launches_for_eight_million_columns_are_within_cudas_bounds(dtype, monkeypatch):
    grids = []

    class Launcher:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **named: None

    kernels = ("_log_sum_exps_kernel", "_merge_kernel", "_gradient_kernel")
    for name in kernels:
        monkeypatch.setattr(infonce_kernels, name, Launcher())
    with torch.device("meta"):
        rows, columns = torch.empty(PANEL_ROWS, 256, dtype=dtype), torch.empty(2**23, 256, dtype=dtype)
        panel = Panel(rows, columns, torch.empty(PANEL_ROWS), torch.empty(2**23), 0, torch.empty(1), "ieee")
        infonce_kernels.log_sum_exps_triton(panel)
        infonce_kernels.gradient_triton(
            panel, "clip", torch.empty(2, PANEL_ROWS), torch.empty(2, 2**23), torch.empty(())
        )
    assert len(grids) == len(kernels)
    for along_x, *others in grids:
        assert along_x < 2**31
        assert max(others, default=1) < 2**16


@pytest.fixture
def memory():
    """A function that skips the test where the card has not as many bytes free."""

    def ask(needed: int) -> None:
        free, _ = torch.cuda.mem_get_info()
        if free < needed:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB on the card; {free / 2**30:.0f} GiB are free")
        torch.cuda.reset_peak_memory_stats()

    return ask


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_million_pairs_on_one_card(memory, device):
    n, d = 2**20, 256
    inputs, panel = 2 * n * d * 2, PANEL_ROWS * n * 2
    assert panel > 2**32  # bytes, so more elements than an int32 counts
    # The inputs and their gradients, a padded copy, fp32 sums of the columns' gradients, and temporaries of that size.
    bound = panel + 8 * inputs
    memory(bound)
    check_one_hot_batch(n, device)
    assert torch.cuda.max_memory_allocated() <= bound


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_embeddings_of_more_than_2_31_elements(memory, device):
    memory(4 * (2**22 + 65) * 512)
    check_last_rows(2**22 + 65, 512, device)


def test_the_last_rows_of_a_small_batch(implementation, device):
    check_last_rows(565, 64, device)


def check_last_rows(n: int, d: int, device: torch.device) -> None:
    """The last 100 of n unit vectors along few axes, against all: log-sum-exps and gradient in closed form."""
    own, s = 100, 5.0
    classes = classes_of(n, d).to(device)
    columns = torch.zeros(n, d, dtype=torch.bfloat16, device=device)
    columns[torch.arange(n, device=device), classes] = 1
    first = n - own
    weight, scale = torch.ones(n, device=device), torch.tensor([s], device=device)
    panel = Panel(columns[first:].clone(), columns, weight[first:], weight, first, scale, "ieee")
    row_lse, column_lse, matched = log_sum_exps(panel)
    of_row = classes[first:].bincount(minlength=d).double()
    of_column = classes.bincount(minlength=d).double()
    over_row = (of_column * np.exp(s) + n - of_column).log()[classes[first:]]
    over_column = (of_row * np.exp(s) + own - of_row).log()[classes]
    # Sums of up to four million numbers, in runs of tiles.
    torch.testing.assert_close((s * row_lse[0] + row_lse[1]).double(), over_row, rtol=1e-5, atol=0)
    torch.testing.assert_close((s * column_lse[0] + column_lse[1]).double(), over_column, rtol=1e-5, atol=0)
    assert (matched == 1).all()
    d_cosines, _ = gradient(panel, "clip", row_lse, column_lse, torch.tensor(1.0, device=device))
    for here in (slice(0, own), slice(first, n)):
        logits = s * (panel.rows.float() @ columns[here].float().T).double()
        expected = (logits - over_row[:, None]).exp() + (logits - over_column[here]).exp()
        expected -= 2 * torch.eye(own, device=device) * (here.start == first)
        assert (d_cosines[:, here].double() - s * expected).norm() <= 2**-7 * s * expected.norm()
