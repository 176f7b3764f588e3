"""The documents say what is so: each command in them runs, and says what they show."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from backlogs import GROUP, deliver, fill, original_backlog, seed
from books import ask, audit, pending
from conftest import ROOT, Cli, CliResult
from runs import keygen, make_run, seal
from servers import Server

STREAM = "quantum:stream:trade.intent"
README = (ROOT / "README.md").read_text()
README += (ROOT / "drainkit" / "examples" / "REFERENCE.md").read_text()


def block(language: str) -> str:
    """The first fenced block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


def test_the_help_in_the_readme_is_the_programs(cli: Cli) -> None:
    """The reference is the output of `drainkit --help`, letter for letter."""
    (shown,) = re.findall(r"<!-- help -->\n+```text\n(.*?)```", README, re.DOTALL)
    assert shown.strip() == cli("--help", env={"COLUMNS": "80"}).out.strip()


def run_document(name: str, cli: Cli, url: str = "", **env: str) -> CliResult:
    """Its commands, in order, up to one that fails; each has to say what the document shows."""
    found = re.findall(
        r"(<!--[^\n]*-->)?\n *```(bash|console)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL
    )
    programs = f"{_with_jq(cli.cwd)}{Path(sys.executable).parent}:{os.environ['PATH']}"
    env, folder, done = {**env, "DRAINKIT_REDIS_URL": url}, cli.cwd, CliResult((), 0, "", "")
    told = ""
    for marker, language, indented in found:
        block = re.sub(r"(?m)^   ", "", indented).strip()
        if language == "console":
            for line in block.splitlines():
                assert " ".join(line.split()) in " ".join(told.split()), (name, line, told)
        elif any(word in marker for word in ("command: ", "run by tests/")):  # by .ci/run, too
            continue
        elif block.startswith("cd "):
            folder /= block.removeprefix("cd ")
        else:
            told, here = "", {**env, "PATH": programs}
            own = re.search(r"(?m)^(drainkit|papermill|jupyter) ", block)
            for command in block.splitlines() if own else [block]:
                program, _, words = command.partition(" ")
                if program == "drainkit":
                    done = cli(*shlex.split(words), env=env)
                elif program in ("papermill", "jupyter"):  # forked, as `drainkit` is
                    parts = _in_shell(f"printf '%s\\n' {words}", folder, here).out.splitlines()
                    module = program if program == "papermill" else parts.pop(0)
                    done = cli.finish(cli.start(*parts, env={**os.environ, **env}, module=module))
                else:
                    done = _in_shell(command, folder, here)
                told += done.out + done.err
                if done.rc != 0:
                    return done
    return done


def _in_shell(script: str, folder: Path, env: dict[str, str]) -> CliResult:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DRAINKIT_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False,
        cwd=folder, env={**inherited, **env},
    )  # fmt: skip
    return CliResult((script,), done.returncode, done.stdout, done.stderr)


def _with_jq(folder: Path) -> str:
    """Where this machine has no jq: a folder with a program of that name, of its Python binding."""
    if shutil.which("jq"):
        return ""
    program = folder / ".jq" / "jq"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f"#!{sys.executable}\nimport fileinput, json, sys, jq\n"
        "raw, (text, *files) = '-r' in sys.argv, [a for a in sys.argv[1:] if a[0] != '-']\n"
        "for found in jq.compile(text).input(text=''.join(fileinput.input(files))):\n"
        "    print(found if raw else json.dumps(found))\n"
    )
    program.chmod(0o755)
    return f"{program.parent}:"


def test_every_command_of_the_readme_works(valkey: Server, cli: Cli) -> None:
    """The way from an own stream to a live drain, as it stands there, drains the backlog."""
    seed(valkey, STREAM, 115)
    done = run_document("README.md", cli, valkey.url)
    assert done.rc == 0, done
    assert len(audit(valkey, STREAM)) == 15


def test_every_command_of_the_runbook_works(valkey: Server, cli: Cli) -> None:
    """On the original report's stream each command says what the runbook shows; all is drained."""
    fill(valkey, STREAM, original_backlog(), group=GROUP, position="1766594570000-0")
    for n in range(1, 35):
        ask(valkey, "XGROUP", "CREATECONSUMER", STREAM, GROUP, f"execution-{n:02d}")
    left = deliver(valkey, STREAM, "execution-07", 25)
    ask(valkey, "XCLAIM", STREAM, GROUP, "execution-07", 0, *left, "IDLE", 7_200_000, "JUSTID")
    ask(valkey, "XGROUP", "SETID", STREAM, GROUP, "1766594572014-0")
    ask(valkey, "XGROUP", "CREATE", STREAM, "quantum:group:trade_intent_consumer:trade.intent", "$")
    # a test cannot wait until its consumers have been idle for an hour
    young = {"DRAINKIT_MIN_IDLE_MIN": "0", "DRAINKIT_ALLOW_ACTIVE_CONSUMERS": "true"}
    fast = {"DRAINKIT_THROTTLE": "none"}
    done = run_document("drainkit/examples/RUNBOOK.md", cli, valkey.url, **young, **fast)
    assert done.rc == 0, done
    assert len(audit(valkey, STREAM)) == 10_012
    assert pending(valkey, STREAM) == 0


