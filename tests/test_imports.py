"""Imports point up the layout table of the design, also those inside functions; modules lie two levels deep at most."""

import ast
from pathlib import Path

import pytest

import anymask

ROOT = Path(anymask.__file__).parent

# A row may import from the rows above it, and a package from itself.
ROWS = (
    ("ops",),
    ("types",),
    ("data",),
    ("models",),
    ("prompting", "tiling", "seams"),
    ("joining", "automatic_settings"),
    ("sieve",),
    ("automatic",),
    ("grounding",),
    ("asking",),
    ("names",),
    ("segmentation",),
    ("tracking", "volumes", "labelling"),
    ("probing",),
    ("evaluation",),
    ("training",),
    ("adapting",),
    ("batch",),
    ("app", "cli"),
    ("__init__", "__main__"),
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
# Who may use the package's own attributes: the version is shown there. The package itself names everything, lazily.
MAY_NAME_THE_PACKAGE = {Path("cli/main.py"), Path("cli/doctor.py")}
VAGUE = ("utils", "util", "common", "helpers", "base", "core", "manager", "misc")
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imported(source: str, module: tuple[str, ...], is_package: bool) -> set[str]:
    """The parts of anymask (first name below it, `__init__` for itself) that `source`, text of `module`, imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module[: len(module) - node.level + is_package] if node.level else ()
            start = (*above, *(node.module.split(".") if node.module else ()))
            # `from anymask import types` imports a module, `from anymask import segment` the lazy package.
            found |= {(*start, alias.name) if start == ("anymask",) else start for alias in node.names}
    ours = {name[1:2] for name in found if name[0] == "anymask"}
    return {name[0] if name and name[0] in ROW_OF else "__init__" for name in ours}


def wrong_imports(source: str, module: tuple[str, ...], is_package: bool = False) -> set[str]:
    """What `module` imports from its own row or below."""
    part = module[1] if len(module) > 1 else "__init__"
    return {name for name in imported(source, module, is_package) if name != part and ROW_OF[name] >= ROW_OF[part]}


def module_of(path: Path) -> tuple[str, ...]:
    parts = ("anymask", *path.with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


@pytest.mark.parametrize("path", [path for path in FILES if path != Path("__init__.py")], ids=str)
def test_imports_point_up(path):
    assert path.parts[0].removesuffix(".py") in ROW_OF, f"{path} has no row in the layout table"
    allowed = {"__init__"} if path in MAY_NAME_THE_PACKAGE else set()
    source = (ROOT / path).read_text(encoding="utf-8")
    wrong = wrong_imports(source, module_of(path), path.name == "__init__.py") - allowed
    assert not wrong, f"{path} imports from {', '.join(sorted(wrong))}, which stand in its row or below"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_modules_are_nouns_two_levels_deep(path):
    assert len(path.parts) <= 2, f"{path} lies too deep"
    assert path.stem not in VAGUE, f"{path} says nothing about what is inside"


@pytest.mark.parametrize("part", ["types", "data"])
def test_data_knows_no_torch(part):
    for path in FILES:
        if path.parts[0].removesuffix(".py") == part:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {name for name in names if name.split(".")[0] in ("torch", "transformers", "timm")}, path


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from anymask.types import Masks\nfrom anymask.data import coco\nimport numpy", set()),
        ("from anymask.models import protocol", set()),
        ("import anymask.segmentation", {"segmentation"}),
        ("def f():\n    from anymask.cli.main import main", {"cli"}),
        ("from .. import prompting", {"prompting"}),
        ("from ..training.loop import Curve", {"training"}),
        ("from .pocket import PocketModel", set()),
        ("import anymask", {"__init__"}),
        ("from anymask import segment", {"__init__"}),
        ("if TYPE_CHECKING:\n    from anymask.evaluation import reports", {"evaluation"}),
    ],
)
def test_a_wrong_import_is_seen(source, wrong):
    assert wrong_imports(source, ("anymask", "models", "load")) == wrong


def test_a_neighbour_in_the_same_row_is_wrong():
    assert wrong_imports("from anymask.automatic import everything", ("anymask", "prompting")) == {"automatic"}
    assert wrong_imports("from anymask.app import serve", ("anymask", "cli", "main")) == {"app"}
