"""An object store on loopback: moto's server, which speaks S3 with conditional writes and IAM."""

from __future__ import annotations

import http.client
import threading
from typing import Any

SECRET = "no-body-may-see-this-word"


class S3:
    """A store on loopback, and its client as an administrator has it."""

    nodes = ()  # no Redis server is its part

    def __init__(self) -> None:
        """ImportError where a package is missing."""
        import boto3
        import s3fs  # noqa: F401
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        # one request at a time: moto looks whether an object is there, and only then writes it
        app = DomainDispatcherApplication(create_backend_app)
        self._server: Any = make_server("127.0.0.1", 0, app)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.client: Any = boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id="admin", aws_secret_access_key="x",
            region_name="us-east-1",
        )  # fmt: skip
        self.env = {  # what a user of the store sets
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip

    def _post(self, name: str, body: bytes = b"") -> None:
        link = http.client.HTTPConnection(self.endpoint.removeprefix("http://"))
        link.request("POST", f"/moto-api/{name}", body, {"Content-Type": "text/plain"})
        assert link.getresponse().status == 200
        link.close()

    def check_logins(self) -> None:
        """From now on IAM's rules hold, and nobody has a login."""
        self._post("reset-auth", b"0")

    def reset(self) -> None:
        """Makes it as new, with the empty bucket `evidence`; starts it again if need be."""
        if self._server is None:
            self.__init__()  # type: ignore[misc]
        self._post("reset")
        self._post("reset-auth", b"inf")
        self.client.create_bucket(Bucket="evidence")

    def close_clients(self) -> None:
        """There is but one, which stays."""

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
