"""The package as a whole: its examples, README, and the small model inside."""

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import manifold_mixup
from manifold_mixup.cli import main
from manifold_mixup.models import load_backbone

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(manifold_mixup.__path__, "manifold_mixup.")
    if not module.name.endswith("__main__")
)
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def with_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `manifold-mixup train` was called."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--weight-decay", "0.1", "--no-baseline"]) == 0
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(
    name: str, with_a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example gives what it shows."""
    monkeypatch.chdir(with_a_run)
    with warnings.catch_warnings():
        if ".integrations." in name:
            warnings.simplefilter("ignore")  # of the framework that it imports
        module = importlib.import_module(name)
    names = {"torch": torch, "nn": torch.nn, **vars(manifold_mixup), **vars(module)}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)

    assert result.failed == 0


def test_every_public_name_has_a_docstring_with_an_example_or_is_a_value() -> None:
    """What users import tells how it is used."""
    for name in manifold_mixup.__all__:
        thing = getattr(manifold_mixup, name)
        if callable(thing):
            assert ">>>" in (inspect.getdoc(thing) or ""), name


def test_the_python_blocks_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the README shows works as it stands, one block after the other."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(textwrap.dedent(block), names)

    assert blocks


def test_the_readme_is_short() -> None:
    """One can read it in a few minutes."""
    assert README.count("\n") <= 150


def test_the_small_model_ships_with_the_package() -> None:
    """It is below 1 MB, and is what load_backbone loads."""
    file = Path(manifold_mixup.__path__[0]) / "models" / "digits.safetensors"
    state = load_backbone("digits").state_dict()

    assert file.stat().st_size < 1_000_000
    assert all(torch.equal(state[key], tensor) for key, tensor in load_file(file).items())


def test_the_small_model_can_be_pretrained_again(tmp_path: Path) -> None:
    """The script writes a file of the same tensors; one epoch is enough to see that."""
    script = runpy.run_path(str(ROOT / "scripts" / "pretrain_digits.py"))
    script["main"](epochs=1, file=tmp_path / "again.safetensors")
    shipped = load_backbone("digits").state_dict()
    again = load_backbone("digits", weights=tmp_path / "again.safetensors").state_dict()

    assert {k: t.shape for k, t in again.items()} == {k: t.shape for k, t in shipped.items()}
    assert not torch.equal(again["fc.weight"], shipped["fc.weight"])
