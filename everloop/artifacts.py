"""Bytes by their content: put, get, check. A local folder or any fsspec URL; the same bytes are kept once.

A blob is at `sha256/<2 hex>/<64 hex>`; it appears whole or not at all and never changes. What took long to make of
other bytes is also found by a key, at `made/<2 hex>/<64 hex>`; those notes may be lost: it is made again.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import fsspec

from everloop import disk
from everloop.errors import IntegrityError, NotFound
from everloop.records import Blob
from everloop.settings import DISK_FLOOR_MIB

CHUNK_BYTES = 1 << 20
FLOOR_BYTES = DISK_FLOOR_MIB << 20
"""Nothing is written to a local disk with less than this free: the database beside it must go on."""


class Artifacts:
    """An artifact store. Safe to share between threads and processes."""

    def __init__(self, url: str, floor_bytes: int = FLOOR_BYTES) -> None:
        """*url*: an absolute path, or an fsspec URL such as `s3://bucket/prefix`."""
        self.floor_bytes = floor_bytes
        self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)  # others write there too
        self.local = self.fs.protocol in ("file", ("file", "local"))

    def put(self, data: bytes, name: str = "") -> Blob:
        """Store *data*; storing the same bytes again changes nothing. Raises `StorageLow`."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.has(digest):
            with self._staged(digest, len(data)) as target:
                target.write(data)
        return Blob(sha256=digest, size_bytes=len(data), name=name)

    def put_file(self, path: Path, name: str = "") -> Blob:
        """Store a local file's bytes as they are while it is read once. Raises `StorageLow`."""
        digest = hashlib.sha256()
        size = 0
        staged = f"{self.root}/incoming/{uuid.uuid4().hex}"
        self._room(path.stat().st_size)
        self.fs.makedirs(f"{self.root}/incoming", exist_ok=True)
        with self._all_of(staged):
            with path.open("rb") as source, self.fs.open(staged, "wb") as target:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    target.write(chunk)
            self._settle(staged, digest.hexdigest())
        return Blob(sha256=digest.hexdigest(), size_bytes=size, name=name or path.name)

    def get(self, blob: Blob | str) -> bytes:
        """The bytes, checked against their digest. Raises `NotFound`, `IntegrityError`."""
        digest = blob if isinstance(blob, str) else blob.sha256
        try:
            data = bytes(self.fs.cat_file(self._path(digest)))
        except FileNotFoundError:
            raise NotFound(f"no artifact {digest[:12]} is stored") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise IntegrityError(f"artifact {digest[:12]} does not have the bytes its digest says")
        return data

    def remember(self, key: str, blob: Blob) -> None:
        """*blob* is what is made of what *key* (64 hex digits) stands for. Raises `StorageLow`."""
        note = json.dumps({"sha256": blob.sha256, "size_bytes": blob.size_bytes, "name": blob.name}).encode()
        staged, path = f"{self.root}/incoming/{uuid.uuid4().hex}", self._note(key)
        self._room(len(note))
        self.fs.makedirs(f"{self.root}/incoming", exist_ok=True)
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        with self._all_of(staged):
            self.fs.pipe_file(staged, note)
            if self.local:
                Path(staged).replace(path)
            else:
                self.fs.mv(staged, path)

    def recalled(self, key: str) -> Blob | None:
        """What was remembered of *key* and is still stored; None where nothing is, or where the note is damaged."""
        try:
            blob = Blob.model_validate_json(self.fs.cat_file(self._note(key)))
        except (OSError, ValueError):
            return None
        return blob if self.has(blob.sha256) else None

    def has(self, digest: str) -> bool:
        return bool(self.fs.exists(self._path(digest)))

    @contextmanager
    def open_local(self, blob: Blob) -> Iterator[Path]:
        """A local file with the blob's checked bytes, for readers that need a path. Do not write to it."""
        if self.local:
            path = Path(self._path(blob.sha256))
            if not path.exists():
                raise NotFound(f"no artifact {blob.sha256[:12]} is stored")
            if _digest(path) != blob.sha256:
                raise IntegrityError(f"artifact {blob.sha256[:12]} does not have the bytes its digest says")
            yield path
            return
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / blob.sha256
            self._download(blob.sha256, path)
            yield path

    def _download(self, digest: str, path: Path) -> None:
        """A blob's bytes into *path*, a chunk at a time. Raises `NotFound`, `IntegrityError`."""
        try:
            with self.fs.open(self._path(digest), "rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
        except FileNotFoundError:
            raise NotFound(f"no artifact {digest[:12]} is stored") from None
        if _digest(path) != digest:
            raise IntegrityError(f"artifact {digest[:12]} does not have the bytes its digest says")

    def _note(self, key: str) -> str:
        return f"{self.root}/made/{key[:2]}/{key}"

    def _path(self, digest: str) -> str:
        return f"{self.root}/sha256/{digest[:2]}/{digest}"

    @contextmanager
    def _staged(self, digest: str, size: int) -> Iterator[BinaryIO]:
        self._room(size)
        staged = f"{self.root}/incoming/{uuid.uuid4().hex}"
        self.fs.makedirs(f"{self.root}/incoming", exist_ok=True)
        with self._all_of(staged):
            with self.fs.open(staged, "wb") as target:
                yield target
            self._settle(staged, digest)

    @contextmanager
    def _all_of(self, staged: str) -> Iterator[None]:
        """What is left of a write that failed is removed; a full disk is said as `StorageLow`."""
        try:
            yield
        except BaseException as error:
            with suppress(OSError):
                self.fs.rm_file(staged)
            if self.local and disk.is_full(error):
                raise disk.full(Path(self.root), self.floor_bytes) from error
            raise

    def _settle(self, staged: str, digest: str) -> None:
        path = self._path(digest)
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if self.local:
            Path(staged).chmod(0o400)  # a blob never changes, not even by its owner's mistake
            with Path(staged).open("rb") as written:
                os.fsync(written.fileno())
            Path(staged).replace(path)
        else:
            self.fs.mv(staged, path)

    def _room(self, size: int) -> None:
        if not self.local:
            return
        try:
            Path(self.root, "incoming").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if disk.is_full(error):
                raise disk.full(Path(self.root), self.floor_bytes) from error
            raise
        found = disk.low([Path(self.root)], self.floor_bytes, size)
        if found is not None:
            raise found


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
