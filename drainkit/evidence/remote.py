"""Evidence in an object store: sealed in a local folder, then copied, its link claimed for good.

The chain of runs there is one object for each link, `chain/<digest of the run before>.json`. It is
written only if it is missing (S3: If-None-Match), so of two runs that end at once just one follows
a third; the other is sealed again after it. Nothing is overwritten or deleted, so a bucket with
Object Lock will do.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import files
from ..core.summary import RUN_ID
from ..errors import DrainkitError, UsageError
from ..safe import keep_secret, one_line, secret_words
from ..settings.kinds import is_url, store_problem
from .seal import CHAIN, STATEMENT, Link, key_of, newest, parse, plain_files, seal

SPOOL = "drainkit-spool"  # in the folder where the run was started
MARKER = ".drainkit"
_MARK = b"Evidence of drainkit: one folder for each run, and chain/ with the link to each.\n"
MAX_TURNS = 100  # so many other runs may come first


class Store:
    """A folder of an object store, by fsspec; UsageError where the store refuses us."""

    def __init__(self, url: str) -> None:
        """`url`: one that evidence can be kept at (settings.kinds)."""
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        keep_secret({os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
                     os.environ.get("AWS_SESSION_TOKEN", "")} - {""})  # fmt: skip
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            keep_secret(secret_words(os.environ.get(name, "")))
        self.url = f"{scheme}://{rest.rstrip('/')}"
        self._root = rest.strip("/")
        try:
            import fsspec

            with self._told():
                self._fs: Any = fsspec.filesystem(
                    scheme, skip_instance_cache=True, use_listings_cache=False
                )
        except ImportError:
            raise UsageError(
                f"{scheme}:// needs a package: pip install 'drainkit[s3]'"
                + ("" if scheme.startswith("s3") else ", and gcsfs")
            ) from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the store or the network says, in one line without a secret."""
        try:
            yield
        except (ImportError, FileExistsError, DrainkitError):
            raise
        except Exception as error:
            said = str(error) or type(error).__name__
            raise UsageError(f"{self.url}: {said}; check the URL and the credentials") from None

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one of this name; whether it was written."""
        with self._told(), suppress(FileExistsError):
            self._fs.pipe_file(f"{self._root}/{name}", data, mode="create")
            return True
        return False

    def put(self, path: Path, name: str) -> None:
        """Copy a file to where nothing is; FileExistsError for any other place."""
        with self._told():
            self._fs.put_file(str(path), f"{self._root}/{name}", mode="create")

    def names(self, below: str = "") -> list[str]:
        """All objects, by their names in this store."""
        prefix = f"{self._root}/"
        with self._told():
            found = self._fs.find(f"{prefix}{below}")
        return sorted(key.removeprefix(prefix) for key in found if key.startswith(prefix))

    def fetch(self, name: str, folder: Path) -> None:
        """Copy an object of a run; one that is no file of a run under a name that verify adds."""
        run_id, _, rest = name.partition("/")
        path = folder / run_id / (urllib.parse.quote(rest, safe="") if rest.strip(".") else "%2E")
        if not path.parent.exists():
            files.make_folder(path.parent)
        with self._told(), self._fs.open(f"{self._root}/{name}", "rb") as there:
            files.write_chunks(path, iter(lambda: there.read(files.CHUNK), b""))

    def links(self) -> dict[str, Link]:
        """The chain: by a run's digest (or FIRST) the link to the run that follows it."""
        names = [f"{self._root}/{name}" for name in self.names("chain") if name.endswith(".json")]
        with self._told():
            found = self._fs.cat(names) if names else {}
        links: dict[str, Link] = {}
        for key, data in found.items():
            with suppress(ValueError):
                links[key.rpartition("/")[2].removesuffix(".json")] = parse(data, Link)
        return links


