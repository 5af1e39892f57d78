"""The walls of the house: who may import whom, where flwr and torch may be named, how long a file may be.

Every import of every file is read from its syntax tree, those inside functions too: an import that waits is still one.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedfm

ROOT = Path(fedfm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

GROUND = {"errors", "config", "arrays", "profiling"}
MAY_IMPORT = {  # room -> the rooms that it may import, itself apart
    "errors": set(),
    "arrays": {"errors"},
    "profiling": set(),
    "config": {"errors"},
    "domains": GROUND,
    "models": GROUND | {"domains"},
    "training": GROUND | {"domains", "models", "strategies"},  # of strategies the contract, base.py
    "strategies": GROUND,
    "results": GROUND,
    "federation": GROUND | {"domains", "models", "training", "strategies", "results"},
    "engines": GROUND | {"domains", "models", "training", "strategies", "results", "federation"},
    "doctor": GROUND | {"domains", "models", "results", "engines"},
    "commands": GROUND | {"domains", "models", "training", "strategies", "results", "engines", "doctor"},
    "cli": GROUND | {"results", "strategies", "engines", "commands", "doctor"},
    "__main__": {"cli"},
    "__init__": set(),  # the public names are looked up when first used; their homes are checked below
}
FLOWER_ROOMS = {"federation", "engines"}
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
NO_TORCH_AT_IMPORT = {"arrays", "errors", "config", "strategies", "results", "domains", "federation", "cli", "__init__"}
PUBLIC_NAMES = {
    "__version__", "run", "resume", "compare", "Run", "load_config", "RunConfig", "load_model",
    "FedfmError", "UserError", "RunError",
}  # fmt: skip
LONGEST_FILE = 300
LONGEST_FUNCTION = 45


def name_of(file: Path) -> str:
    return file.relative_to(ROOT.parent).as_posix()


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def package_of(file: Path) -> list[str]:
    return ["fedfm", *file.relative_to(ROOT).parent.parts]


def imports(file: Path) -> Iterator[tuple[str, ast.AST, bool]]:
    """(dotted name, node, whether it runs when the module is imported) of every import, relative ones resolved.

    `from fedfm import config` counts as fedfm.config: each imported name is tried as a module of its own. Imports
    under `if TYPE_CHECKING` never run and are left out.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    never = {
        id(n)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for n in ast.walk(test)
    }
    for node in ast.walk(tree):
        at_import = id(node) not in inside
        if id(node) in never:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package_of(file)[: len(package_of(file)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node, at_import
            yield from ((f"{module}.{alias.name}", node, at_import) for alias in node.names)


def rooms_imported(file: Path) -> set[tuple[str, int]]:
    """(room, line) of every import of fedfm's own rooms."""
    found = set()
    for name, node, _ in imports(file):
        parts = name.split(".")
        if parts[0] == "fedfm" and len(parts) > 1 and parts[1] in MAY_IMPORT:
            found.add((parts[1], node.lineno))
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down_only(file):
    room = room_of(file)
    assert room in MAY_IMPORT, f"{name_of(file)} is in no room of the table: say what it may import"
    up = {(other, line) for other, line in rooms_imported(file) if other != room and other not in MAY_IMPORT[room]}
    assert not up, f"{room} may not import " + ", ".join(f"{other} (line {line})" for other, line in sorted(up))


def test_the_table_itself_points_down():
    """No two rooms may import each other, directly or around a corner."""
    done: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, below in left.items() if below <= set(done)]
        assert free, f"these rooms stand in a circle: {', '.join(left)}"
        done += free
        for room in free:
            del left[room]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_flower_is_named_in_federation_and_engines_only(file):
    named = {name for name, *_ in imports(file) if name.split(".")[0] == "flwr"}
    if room_of(file) not in FLOWER_ROOMS:
        assert not named
    elif file.name != "flower_private.py":
        private = {name for name in named if ".".join(name.split(".")[:2]) not in PUBLIC_FLOWER}
        assert not private, "names of flwr that are not public belong in federation/flower_private.py"


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) in NO_TORCH_AT_IMPORT], ids=name_of)
def test_what_need_not_wait_for_torch_does_not(file):
    heavy = {name.split(".")[0] for name, _, at_import in imports(file) if at_import}
    assert not heavy & {"torch", "transformers", "peft"}


@pytest.mark.parametrize(
    "module", ["fedfm", "fedfm.arrays", "fedfm.config", "fedfm.strategies", "fedfm.results.run_folder", "fedfm.domains"]
)
def test_importing_a_light_room_loads_neither_torch_nor_flower(module):
    """What the syntax tree cannot show: nothing that these import drags torch in behind their back."""
    import subprocess

    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'flwr', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these():
    """A name that is taken away or renamed breaks programs of others: then change this list, and the changelog."""
    assert set(fedfm.__all__) == PUBLIC_NAMES
    assert set(dir(fedfm)) >= PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(fedfm, name) is not None
    homes = {importlib.import_module(home) for home in fedfm._HOME.values()}
    assert all(module.__name__.split(".")[1] in MAY_IMPORT for module in homes)
    with pytest.raises(AttributeError, match="module 'fedfm' has no attribute 'train'"):
        fedfm.train  # noqa: B018


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_file_and_no_function_is_too_long(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION}
    assert not long, f"functions of more than {LONGEST_FUNCTION} lines: {long}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_global_random_numbers(file):
    """Every draw comes from a keyed generator; the two forks of torch's own restore it behind them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    drawn = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "np.random"}
    assert drawn <= {"default_rng", "SeedSequence", "Generator"}
    assert not any(name == "random" or name.startswith("random.") for name, *_ in imports(file))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if "torch.manual_seed" in calls:
        assert "torch.random.fork_rng" in calls
