"""What reading any file of weights needs, here and in fine-tuning."""

import pickle
import textwrap

from safetensors import SafetensorError

from data_prep.errors import one_line

DESCRIPTION = "genebert.json"  # of a converted checkpoint
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError, SafetensorError)


def summary(error: BaseException) -> str:
    """An exception in a line of readable length: PyTorch's list every weight."""
    return textwrap.shorten(one_line(error), 240, placeholder=" ...")
