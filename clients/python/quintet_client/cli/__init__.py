"""The `quintet` command. It needs the extra `cli`; the rest of the package does not.

A module for each group of commands: `register` declares them, `run_*` functions call the client and write the result.
`command.py` parses and dispatches, `terminal.py` writes text or JSON, `failures.py` writes errors. Read these first.
"""

import os
import sys
from collections.abc import Sequence

# gRPC reads this when it is imported. Its log would mix with the command's output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    try:
        from quintet_client.cli.command import execute
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"rich", "rich_argparse"}:
            raise
        print("error: the quintet command needs: pip install 'quintet-client[cli]'", file=sys.stderr)
        return 2
    return execute(sys.argv[1:] if argv is None else argv)
