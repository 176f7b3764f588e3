"""A private server that speaks TLS, and certificates for it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from guard import guard
from servers import (
    LOOPBACK,
    Server,
    StartError,
    free_port,
    start,
)


@dataclass
class TlsServer:
    """A server that speaks TLS on its port, and the files a client needs. A context manager."""

    server: Server
    ca_file: Path
    client_cert_file: Path
    client_key_file: Path

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.server.port}/0"

    def stop(self) -> None:
        self.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_tls(kind: str = "redis", *, client_certs: bool = False) -> TlsServer:
    """A server with TLS on its port, and without on its unix socket.

    `client_certs`: it takes only clients that show a certificate of its authority. Of the three
    kinds only the system's Redis is built with TLS; the two bundled ones raise StartError.
    """
    folder = Path(tempfile.mkdtemp(prefix="", dir=guard().folder))
    make_certificates(folder)
    for _ in range(10):
        port = free_port()
        settings = {
            "tls-port": str(port),
            "tls-cert-file": str(folder / "server.crt"),
            "tls-key-file": str(folder / "server.key"),
            "tls-ca-cert-file": str(folder / "ca.crt"),
            "tls-auth-clients": "yes" if client_certs else "no",
        }
        try:
            server = start(kind, config=settings)
        except StartError as error:
            if "in use" not in str(error):
                raise
        else:
            server.port = port
            return TlsServer(
                server, folder / "ca.crt", folder / "client.crt", folder / "client.key"
            )
    raise StartError("no port was to be had")


def make_certificates(folder: Path) -> None:
    """Writes ca.crt, and server and client .crt and .key signed by it, valid for one day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(of: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"drainkit tests {of}")])

    def certificate(of: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name(of))
            .issuer_name(name("ca"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=of == "ca", path_length=None), critical=True)
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    key_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca = certificate("ca", ca_key.public_key()).add_extension(key_id, critical=False)
    ca = ca.add_extension(usage, critical=True)
    _write_pem(folder / "ca.crt", ca.sign(ca_key, hashes.SHA256()))
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address(LOOPBACK))]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)
    for of in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = (
            certificate(of, key.public_key())
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .add_extension(issuer, critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        _write_pem(folder / f"{of}.crt", signed)
        _write_pem(folder / f"{of}.key", key)


def _write_pem(path: Path, item: Any) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if path.suffix == ".crt":
        path.write_bytes(item.public_bytes(Encoding.PEM))
    else:
        pem = item.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem)
