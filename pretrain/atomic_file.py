"""A text file that is there whole, or as it was before."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
