"""Each bench starts; what they measure is no test's."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_bench_can_be_imported():
    benches = sorted(path.stem for path in (ROOT / "tests" / "bench").glob("*.py"))
    assert {"data_prep", "kernels", "pretrain", "step_profile"} <= set(benches)
    code = "".join(f"import tests.bench.{name}\n" for name in benches)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
