"""A private server that speaks TLS, and certificates for it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import trustme
from guard import guard
from servers import LOOPBACK, Running, Server, start


@dataclass
class TlsServer(Running):
    """A server that speaks TLS on its port, and the files a client needs."""

    server: Server
    folder: Path  #: with ca.crt, client.crt and client.key

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.server.port}/0"

    def stop(self) -> None:
        self.server.stop()


def start_tls(*, client_certs: bool = False) -> TlsServer:
    """A server with TLS on its port, and without on its unix socket.

    `client_certs`: it takes only clients that show a certificate of its authority. Of the three
    kinds only the system's Redis is built with TLS.
    """
    folder = Path(tempfile.mkdtemp(prefix="", dir=guard().folder))
    make_certificates(folder)
    files = {f"tls-{what}-file": str(folder / name) for what, name in (
        ("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt"))}  # fmt: skip
    answer = {"tls-auth-clients": "yes" if client_certs else "no"}
    config = {"port": "0", "tls-port": "{port}", **files, **answer}
    return TlsServer(start("redis", port=True, config=config), folder)


def make_certificates(folder: Path) -> None:
    """Writes ca.crt, and server and client .crt and .key signed by it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for of in ("server", "client"):
        made = authority.issue_cert("localhost", LOOPBACK)
        made.private_key_pem.write_to_path(str(folder / f"{of}.key"))
        made.cert_chain_pems[0].write_to_path(str(folder / f"{of}.crt"))
