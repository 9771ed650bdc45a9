"""What reading any file of weights needs, here and in fine-tuning."""

import pickle
import textwrap

import torch
from safetensors import SafetensorError

from data_prep.errors import one_line

DESCRIPTION = "genebert.json"  # of a converted checkpoint
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError, SafetensorError)


def resized_positions(table: torch.Tensor, n_rows: int, n_fixed: int) -> torch.Tensor:
    """A position table [n, width] cut or repeated to [n_rows, width]; its first `n_fixed` rows come once."""
    learnt = table[n_fixed:]
    return torch.cat([table[:n_fixed], learnt[torch.arange(n_rows - n_fixed) % len(learnt)]])


def summary(error: BaseException) -> str:
    """An exception in a line of readable length: PyTorch's list every weight."""
    return textwrap.shorten(one_line(error), 240, placeholder=" ...")
