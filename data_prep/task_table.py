"""Tables of downstream tasks: one compressed TSV a split in a folder, and a manifest of what they hold."""

import json
from pathlib import Path

import pandas as pd

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.output_folder import MANIFEST, write_json

SPLITS = ("train", "dev", "test")
ENDING = ".tsv.gz"


def write_tables(folder: Path, splits: dict[str, pd.DataFrame], **about: object) -> dict:
    """Write {train,dev,test}.tsv.gz of `splits` into an existing folder, then manifest.json; returns that.

    about: what the manifest says besides rows and sha256 of each split: fingerprint, task, genome, split rule, counts
    of what was left out, simulated. The same rows give the same bytes. Raises `InputError` for a split without a row.
    """
    described = {}
    for name, rows in splits.items():
        if rows.empty:
            raise InputError(f"{folder.name}: no row is left for {name}; change the split, or give more data")
        path = folder / f"{name}{ENDING}"
        rows.to_csv(path, sep="\t", index=False, compression={"method": "gzip", "mtime": 0, "compresslevel": 6})
        described[name] = {"rows": len(rows), "sha256": sha256_of_file(path)}
    manifest = {**about, "splits": described}
    write_json(folder / MANIFEST, manifest)
    return manifest


def is_simulated(*paths: Path | str) -> bool:
    """Whether a manifest beside or above any of the input files says that they are simulated."""
    folders = {folder for path in map(Path, paths) for folder in (path, path.parent, path.parent.parent)}
    return any(_says_simulated(folder / MANIFEST) for folder in folders)


def _says_simulated(manifest: Path) -> bool:
    try:
        content = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("simulated", False)
