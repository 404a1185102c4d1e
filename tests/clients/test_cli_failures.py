"""Error messages and exit codes of the command; pipes, signals, locales."""

import subprocess
import sys
import textwrap
from pathlib import Path

import grpc
import pytest
from quintet_client.cli.price import EXAMPLE

from tests.certificates import Authority
from tests.clients.conftest import COMMAND, ENVIRONMENT, Quintet
from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer, running
from tests.clients.test_cli import json_lines, table_of

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (
            Failure(CODE.NOT_FOUND, "MODEL_NOT_FOUND", 'no such model: "x"; known: sentiment, topics'),
            1,
            "error: no such model: \"x\"; known: sentiment, topics\n  'quintet models' lists the models\n",
        ),
        (
            Failure(CODE.RESOURCE_EXHAUSTED, "SERVER_OVERLOADED", "512 calls are running", retry_after=0.5),
            1,
            "error: 512 calls are running\n  try again in 0.5 s\n",
        ),
        (
            Failure(CODE.INTERNAL, "INTERNAL", "internal error", more=[("request_id", "abc")]),
            1,
            "error: internal error\n  INTERNAL, request id abc\n",
        ),
        (
            Failure(CODE.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "too slow"),
            1,
            "error: too slow\n  --timeout SECONDS allows more time\n",
        ),
        (
            Failure(CODE.INVALID_ARGUMENT, "INVALID_REQUEST", violations=[("texts[0]", "is \x1b[1mbad"), ("", "more")]),
            2,
            "error: the request is invalid\n  text 1: is [1mbad\n  more\n",
        ),
    ],
)
def test_failures_say_what_to_do(
    in_process: Quintet, server: SmallServer, failure: Failure, status: int, message: str
) -> None:
    server.recorder.failures["Classify"].append(failure)
    done = in_process("classify", "hello", "--model", "x")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)


def test_no_server(quintet_command: Quintet) -> None:
    done = quintet_command("health", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no answer from 127.0.0.1:1: Connection refused\n")
    assert "QUINTET_ADDRESS" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("classify", "--top-k", "0", "x"), "argument --top-k: must be a whole number above 0, not '0'"),
        (("health", "--timeout", "soon"), "argument --timeout: must be a number of seconds above 0, not 'soon'"),
        (("health", "--addr", "x"), "unrecognized arguments: --addr x"),
        (("price",), "'quintet price --example' prints a house"),
        (("price", "--file", "missing.json"), "missing.json: no such file or directory"),
        (("models", "--api-key-file", "missing"), "missing: no such file or directory"),
        (("analyze", "--tasks", "mood", "x"), "tasks[0]: must be one of entities"),
        (("classify", "\udcff"), "an argument is not valid UTF-8"),
    ],
)
def test_wrong_command_lines(
    in_process: Quintet, server: SmallServer, arguments: tuple[str, ...], message: str
) -> None:
    done = in_process(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert server.recorder.seen == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON, line 1, column 2"),
        ("[1]", "every house must be a JSON object"),
        ("[]", "no houses"),
        ("a,b\n1,2,3\n", "house 1 has more values than the header has names"),
        ('a,b\n"1', "not CSV after line 1"),
        (table_of({**EXAMPLE, "bedrooms": "two"}), "house.bedrooms: must be a whole number, 0 or more"),
        (table_of({**EXAMPLE, "bedrooms": ""}), "house.bedrooms: is missing"),
        (table_of({**EXAMPLE, "central_air": "maybe"}), "house.central_air: must be true or false"),
        (b"\xff", "standard input is not UTF-8 (byte 0)"),
    ],
)
def test_invalid_files_of_houses(in_process: Quintet, server: SmallServer, content: str | bytes, message: str) -> None:
    done = in_process("price", "--file", "-", stdin=content)
    assert done.returncode == 2
    assert message in done.stderr
    assert server.recorder.seen == []


def test_global_options_stand_on_either_side(
    quintet_command: Quintet, in_process: Quintet, server: SmallServer
) -> None:
    before = quintet_command("--json", "--timeout", "5", "models")
    after = in_process("models", "--timeout", "5", "--json")
    assert json_lines(before.stdout) == json_lines(after.stdout) != []
    assert [call.seconds for call in server.recorder.seen] == pytest.approx([5, 5], abs=2)


