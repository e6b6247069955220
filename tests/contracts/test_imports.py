"""The house: folders import only downwards, the core needs torch alone, and all stays small."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import manifold_mixup

PACKAGE = Path(manifold_mixup.__path__[0])

# What a head is trained with.
_LOWER = {"mixing", "inspection", "hooks", "models", "features", "linear_heads"}

# The folders in reading order, and what each may import; all may import what is COMMON.
TABLE: dict[str, set[str]] = {
    "mixing": set(),
    "inspection": set(),
    "hooks": {"mixing", "inspection"},
    "models": {"inspection"},
    "data": set(),
    "features": {"inspection", "models"},
    "linear_heads": {"mixing"},
    "training": _LOWER,
    "comparison": {*_LOWER, "data", "training"},
    "reports": {"data", "training", "comparison"},
    "runs": {*_LOWER, "data", "training", "comparison", "reports"},
    "integrations": {"mixing", "inspection", "hooks", "models"},
    "cli": {"inspection", "models", "data", "reports", "runs"},
}
COMMON = {"_files", "_progress", "_random", "version"}

# What stands on torch alone; but for what one file has to know, inside of functions.
CORE = ("_random", "mixing", "inspection", "hooks")
EXCEPTION = ("hooks/detection.py", "torchvision")

FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """A name that a file imports from a module, or none where it imports the module itself."""

    file: str
    line: int
    module: str
    name: str
    is_in_function: bool

    def __str__(self) -> str:
        what = f"{self.name} of {self.module}" if self.name else self.module
        return f"{self.file}:{self.line} imports {what}"

    @property
    def folder(self) -> str:
        """The folder that the file lies in, or the name of a file at the root."""
        return self.file.split("/")[0].removesuffix(".py")

    @property
    def library(self) -> str:
        """What has to be installed for it."""
        return self.module.split(".")[0]

    @property
    def target(self) -> str:
        """The folder, or the file at the root, that it imports from; nothing if from outside."""
        if self.library != "manifold_mixup":
            return ""
        return [*self.module.split("."), self.name or "manifold_mixup"][1]


def read_imports(file: str) -> Iterator[Import]:
    """All imports of a file, those inside of functions too."""
    tree = ast.parse(SOURCES[file])
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found = [(module, alias.name) for alias in node.names]
        for module, name in found:
            yield Import(file, node.lineno, module, name, id(node) in inside)


IMPORTS = [one for file in SOURCES for one in read_imports(file)]


def listed(path: Path) -> list[Path]:
    """What lies in a folder, but for what Python or a system keeps for itself."""
    return [one for one in path.iterdir() if not one.name.startswith((".", "__pycache__"))]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has, signature included, its docstring left out."""
    first, docstring = function.body[0], ast.get_docstring(function)
    told = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - told


# Who imports whom


@pytest.mark.parametrize("folder", TABLE)
def test_folder_imports_what_the_table_allows(folder: str) -> None:
    """And nothing else of the package, inside of functions neither."""
    allowed = {"", folder, *COMMON, *TABLE[folder]}

    assert not [str(x) for x in IMPORTS if x.folder == folder and x.target not in allowed]


def test_common_files_import_nothing_of_the_package() -> None:
    """So all may import them."""
    assert not [str(one) for one in IMPORTS if one.folder in COMMON and one.target]


def test_table_has_all_folders_and_no_circle() -> None:
    """Each may import only what stands above it."""
    above: set[str] = set()
    for folder, allowed in TABLE.items():
        assert allowed <= above
        above.add(folder)

    assert set(FOLDERS) <= above


def test_files_import_in_no_circle() -> None:
    """Inside of a folder there is an order to read them in, too."""
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        module = f"manifold_mixup/{one.file}".removesuffix(".py").removesuffix("/__init__")
        graph.setdefault(module.replace("/", "."), set()).add(one.module)

    order = list(TopologicalSorter(graph).static_order())  # an error if there is none

    assert graph.keys() <= set(order)


@pytest.mark.parametrize("folder", FOLDERS)
def test_others_import_what_a_folder_exports(folder: str) -> None:
    """From the folder, never from its files."""
    module = f"manifold_mixup.{folder}"
    exported = importlib.import_module(module).__all__
    others = [one for one in IMPORTS if one.target == folder and one.folder != folder]

    assert not [str(one) for one in others if one.module != module or one.name not in exported]


def test_siblings_import_each_other_by_file() -> None:
    """Whole paths, so that each import tells where a name is defined."""
    own = [one for one in IMPORTS if one.target == one.folder]

    assert not [str(one) for one in own if one.module.count(".") < 2]
    assert not [str(one) for one in IMPORTS if one.module.startswith(".")]


# What has to be installed


@pytest.mark.parametrize("folder", CORE)
def test_core_stands_on_torch_alone(folder: str) -> None:
    """And on Python's own library; detection knows torchvision's detectors by their functions."""
    known = {"torch", "manifold_mixup", *sys.stdlib_module_names}
    own = [one for one in IMPORTS if one.folder == folder]
    foreign = [one for one in own if one.library not in known]

    assert not [
        str(one)
        for one in foreign
        if not one.is_in_function or (one.file, one.library) != EXCEPTION
    ]
    assert not [str(one) for one in own if one.target and one.target not in CORE]


def test_import_loads_torch_alone() -> None:
    """The heavy libraries are loaded when they are used, not before."""
    code = "import sys, manifold_mixup; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    ).stdout.split()

    assert "torch" in loaded
    for name in ("timm", "torchvision", "matplotlib", "sklearn", "scipy", "PIL"):
        assert name not in loaded
    for name in ("typer", "rich", "safetensors", "pandas"):
        assert name not in loaded


# How large it may get


def test_root_holds_at_most_12_folders_and_8_files() -> None:
    """One sees all of it in the listing."""
    folders = [path for path in listed(PACKAGE) if path.is_dir()]

    assert len(folders) <= 12
    assert len(listed(PACKAGE)) - len(folders) <= 8


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_holds_at_most_ten_files(folder: str) -> None:
    """And no other folder."""
    inside = listed(PACKAGE / folder)

    assert len(inside) <= 10
    assert all(path.is_file() for path in inside)


def test_files_have_at_most_400_lines() -> None:
    """They are split by subject before."""
    assert not [file for file, source in SOURCES.items() if source.count("\n") > 400]


def test_functions_have_at_most_45_lines() -> None:
    """One sees them whole; the docstring does not count."""
    functions = [
        (file, node)
        for file, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, FUNCTIONS)
    ]

    assert not [f"{file}:{one.lineno} {one.name}" for file, one in functions if length(one) > 45]


# What the maps say


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_exports_names_that_exist(folder: str) -> None:
    """Each once."""
    module = importlib.import_module(f"manifold_mixup.{folder}")

    assert not [name for name in module.__all__ if not hasattr(module, name)]
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_map_names_all_there_is(folder: str) -> None:
    """The docstring of a folder its files, that of the package its folders."""
    map_of = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
    files = [path.stem for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"]

    assert not [name for name in (files if folder else FOLDERS) if f"`{name}`" not in map_of]
