"""The machine that a bench ran on, as one comment line above its CSV."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe_machine(packages: Iterable[str] = ("numpy", "lightmotif")) -> str:
    """`# CPU, cores, GPU, Python, packages, commit`; a package that is not installed is named as such."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    parts = [models[0] if models else platform.machine(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.get_device_name()} (driver {_driver()}, CUDA {torch.version.cuda})")
    parts += [f"Python {platform.python_version()}", *map(_package, packages)]
    commit = _output("git", "describe", "--always", "--dirty")
    return f"# {', '.join(parts)}, commit {commit or 'unknown'}"


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def _driver() -> str:
    drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return drivers.partition("\n")[0] or "unknown"


def _output(*command: str) -> str:
    """What a command prints, "" where there is none."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
