"""The rooms of the program: who may import whom."""

import ast
from pathlib import Path

import pytest

from methods import METHODS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def floors() -> dict[str, int]:
    """The floor of each module, as the page on the architecture has it."""
    found, floor = {}, None
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 5 or not cells[2].startswith("`"):
            continue
        floor = int(cells[1]) if cells[1] else floor
        for name in cells[2].replace("`", "").split():
            name = name.removesuffix(".py").removesuffix("/__init__")
            found[name.replace("/", ".")] = floor
    return found


def imported(path: Path) -> set[str]:
    """All that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FLOORS = floors()
FILES = {
    name: ROOT / (name.replace(".", "/") + ("/__init__.py" if name == "methods" else ".py"))
    for name in FLOORS
}
IMPORTS = {name: imported(path) & set(FLOORS) for name, path in FILES.items()}
# What the table of the methods names is loaded by name, by the module that uses it.
NODES = {method.nodes.rpartition(".")[0] for method in METHODS.values()}
IMPORTS["batches"] |= NODES
IMPORTS["model"] |= {f"methods.{name}" for name in METHODS}
EDGES = {edge.rpartition(".")[0] for method in METHODS.values() for edge in method.edges.values()}


def test_every_module_has_a_floor():
    """The page names all modules, and only such as are there."""
    there = [path for part in ("", "support", "methods") for path in (ROOT / part).glob("*.py")]
    assert set(FILES.values()) == set(there) - {ROOT / "support" / "__init__.py"}


@pytest.mark.parametrize("name", FLOORS)
def test_nothing_imports_from_above(name):
    """A reader who begins with the lowest floor never needs to look up."""
    assert {other for other in IMPORTS[name] if FLOORS[other] > FLOORS[name]} == set()


def test_only_one_module_imports_keras():
    """`support.backend` decides how Keras is imported: quietly, and with which backend."""
    for name, path in FILES.items():
        roots = {node.split(".")[0] for node in imported(path)}
        assert "keras" not in roots or name == "support.backend", name


def test_constant_edges_are_the_nodes_modules():
    """The module that makes a method's nodes weighs its constant edges, too: no third one."""
    assert EDGES - {""} <= NODES <= set(FLOORS)


def test_no_circle():
    """Modules can be put in an order in which each imports only earlier ones."""
    left = {name: set(others) for name, others in IMPORTS.items()}
    while left:
        free = [name for name, others in left.items() if not others & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_batches_need_no_keras():
    """Worker processes import what makes a batch; TensorFlow in each would cost time and memory."""
    needed, waiting = set(), ["batches"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += IMPORTS[name]
    assert "support.backend" not in needed
