"""Who may import whom. The plan of the house, checked on the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch", "transformers", "sentence_transformers", "onnxruntime", "onnx", "sklearn", "joblib", "faiss", "spacy",
    "fasttext", "openai", "xllamacpp", "tokenizers",
}  # fmt: skip
TRANSPORT = {"grpc", "quintet", "grpc_health", "grpc_reflection", "grpc_status"}
DATABASE = {"sqlalchemy", "psycopg"}

# For each part of the tree: what its modules must not import. A dotted name forbids what is below it, too.
FORBIDDEN: dict[str, set[str]] = {
    "protos/quintet": {"server", "training", "quintet_client"},
    "clients/quintet_client": {"server", "training", "numpy", *HEAVY},
    "server/errors.py": {"server", "google", "numpy", *TRANSPORT, *HEAVY},
    "server/engines/interfaces": {"server.errors", "server.runtime", "server.stores", "google", *TRANSPORT, *HEAVY},
    "server/engines": {"server.services", "server.interceptors", "server.app", "server.settings", *TRANSPORT},
    "server/runtime": {"server.engines", "server.services", "server.interceptors", "server.app", *TRANSPORT, *HEAVY},
    "server/stores": {"server.engines", "server.services", "server.interceptors", "server.app", *TRANSPORT, *HEAVY},
    "server/services": {"server.interceptors", "server.settings", "server.app", "numpy", *HEAVY},
    "server/interceptors": {"server.services", "server.engines", "server.app", "numpy", *HEAVY},
    "server/app.py": HEAVY,
    "server/door.py": {"server.services", "server.engines", "server.app", "numpy", *HEAVY},
    "server/transport.py": {"server.services", "server.engines", "server.interceptors", "server.app", *HEAVY},
    "server/limiting.py": HEAVY,
    "server/metrics": HEAVY,
    "server/chat": {"server.app", *TRANSPORT, *HEAVY},
    "server/chat/providers.py": {"server.settings"},
    "server/calls.py": {"server", *TRANSPORT, *HEAVY},
    "server/money.py": {"server", *TRANSPORT, *HEAVY},
    "training": {"server.services", "server.interceptors", "server.app", *TRANSPORT},
    "server": {"training", "tests", "quintet_client"},
}
# Servicers know the interfaces of the engines and nothing else of them.
ONLY_INTERFACES = "server/services"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(p for p in path.rglob("*.py") if "_pb2" not in p.name)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_nobody_imports_what_is_forbidden(part: str) -> None:
    assert modules(part), f"{part} has no modules"
    found = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules(part)
        for name in imports(module)
        if any(name == ban or name.startswith(f"{ban}.") for ban in FORBIDDEN[part])
    ]
    assert found == []


def test_servicers_know_only_the_interfaces() -> None:
    found = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules(ONLY_INTERFACES)
        for name in imports(module)
        if name.startswith("server.engines.") and not name.startswith("server.engines.interfaces")
    ]
    assert found == []


def test_only_the_ledger_knows_its_database() -> None:
    """And of it only what runs on the writer's thread and in readers': importing it takes half a second."""
    ledger = ROOT / "server" / "stores" / "ledger"
    knowing = {ledger / f"{name}.py" for name in ("database", "entries", "instances", "queries", "tables")}
    found = {
        module: [name for name in imports(module) if name.split(".")[0] in DATABASE]
        for module in modules("server")
        if module not in knowing
    }
    assert {module.name for module, names in found.items() if names} <= {"reader.py"}, "its types"


def test_optional_packages_have_one_door() -> None:
    found = {
        module.name for module in modules("server") for name in imports(module) if name.startswith("opentelemetry")
    }
    assert found == {"traces.py"}