@pytest.mark.slow
def test_every_command_of_the_notebooks_page_works(valkey: Server, cli: Cli) -> None:
    """Copies run whole and one by one; the digest of 02 arms 03, and the books balance."""
    seed(valkey, STREAM, 115)
    done = run_document("notebooks/README.md", cli, valkey.url)
    assert done.rc == 0, done
    assert len(audit(valkey, STREAM)) == 15
    assert (cli.cwd / "out.html").stat().st_size > 100_000


TSA_CONFIG = """
[tsa]
default_tsa = ours
[ours]
serial = {0}/serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
"""


@contextmanager
def time_stamps(folder: Path) -> Iterator[str]:
    """A keeper's key, and a time-stamping authority (RFC 3161) by openssl: its address on loopback;
    keeper, keepers and tsa.pem are in the folder."""

    def run(command: str) -> bytes:
        words = shlex.split(command)
        return subprocess.run(words, cwd=folder, capture_output=True, check=True).stdout

    class Authority(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            reply = run("openssl ts -reply -config tsa.cnf -queryfile query -signer tsa.pem"
                        " -inkey tsa.key")  # fmt: skip
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    (folder / "tsa.cnf").write_text(TSA_CONFIG.format(folder))
    (folder / "serial").write_text("01")
    run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=stamps"
        " -addext extendedKeyUsage=critical,timeStamping -keyout tsa.key -out tsa.pem"
    )
    (folder / "keepers").write_text(f"keeper@example.com {keygen(folder / 'keeper')}")
    with HTTPServer(("127.0.0.1", 0), Authority) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("how", ["as sealed", "changed", "added", "anew", "another archive"])
@pytest.mark.slow
def test_an_auditor_needs_no_drainkit(how: str, cli: Cli) -> None:
    """The commands pass the example in silence, fail on a changed file, and name an added one; a
    keeper's lines are signed, time-stamped and hold the chain; an archived run comes back."""
    reports = cli.cwd / "reports"
    example = shutil.copytree(ROOT / "reports" / "example", reports / "example")
    runs = [make_run(reports, n) for n in range(3)]
    for run in runs:
        seal(run)
    env = {"RUN": runs[1].name}
    if how == "changed":
        (example / "run.json").write_text("{}")
    if how == "added":
        (example / "extra.txt").write_text("x")
    if how == "anew":  # sealed anew, so that all fits, but for who kept the lines of before
        cli.done("verify", "reports", "--checkpoint", "kept")
        (reports / "chain.json").unlink()
        for run in runs:
            (run / "statement.json").unlink()
        for run in runs:
            seal(run, parameters={})
    if how == "another archive":
        env["TAR_OPTIONS"] = "--exclude=run.json"
    with time_stamps(cli.cwd) as address:
        done = run_document("reports/README.md", cli, TSA=address, **env)
    assert (done.rc == 0) is (how == "as sealed"), done
    assert ("extra.txt" in done.out) is (how == "added")
    assert ("run.json: FAILED" in done.out) is (how in ("changed", "another archive"))
    assert ("made anew" in done.out) is (how == "anew")


def test_the_python_example_runs(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of the library prints the books of a dry run."""
    seed(valkey, STREAM)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    exec(block("python"), {})  # noqa: S102 - our own
    assert "total_read=200" in capsys.readouterr().out


def test_the_toml_example_is_understood(cli: Cli) -> None:
    """The example of drainkit.toml has no key that drainkit refuses."""
    (cli.cwd / "drainkit.toml").write_text(block("toml"))
    cli.fails(3, "drain", "--env", "production", "--redis-url", "redis://127.0.0.1:1/0")


def test_the_benchmarks_run() -> None:
    """The scripts that their page names are there, and start."""
    folder = ROOT / "tests" / "benchmarks"
    named = re.findall(r"python tests/benchmarks/(\w+\.py)", (folder / "README.md").read_text())
    assert named == ["live.py", "scale.py"]
    for script in named:
        command = [sys.executable, str(folder / script), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "--rounds" in shown
