"""The rooms of the server and who may import whom, checked on the syntax trees. docs/architecture.md has the plan."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
ROOMS = {"domain", "rpc", "tasks", "models", "inference", "vectorstore", "tenancy", "usage", "observability"}
FILES = {"__init__.py", "__main__.py", "app.py", "settings.py"}
TRANSPORT = {"grpc", "quintet", "buf", "google", "grpc_health", "grpc_reflection", "grpc_status", "protovalidate"}
ENGINES = {
    "torch", "transformers", "sentence_transformers", "onnxruntime", "onnx", "sklearn", "joblib", "faiss", "spacy",
    "fasttext", "openai", "xllamacpp", "tokenizers",
}  # fmt: skip
DATABASE = {"sqlalchemy", "psycopg"}

# What each part of the server may import of the server; more specific parts come first. Beside these it may import
# itself. `rpc` of a task's service are the helpers around a call.
MAY_IMPORT: dict[str, set[str]] = {
    "server/domain": set(),
    "server/models": {"domain"},
    "server/tenancy": {"domain"},
    "server/inference": {"domain", "models", "tenancy"},
    "server/vectorstore": {"domain", "models", "tenancy"},
    "server/usage": {"domain"},
    "server/rpc": {"domain", "tenancy"},
    "server/tasks/*/service.py": {"domain", "rpc", "models", "tenancy"},  # and convert.py
    "server/tasks/rag": {"domain", "models", "inference", "vectorstore"},
    "server/tasks/chat": {"domain", "models", "inference", "usage"},
    "server/tasks/*": {"domain", "models", "inference"},
    "server/observability": {"domain", "models", "inference", "tenancy", "usage", "rpc", "tasks"},
}
# Libraries that a part must not import.
FORBIDDEN: dict[str, set[str]] = {
    "server/domain": {"numpy", "pydantic", *TRANSPORT, *ENGINES, *DATABASE},
    "server/models": {*TRANSPORT, *ENGINES, *DATABASE},
    "server/tenancy": {*TRANSPORT, *ENGINES, *DATABASE},
    "server/inference": {*TRANSPORT, *DATABASE},
    "server/vectorstore": {*TRANSPORT, *DATABASE},
    "server/usage": {*TRANSPORT, *ENGINES},
    "server/rpc": {"numpy", *ENGINES, *DATABASE},
    "server/tasks/*/service.py": {"numpy", *ENGINES, *DATABASE},
    "server/tasks/*": {*TRANSPORT, *DATABASE},
    "server/observability": {*ENGINES, *DATABASE},
    "server/app.py": {*ENGINES, *DATABASE},
    "protos/quintet": {"server", "training", "quintet_client"},
    "clients/python/quintet_client": {"server", "training", "numpy", *ENGINES},
    "training": {"server.rpc", "server.app", *TRANSPORT},
    "server": {"training", "tests", "quintet_client"},
}


def imports(path: Path) -> Iterator[str]:
    """The names that a module imports, except those that only a type checker sees."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(part: str) -> list[Path]:
    """The modules of a part, without those for which a more specific part decides."""
    found = [path for path in ROOT.glob(part) if path.is_file()]
    found += [path for folder in ROOT.glob(part) if folder.is_dir() for path in folder.rglob("*.py")]
    if part.endswith("/service.py"):
        found += ROOT.glob(part.replace("service.py", "convert.py"))
    elif part.startswith("server/tasks/"):
        found = [path for path in found if path.name not in ("service.py", "convert.py")]
    return sorted(path for path in found if "_pb2" not in path.name)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_server_has_these_rooms_and_no_others() -> None:
    assert {path.name for path in SERVER.iterdir() if path.is_dir() and path.name != "__pycache__"} == ROOMS
    assert {path.name for path in SERVER.iterdir() if path.is_file()} == FILES


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_rooms_import_only_the_rooms_below(part: str) -> None:
    assert modules(part), f"{part} has no modules"
    found = []
    for module in modules(part):
        if part == "server/tasks/*" and module.parts[-2] in ("rag", "chat"):
            continue
        own = ".".join(module.relative_to(ROOT).parts[:-1])
        own = ".".join(own.split(".")[: 3 if "tasks" in own else 2])
        allowed = [own, *(f"server.{room}" for room in MAY_IMPORT[part])]
        found += [
            f"{module.relative_to(ROOT)} imports {name}"
            for name in imports(module)
            if name.startswith("server.")
            if not any(is_in(name, package) or is_in(package, name) for package in allowed)
        ]
    assert found == []


@pytest.mark.parametrize("part", FORBIDDEN)
def test_nothing_imports_what_is_forbidden(part: str) -> None:
    assert modules(part), f"{part} has no modules"
    found = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules(part)
        for name in imports(module)
        if any(is_in(name, ban) for ban in FORBIDDEN[part])
    ]
    assert found == []


def test_only_the_ledger_knows_its_database() -> None:
    """And of it only what runs on the writer's thread and in readers': importing it takes half a second."""
    knowing = {SERVER / "usage" / f"{name}.py" for name in ("database", "postgres", "entries", "queries", "tables")}
    found = {
        module.name
        for module in modules("server")
        if module not in knowing and any(name.split(".")[0] in DATABASE for name in imports(module))
    }
    assert found == set()


def test_only_tracing_knows_opentelemetry() -> None:
    found = {
        module.name for module in modules("server") for name in imports(module) if name.startswith("opentelemetry")
    }
    assert found == {"tracing.py"}
