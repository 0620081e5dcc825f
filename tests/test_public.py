"""What users import, pinned; and which package may import which."""

import ast
from pathlib import Path

import pytest

import gossamer.engine
import gossamer.kernels
import gossamer.transport

ROOT = Path(__file__).parent.parent


def test_engine_public_names_are_these() -> None:
    assert gossamer.engine.__all__ == [
        "ConfigurationError",
        "Engine",
        "GossamerError",
        "JoinError",
        "TrainingError",
    ]


@pytest.mark.parametrize("package", [gossamer.engine, gossamer.kernels, gossamer.transport])
def test_public_names_exist_and_are_sorted(package: object) -> None:
    names = package.__all__
    assert all(hasattr(package, name) for name in names)
    assert len(set(names)) == len(names)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("kernels", ("gossamer.engine", "gossamer.transport", "zmq", "zstandard")),
        ("transport", ("gossamer.engine", "gossamer.kernels", "torch", "numpy")),
        (".", ("pickle", "dill", "cloudpickle", "marshal", "shelve")),
    ],
)
def test_packages_do_not_import_what_they_must_not(folder: str, forbidden: tuple[str, ...]) -> None:
    files = [
        p
        for part in (["engine", "kernels", "transport", "examples"] if folder == "." else [folder])
        for p in (ROOT / part).rglob("*.py")
    ]
    assert files
    for path in files:
        for name in imports(path):
            wrong = any(name == f or name.startswith(f + ".") for f in forbidden)
            assert not wrong, f"{path} imports {name}"
