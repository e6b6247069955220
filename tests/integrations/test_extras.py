"""What a framework needs is installed by its extra, and an import without it says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("fastai", "lightning", "transformers")
PROJECT = (ROOT / "pyproject.toml").read_text()


def extra(name: str) -> list[str]:
    """What an extra installs."""
    match = re.search(rf"^{name} = \[(.*?)\]", PROJECT, re.DOTALL | re.MULTILINE)
    return re.findall(r'"(.*?)"', match[1]) if match else []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_import_without_the_framework_names_the_extra(framework: str) -> None:
    """And nothing else of the package needs it."""
    code = (
        f"import sys; sys.modules[{framework!r}] = None; import manifold_mixup\n"
        f"import manifold_mixup.integrations.{framework}"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )

    last = found.stderr.strip().splitlines()[-1]
    match = re.search(r'ImportError: .* pip install "manifold-mixup\[(\w+)\]"', last)
    assert match, last
    assert any(one.startswith(framework) for one in extra(match[1]))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_tests_install_every_framework(framework: str) -> None:
    """So that none of them is skipped."""
    assert any(one.startswith(framework) for one in extra("test"))
