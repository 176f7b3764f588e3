"""Certificates for a server that speaks TLS, and for its clients."""

from __future__ import annotations

from pathlib import Path

import trustme
from servers import LOOPBACK


def make_certificates(folder: Path) -> dict[str, str]:
    """Writes ca.crt, and server and client .crt and .key signed by it; the lines of a server's
    configuration that has TLS on its port, and none on its unix socket.

    Of the three kinds of servers only the system's Redis is built with TLS.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for of in ("server", "client"):
        made = authority.issue_cert("localhost", LOOPBACK)
        made.private_key_pem.write_to_path(str(folder / f"{of}.key"))
        made.cert_chain_pems[0].write_to_path(str(folder / f"{of}.crt"))
    files = {"cert": "server.crt", "key": "server.key", "ca-cert": "ca.crt"}
    named = {f"tls-{what}-file": str(folder / name) for what, name in files.items()}
    return {"port": "0", "tls-port": "{port}", **named}
