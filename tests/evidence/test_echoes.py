"""A server that repeats whatever it is told: no byte of a password is shown, written or logged."""

from __future__ import annotations

import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from backlogs import GROUP, fill
from books import ask
from clusters import make_certificates
from conftest import ROOT, Cli, intent
from guard import guard
from servers import Server

from drainkit.safe import one_line

# with what JSON, HTML, URLs, Python and Redis write otherwise; longer than Redis echoes
PARTS = ["Zq9'Xw\"7", "Kf<4&Jv/8", "Pb\\2Hm%5", "Tz\u00e46Gd\u20ac3", "Ny 1 Lc"]
PASSWORD = "|".join(PARTS) + "0123456789" * 12
ENCODED = "".join(f"%{byte:02X}" for byte in PASSWORD.encode())
SHOWN = ("Zq9", "Xw", "Kf", "Jv", "Pb", "Hm", "Tz", "Gd", "Ny", "Lc", "%5A%71", "456789012")

PAGE_PARTS = [f"{part}5{part}" for part in ("Zq", "Xw", "Kf", "Jv", "Pb", "Hm", "Tz", "Gd")]

FORMS = {
    "user": "redis://bob:{pw}@{at}/0",
    "no user": "redis://:{pw}@{at}",
    "user alone": "redis://{pw}@{at}",
    "option": "redis://{at}/0?password={pw}",
    "option, written oddly": "redis://{at}/0?db=0&pass%77ord={pw}",
    "TLS": "rediss://bob:{pw}@localhost:{tls}/0?ssl_ca_certs={ca}",
    "TLS key": "rediss://localhost:{tls}/0?ssl_ca_certs={ca}&ssl_password={pw}&password={pw}",
    "socket": "unix://bob:{pw}@{socket}",
    "socket, option": "unix://{socket}?password={pw}",
    "Sentinel": "redis+sentinel://bob:{pw}@{at}/mymaster",
    "Sentinel, option": "redis+sentinel://{at}/mymaster?password={pw}",
    "Cluster": "redis+cluster://bob:{pw}@{at}",
    "Cluster, option": "redis+cluster://{at}?password={pw}",
    "no scheme": "bob:{pw}@{at}",
}


def _unknown(told: list[bytes]) -> bytes:
    """As Redis does: 128 characters of what it was told."""
    args = b"".join(b"'%b' " % arg for arg in told[1:])[:128]
    return b"-ERR unknown command '%b', with args beginning with: %b\r\n" % (told[0], args)


def _late(told: list[bytes], heard: bytes) -> bytes:
    """It takes the login, and repeats it in whatever comes then."""
    if told[0] in (b"AUTH", b"CLIENT", b"SELECT"):
        return b"+OK\r\n"
    if told[0] == b"SENTINEL":
        return b"*2\r\n$%d\r\n%b\r\n$4\r\n6379\r\n" % (len(heard), heard)
    if told[0] == b"INFO":
        text = b"redis_version:%b\r\nrole:master\r\nrun_id:1" % heard
        return b"$%d\r\n%b\r\n" % (len(text), text)
    return b"-ERR you said %b\r\n" % heard


#: How it answers: from the words of the command, and all that it heard before.
ANSWERS: dict[str, Callable[[list[bytes], bytes], bytes]] = {
    "unknown": lambda told, heard: _unknown(told),
    "denied": lambda told, heard: b"-NOPERM no right to '%b'\r\n" % heard[:90],
    "wrong": lambda told, heard: b"-WRONGPASS %b is wrong\r\n" % heard,
    "loading": lambda told, heard: b"-LOADING %b\r\n" % heard,
    "moved": lambda told, heard: b"-MOVED %b\r\n" % heard,
    "web": lambda told, heard: b"HTTP/1.1 400 Bad Request\r\n\r\nnot understood: %b" % heard,
    "late": _late,
}


