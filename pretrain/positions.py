"""Tables of position embeddings: how new ones start, and how they are made longer."""

import torch

MOST_SINUSOIDAL = 0.5  # cosine with sinusoids, from which on a table is taken to have started as such


def sinusoids(n_rows: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Of Vaswani et al. 2017, section 3.5: float32 [n_rows, width], sines and cosines in turn."""
    position, column = (torch.arange(n, device=device) for n in (n_rows, width))
    angle = position[:, None] * 10_000 ** -(column // 2 * 2 / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


def resized_positions(table: torch.Tensor, n_rows: int, n_fixed: int) -> torch.Tensor:
    """A position table [n, width] cut or lengthened to [n_rows, width]; its first `n_fixed` rows come once.

    A table that started from sinusoids and is still near them goes on as these, so that a token's neighbours stay the
    only ones that look near; any other is repeated (Beltagy et al. 2020, Longformer).
    """
    fixed, learnt = table[:n_fixed], table[n_fixed:]
    n = n_rows - n_fixed
    if n > len(learnt):
        started = sinusoids(n, table.shape[1], table.device).to(table.dtype)
        here = started[: len(learnt)]
        if torch.cosine_similarity(learnt.flatten(), here.flatten(), dim=0) >= MOST_SINUSOIDAL:
            scale = (learnt * here).sum() / (here * here).sum()
            further = scale * started[len(learnt) :] + (learnt - scale * here).mean(0)
            return torch.cat([fixed, learnt, further])
    return torch.cat([fixed, learnt[torch.arange(n, device=table.device) % len(learnt)]])
