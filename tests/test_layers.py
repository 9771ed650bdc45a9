"""Who may import whom: nothing below imports anything above, and data preparation does without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "data_prep": set(),
    "kernels": set(),
    "pretrain": {"data_prep", "kernels"},
    "finetune": {"data_prep", "pretrain"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_what_lies_below_them_alone(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                above = set(ALLOWED) - ALLOWED[package] - {package}
                assert module.split(".")[0] not in above, (path, module)


def test_data_preparation_does_not_import_torch():
    code = "import sys, data_prep.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