class Echo:
    """A server on a port, on one with TLS, and on a unix socket; `answer` says how it answers."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="", dir=guard().folder))
        make_certificates(self.folder)
        self.answer = "unknown"
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.folder / "server.crt", self.folder / "server.key")
        own = socket.socket(socket.AF_UNIX)
        own.bind(str(self.folder / "s"))
        own.listen()
        plain, secure = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        self.places = {
            "at": f"127.0.0.1:{plain.getsockname()[1]}", "tls": str(secure.getsockname()[1]),
            "socket": str(self.folder / "s"), "ca": str(self.folder / "ca.crt"),
        }  # fmt: skip
        self.sockets = (plain, tls.wrap_socket(secure, server_side=True), own)
        for listening in self.sockets:
            threading.Thread(target=self._serve, args=(listening,), daemon=True).start()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        heard = b""
        with closing(client), client.makefile("rb") as file:
            while line := file.readline():
                told = []
                for _ in range(int(line[1:])):
                    size = int(file.readline()[1:])
                    told.append(file.read(size + 2)[:-2])
                heard = b" ".join([heard, *told]).strip()
                client.sendall(ANSWERS[self.answer](told, heard.replace(b"\r\n", b"  ")))


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    for listening in echo.sockets:
        listening.close()


def shown_in(text: str) -> list[str]:
    return [part for part in SHOWN if part in text]


CASES = [("user", answer) for answer in ANSWERS]
CASES += [(form, ("unknown", "late")[n % 2]) for n, form in enumerate(FORMS) if form != "user"]


@pytest.mark.parametrize(("form", "answer"), CASES)
def test_no_byte_of_a_password_comes_back(cli: Cli, echo: Echo, form: str, answer: str) -> None:
    """Of whatever form of URL, on stdout, on stderr, in tracebacks and in files."""
    echo.answer = answer
    url = FORMS[form].format(pw=ENCODED, **echo.places)
    args = ("check", "--json") if answer == "late" else ("status", "--debug")
    run = cli(*args, env={"DRAINKIT_REDIS_URL": url})
    assert run.rc in ((3,) if answer == "web" else (1, 2, 3, 4)), (run.out, run.err)
    assert answer != "web" or "does not speak Redis's protocol" in run.err
    assert shown_in(run.out + run.err) == [], run.err
    assert list(cli.cwd.iterdir()) == []


def test_no_byte_of_a_password_stays_in_a_notebook(cli: Cli, echo: Echo) -> None:
    """Run by plain papermill, whose page and log hold the error."""
    echo.answer = "late"
    url = FORMS["user"].format(pw=ENCODED, **echo.places)
    run = cli.papermill(ROOT / "notebooks" / "01_analyse_backlog.ipynb", "out.ipynb",
                        env={"DRAINKIT_REDIS_URL": url})  # fmt: skip
    assert "you said" in run.err
    assert shown_in((cli.cwd / "out.ipynb").read_text() + run.out + run.err) == []


S3_URLS = ("s3://bucket?secret={}", "s3://bucket/a b?secret=a {}", "s3://key:{}@bucket/p",
           "s3://key:a {}@bucket/p", "s3://bucket/p#{}", "https://host/?sig={}")  # fmt: skip


@pytest.mark.parametrize(("command", "url", "endpoint"), [
    *(("run --reports-dir", url, "") for url in S3_URLS), ("verify", S3_URLS[0], ""),
    ("verify", S3_URLS[3], ""), ("run --notebooks-dir", S3_URLS[0], ""),
    ("drain --plan", S3_URLS[2], ""), ("verify --debug", "s3://bucket/p", "http://k:{}@127.0.0.1:1"),
    ("verify --debug", "s3://bucket/p", "http://127.0.0.1:1/?token={}"),
    ("verify --debug", "s3://bucket/p", "http://127.0.0.1:1/#{}"),
])  # fmt: skip
def test_a_stores_url_gives_no_secret_away(cli: Cli, command: str, url: str, endpoint: str) -> None:
    """Wherever it is written instead of s3://BUCKET/PREFIX, blanks and all; nor does its
    endpoint's, or the login beside it."""
    env = {"AWS_ENDPOINT_URL": endpoint.format("Zq9-Xw7"), "AWS_MAX_ATTEMPTS": "1",
           "AWS_ACCESS_KEY_ID": "admin", "AWS_SECRET_ACCESS_KEY": "Sk9-Key"}  # fmt: skip
    run = cli(*command.split(), url.format("Zq9-Xw7"), env=env, secret=("Zq9", "Xw7", "Sk9"))
    assert run.rc in (2, 3), run.err


def test_a_login_that_nobody_knew_of_is_struck_out_of_a_line() -> None:
    """A URL with a login in any text, such as an error's of a library: also with one slash."""
    others = ("redis://u:{}@h/0", "rediss://:{}@h", "s3:/k:{}@b/p", "unix:///s?password={}",
              "redis://h?password=a@{}")  # fmt: skip
    for url in (*(u for u in S3_URLS if " " not in u), *others):  # a blank ends what is known of it
        line = one_line(f"cannot open {url.format('Zq9-Xw7')}")
        assert line.startswith("cannot open ")
        assert not {"Zq9", "Xw7"} & {*re.findall(r"\w+", line)}


def test_a_password_among_the_events_is_on_no_page(valkey: Server, stream: str, cli: Cli) -> None:
    """Quotes, accents and all: in labels of figures, names of groups, fields, JSON keys, pages."""
    word = "".join(f"{mark}{part}" for mark, part in zip("'\"<&/\\ä€", PAGE_PARTS, strict=True))
    ask(valkey, "ACL", "SETUSER", "bob", "on", f">{word}", "+@all", "~*")
    now = int(time.time() * 1000)
    event = {"symbol": "X", "confidence": "many", "side": word, word: word}
    fill(valkey, stream, [(now + k, intent(source=word)) for k in range(40)], group=GROUP)
    fill(valkey, stream, [(now + 50 + k, event) for k in range(40)])
    ask(valkey, "XGROUP", "CREATE", stream, word, "0")
    encoded = "".join(f"%{byte:02X}" for byte in word.encode())
    env = {"DRAINKIT_REDIS_URL": valkey.tcp_url.replace("//", f"//bob:{encoded}@")}
    cli.done("run", "--max-events", "all", "--stream", stream, "--consumer-group", GROUP,
             env=env, secret=PAGE_PARTS)  # fmt: skip
    for path in cli.cwd.glob("reports/*/*"):
        if path.suffix != ".parquet":
            found = [part for part in PAGE_PARTS if part in path.read_text()]
            assert found == [], path.name