def test_the_api_key_is_read_from_a_file_and_never_printed(
    quintet_command: Quintet, in_process: Quintet, server: SmallServer, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sesame\n")
    server.recorder.failures["ListModels"].append(Failure(CODE.UNAUTHENTICATED, message="who are you?"))
    done = quintet_command("models", "--api-key-file", str(tmp_path / "key"))
    assert server.recorder.seen[0].metadata["authorization"] == "Bearer sesame"
    assert done.stderr.startswith("error: who are you?\n  UNAUTHENTICATED, request id ")
    (tmp_path / "key").write_text("söme key")
    wrong = in_process("models", "--api-key-file", str(tmp_path / "key"))
    assert wrong.returncode == 2
    for said in (done, wrong):
        assert "sesame" not in said.stdout + said.stderr
        assert "söme" not in said.stdout + said.stderr


def make_certificate(folder: Path) -> tuple[bytes, bytes]:
    """A key and a self-signed certificate for localhost."""
    what = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    where = "-addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *what.split(), *where.split()], cwd=folder, check=True, capture_output=True)
    return (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()


def test_encryption(quintet_command: Quintet, tmp_path: Path) -> None:
    credentials = grpc.ssl_server_credentials([make_certificate(tmp_path)])
    with running(credentials) as encrypted:
        trusting = quintet_command("health", "--tls-ca", str(tmp_path / "cert.pem"), QUINTET_ADDRESS=encrypted.address)
        assert (trusting.returncode, trusting.stderr) == (0, "")
        doubting = quintet_command("health", "--tls", QUINTET_ADDRESS=encrypted.address)
        assert doubting.returncode == 1
        assert "certificate verify failed" in doubting.stderr.lower().replace("_", " ")


def test_a_closed_pipe_ends_the_command_quietly(server: SmallServer) -> None:
    with subprocess.Popen(
        [*COMMAND, "classify", "--address", server.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"good\n" * 64)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"good\n" * 64)
        process.stdin.close()
        assert process.wait(15) == 141
        assert process.stderr.read() == b""


def test_a_server_that_stops_in_the_middle() -> None:
    with running() as stopping:
        process = subprocess.Popen(
            [*COMMAND, "chat", "wait for me", "--address", stopping.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert process.stdout
        assert process.stdout.read(4) == "You "
    _, said = process.communicate(timeout=15)
    assert process.returncode == 1
    assert said.startswith(f"error: no answer from {stopping.address}: "), "gRPC's own log is not shown"
    assert len(said.splitlines()) == 2


def test_colours_are_for_terminals(quintet_command: Quintet) -> None:
    assert "\x1b" not in quintet_command("models", TERM="xterm").stdout


def test_a_locale_without_the_characters(quintet_command: Quintet) -> None:
    done = quintet_command("chat", "10 €", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout) == (0, "You said: 10 ? \n")
    as_json = quintet_command("chat", "10 €", "--json", PYTHONIOENCODING="latin-1")
    assert '{"text": "€ "}' in as_json.stdout


def test_ctrl_c_is_not_lost_while_an_object_is_deleted() -> None:
    script = """
        import sys, time
        from quintet_client.cli.command import interrupt_again

        class Deleted:
            def __del__(self):
                raise KeyboardInterrupt

        sys.unraisablehook = interrupt_again
        try:
            Deleted()
            time.sleep(20)
        except KeyboardInterrupt:
            print("interrupted")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.parametrize(
    ("has_tls", "options", "advice"),
    [
        (True, (), "does the server use TLS? --tls or --tls-ca FILE encrypt"),
        (False, ("--tls",), "the server does not use TLS there: leave out --tls, --tls-ca and --tls-cert"),
        (True, ("--tls",), "the server's certificate is not from a trusted authority: --tls-ca FILE names"),
        (True, ("--tls-ca", "other.pem"), "the server's certificate is not from a trusted authority"),
        (True, ("--tls-ca", "rubbish.pem"), "a file of --tls-ca, --tls-cert or --tls-key is not PEM"),
    ],
)
def test_a_connection_that_cannot_be_made_says_what_to_do(
    in_process: Quintet, tmp_path: Path, has_tls: bool, options: tuple[str, ...], advice: str
) -> None:
    pair = Authority().issue_server()
    (tmp_path / "other.pem").write_bytes(Authority().pem)
    (tmp_path / "rubbish.pem").write_bytes(b"rubbish")
    with running(grpc.ssl_server_credentials([pair[::-1]]) if has_tls else None) as server:
        done = in_process("ask", "x", "--address", server.address, "--timeout", "5", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert f"\n  {advice}" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_proxy_stands_between_this_machine_and_itself(
    in_process: Quintet, server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    for variable in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for address in (server.address, server.address.replace("127.0.0.1", "localhost"), f"ipv4:{server.address}"):
        assert in_process("info", "--address", address, "--timeout", "5").returncode == 0
    other = in_process("ask", "x", "--address", "203.0.113.1:1", "--timeout", "5")
    assert "Connection refused" in other.stderr, "other addresses are asked through the proxy"
