"""The machine that a bench ran on, as one comment line above its CSV."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> str:
    """`# CPU, cores, Python, numpy, commit`."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return (
        f"# {models[0] if models else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {version('numpy')}, lightmotif {version('lightmotif')}, commit {commit or 'unknown'}"
    )
