"""What the package may import, and what it shows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer.transport

SOURCES = sorted(Path(gossamer.transport.__file__).parent.glob("*.py"))
FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}


def test_import_needs_neither_torch_nor_the_other_packages() -> None:
    code = (
        "import sys, gossamer.transport\n"
        "heavy = ('torch', 'numpy', 'gossamer.engine', 'gossamer.kernels')\n"
        "print([m for m in sys.modules if m.startswith(heavy)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_source_imports_no_pickle_and_nothing_above(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Attribute):
            assert node.attr not in {"recv_pyobj", "send_pyobj"}
    parts = {name.split(".")[0] for name in imported}
    assert not parts & FORBIDDEN
    assert not parts & {"torch", "numpy"}
    assert not any(name.startswith(("gossamer.engine", "gossamer.kernels")) for name in imported)


def test_sources_are_found() -> None:
    assert {"node.py", "link.py", "message.py"} <= {path.name for path in SOURCES}


def test_public_names_are_pinned() -> None:
    assert gossamer.transport.__all__ == [
        "BindError",
        "Desynchronized",
        "Event",
        "Failed",
        "Member",
        "MemberChanged",
        "Node",
        "NodeConfig",
        "ProtocolError",
        "Refused",
        "StateArrived",
        "StateRequested",
        "Status",
        "TransportError",
        "Update",
        "Welcomed",
        "clock_hash",
    ]
    assert all(hasattr(gossamer.transport, name) for name in gossamer.transport.__all__)
