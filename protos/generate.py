"""Generate the Python stubs of the contract beside the .proto files, and the image that buf lints.

Usage: python protos/generate.py [--check]

protovalidate ships the descriptor of buf/validate/validate.proto but no protobuf-python module for it, so the
descriptor is taken from the installed package and the module is generated here with ours. With --check nothing
is written: the exit status is 1 if a committed stub differs from what would be generated.
"""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).parent
VALIDATE = "buf/validate/validate.proto"
WELL_KNOWN = Path(str(resources.files("grpc_tools"))) / "_proto"
IMAGE = ROOT / "image.binpb"


def validate_descriptor() -> descriptor_pb2.FileDescriptorSet:
    """Return validate.proto and everything that it imports, dependencies first."""
    found: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def visit(file) -> None:  # type: ignore[no-untyped-def]  # protobuf-py's DescFile is not exported
        for dependency in file.dependencies:
            visit(dependency)
        proto = descriptor_pb2.FileDescriptorProto.FromString(file.proto.to_binary())
        found[proto.name] = proto

    visit(validate_pb.desc())
    return descriptor_pb2.FileDescriptorSet(file=found.values())


def run_protoc(*arguments: str) -> None:
    """Run protoc, with the plugins that are installed beside this Python; exit with its status if it fails."""
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if status := protoc.main(["protoc", *arguments]):
        sys.exit(status)


def generate(out: Path) -> None:
    """Write all stubs below `out`."""
    ours = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "quintet").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle.binpb"
        dependencies = validate_descriptor()
        dependencies_file = Path(scratch) / "validate.binpb"
        dependencies_file.write_bytes(dependencies.SerializeToString())
        # protoc reads either sources or a descriptor set, so ours are compiled to a set first.
        sources = Path(scratch) / "sources"
        shutil.copytree(ROOT / "quintet", sources / "quintet", ignore=shutil.ignore_patterns("*.py*"))
        run_protoc(
            f"--proto_path={sources}",
            f"--proto_path={WELL_KNOWN}",
            f"--descriptor_set_in={dependencies_file}",
            f"--descriptor_set_out={bundle}",
            "--include_imports",
            "--include_source_info",
            *ours,
        )
        IMAGE.write_bytes(bundle.read_bytes())
        run_protoc(
            f"--descriptor_set_in={bundle}",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            VALIDATE,
            *ours,
        )
        services = [name for name in ours if "\nservice " in (ROOT / name).read_text()]
        run_protoc(
            f"--descriptor_set_in={bundle}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            *services,
        )
    for package in ("quintet", "quintet/v1", "buf", "buf/validate"):
        (out / package / "__init__.py").touch()
        (out / package / "py.typed").touch()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a committed stub is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = [path.relative_to(scratch) for path in Path(scratch).rglob("*") if path.is_file()]
        stale = [p for p in fresh if not (ROOT / p).exists() or not filecmp.cmp(ROOT / p, scratch / p, shallow=False)]
    for path in sorted(stale):
        print(f"protos/{path} is stale: run 'make protos'", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
