"""Tables of position embeddings that are cut or lengthened."""

import pytest
import torch

from pretrain.positions import resized_positions, sinusoids


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(50, 8)
    for position, i in ((0, 0), (7, 1), (49, 3)):
        angle = torch.tensor(position / 10_000 ** (2 * i / 8))
        torch.testing.assert_close(table[position, 2 * i : 2 * i + 2], torch.stack([angle.sin(), angle.cos()]))


@pytest.mark.parametrize("n_fixed", [0, 2])
def test_a_table_that_started_from_sinusoids_goes_on_as_these(n_fixed):
    torch.manual_seed(0)
    shift = torch.randn(64) / 4
    learnt = 0.3 * sinusoids(128, 64) + 0.1 * shift + torch.randn(128, 64) / 50
    fixed = torch.randn(n_fixed, 64)
    table = resized_positions(torch.cat([fixed, learnt]), n_fixed + 400, n_fixed)
    torch.testing.assert_close(table[: n_fixed + 128], torch.cat([fixed, learnt]), rtol=0, atol=0)
    expected = 0.3 * sinusoids(400, 64)[128:] + 0.1 * shift
    torch.testing.assert_close(table[n_fixed + 128 :], expected, rtol=0, atol=0.03)
    # What is most alike a place are its neighbours, across the seam too.
    alike = table[n_fixed:] @ table[n_fixed:].T
    for place in (100, 127, 128, 300):
        assert set(alike[place].topk(3).indices.tolist()) == {place - 1, place, place + 1}


@pytest.mark.parametrize("n_fixed", [0, 2])
def test_any_other_table_is_repeated(n_fixed):
    table = torch.randn(n_fixed + 10, 8, generator=torch.Generator().manual_seed(0))
    longer = resized_positions(table, n_fixed + 25, n_fixed)
    expected = torch.cat([table, table[n_fixed:], table[n_fixed : n_fixed + 5]])
    torch.testing.assert_close(longer, expected, rtol=0, atol=0)


def test_a_table_is_cut_at_its_end():
    torch.testing.assert_close(resized_positions(sinusoids(20, 8), 12, 0), sinusoids(12, 8), rtol=0, atol=0)
