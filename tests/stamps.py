"""A keeper's key, and a time-stamping authority (RFC 3161) by openssl, on loopback."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

CONFIG = """
[req]
distinguished_name = name
x509_extensions = ours
prompt = no
[name]
CN = time stamps
[ours]
basicConstraints = critical,CA:TRUE
extendedKeyUsage = critical,timeStamping
[tsa]
default_tsa = ours_too
[ours_too]
serial = {0}/serial
signer_cert = {0}/tsa.pem
signer_key = {0}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
"""


@contextmanager
def time_stamps(folder: Path) -> Iterator[str]:
    """The authority's address; keeper, keepers and tsa.pem are in the folder."""

    def run(*command: object, stdin: bytes = b"") -> bytes:
        done = subprocess.run([*map(str, command)], input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, done
        return done.stdout

    class Authority(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = folder / "query"
            query.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            reply = run(
                "openssl", "ts", "-reply", "-config", folder / "tsa.cnf", "-queryfile", query
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    (folder / "tsa.cnf").write_text(CONFIG.format(folder))
    (folder / "serial").write_text("01")
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", "9", "-config", folder / "tsa.cnf", "-keyout", folder / "tsa.key",
        "-out", folder / "tsa.pem")  # fmt: skip
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "keeper")
    (folder / "keepers").write_text(f"keeper@example.com {(folder / 'keeper.pub').read_text()}")
    with HTTPServer(("127.0.0.1", 0), Authority) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
