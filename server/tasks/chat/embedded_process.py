"""The embedded language model's process: llama.cpp behind the OpenAI protocol, on loopback, with a random key.

    python -m server.tasks.chat.embedded_process

A native crash or a failed allocation ends this process but not the server. It imports nothing of the server.
"""

import ctypes
import json
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

_PR_SET_PDEATHSIG = 1
_NICE = 12  # as the server's lanes, which must not wait for an answer


def main() -> None:
    """Serve until standard input ends."""
    config = SimpleNamespace(**json.loads(sys.stdin.readline()))  # as EmbeddedModel writes it
    _die_with(config.parent)
    # Ctrl-C in a terminal is for the server, which lets running calls finish. Not a session: see domain/priority.py.
    os.setpgrp()
    os.nice(_NICE)
    # llama.cpp may print. That goes to the log; standard output carries only the line with the address.
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = _serve(config)
    os.write(output, json.dumps({"address": server.listening_address.removeprefix("http://")}).encode() + b"\n")
    os.close(output)
    sys.stdin.read()
    os._exit(0)  # there is no state to save


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before prctl
        os._exit(0)


def _serve(config: SimpleNamespace) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config.model_path
    params.model_alias = {config.model_name}
    params.offline = True
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config.api_key]
    # Each slot has its own context: in a shared one, long prompts make every running request fail when it is full.
    params.kv_unified = False
    params.n_parallel = config.slots
    params.n_ctx = config.slots * config.slot_tokens
    params.n_predict = config.slot_tokens
    params.fit_params = False
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = config.threads
    params.cpuparams_batch.n_threads = config.threads
    params.ui = False
    params.endpoint_slots = False
    params.cors_origins = ""
    params.verbosity = 1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