class Reports:
    """Where runs leave their evidence: a folder; or an object store, by way of a folder here."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        """Refuses, before anything is drained, a store that refuses us or could fork the chain."""
        self.folder = folder  # where the run's folder is made
        self._store = None if url is None else Store(url)
        self._tail: Link | None = None  # the newest run there
        self._failure: DrainkitError | None = None
        if (store := self._store) is not None:
            if store.create(MARKER, _MARK) and store.create(MARKER, b""):
                raise UsageError(
                    f"{store.url}: this store overwrites an object that must be new, so "
                    "two runs could fork the chain; choose another"
                )
            self._tail = newest(store.links())

    def shown(self, run_dir: Path) -> str:
        """Where the run's evidence will be found."""
        return f"{self._store.url}/{run_dir.name}" if self._store else str(run_dir)

    def seal(self, run_dir: Path, **told: Any) -> str:
        """Seal the run's folder, `told` as `seal.seal` takes it; the statement's digest.

        In a store as the run after the newest one there; again if another came first meanwhile. It
        is sealed here whatever becomes of the store.
        """
        if self._store is None:
            return seal(run_dir, **told)
        for _ in range(MAX_TURNS):
            files.remove(run_dir / STATEMENT)  # of a seal after a run that another one follows
            if self._tail is None:
                files.remove(self.folder / CHAIN)
            else:
                files.write_json(self.folder / CHAIN, self._tail)
            digest, before = seal(run_dir, **told), key_of(self._tail)
            link: Link = {"run_id": run_dir.name, "statement_sha256": digest}
            try:
                # a try that was cut off may have come through all the same
                if (
                    self._store.create(f"chain/{before}.json", json.dumps(link).encode())
                    or (links := self._store.links()).get(before) == link
                ):
                    return digest
            except DrainkitError as error:
                self._failure = error
                return digest
            self._tail = newest(links)
        self._failure = DrainkitError(f"{self._store.url}: other runs always came first")
        return digest

    def deliver(self, run_dir: Path) -> None:
        """To a store: copy the sealed folder, the statement last, and remove it here.

        DrainkitError names the folder if it could not be copied.
        """
        if self._store is None:
            return
        try:
            if self._failure is not None:
                raise self._failure
            for path in sorted(plain_files(run_dir), key=lambda path: path.name == STATEMENT):
                self._store.put(path, f"{run_dir.name}/{path.name}")
        except (DrainkitError, OSError) as error:
            raise DrainkitError(
                f"the evidence is in {run_dir} still and could not be copied to "
                f"{self.shown(run_dir)}: {error}"
            ) from None
        files.remove_folder(self.folder)


def reports_at(place: Path | str, begun: Path | None = None) -> Reports:
    """The reports folder of a path, or the store of a URL, checked before anything is drained.

    With the folder of a run that was `begun`, its own: if that is in a spool, the store of the URL.
    """
    if is_url(place) and (begun is None or begun.resolve().parents[1].name == SPOOL):
        spool = begun.resolve().parent if begun else Path(SPOOL) / secrets.token_hex(4)
        return Reports(spool, str(place))
    return Reports(begun.parent if begun else Path(place))


@contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """The folder itself; of a URL a copy, for as long as the block runs.

    A copy of a reports folder holds a chain.json that names the newest run of the chain. Raises
    UsageError for what is no folder, or cannot be read.
    """
    if not is_url(place):
        if not Path(place).is_dir():
            raise UsageError(f"{one_line(place)} is not a folder; name a run's, or that of reports")
        yield Path(place)
        return
    if problem := store_problem(place):
        raise UsageError(f"{place.partition(':')[0]}://...: {problem}")
    above, _, name = place.rstrip("/").rpartition("/")
    is_run = RUN_ID.fullmatch(name) is not None
    with tempfile.TemporaryDirectory(prefix="drainkit-") as own:
        folder = Path(own)
        store = Store(above if is_run else place)
        if not (names := store.names(name if is_run else "")):
            raise UsageError(f"{one_line(place, 400)} holds nothing; check the URL")
        for one in names:
            if RUN_ID.fullmatch(one.partition("/")[0]):
                store.fetch(one, folder)
        if not is_run and (last := newest(store.links())):
            files.write_json(folder / CHAIN, last)
        yield folder / name if is_run else folder
