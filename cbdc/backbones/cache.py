"""Embeddings kept on disk, by the sha256 of the image."""

import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import CBDCError

_TIMEOUT = 60.0  # seconds to wait for another process to finish its batch


class EmbeddingCache:
    """A SQLite file of float32 rows; each call of `put` is one transaction, so that a kill loses at most that one.

    Several threads and several processes may use the same file. A row whose checksum does not fit counts as absent.

    Parameters
    ----------
    path : Path
        The file; made if absent, as is its folder.

    Raises
    ------
    CBDCError
        If the file is damaged, is no cache, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_TIMEOUT, check_same_thread=False, isolation_level=None)
            with self._transaction():
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS embeddings (sha256 BLOB PRIMARY KEY, embedding BLOB, checksum INTEGER)"
                )

    def get(self, sha256: str) -> np.ndarray | None:
        """The row kept for the image of that hex digest, float32, or None."""
        key = bytes.fromhex(sha256)
        with self._explained(), self._lock:
            query = "SELECT embedding, checksum FROM embeddings WHERE sha256 = ?"
            found = self._database.execute(query, (key,)).fetchone()
        blob, checksum = found or (None, None)
        if not isinstance(blob, bytes) or zlib.crc32(key + blob) != checksum:
            return None
        return np.frombuffer(blob, "<f4").astype(np.float32)

    def put(self, rows: Mapping[str, np.ndarray]) -> None:
        """Keep rows, by hex digest; they are on the disk when this returns."""
        records = []
        for sha256, row in rows.items():
            key, blob = bytes.fromhex(sha256), row.astype("<f4").tobytes()
            records.append((key, blob, zlib.crc32(key + blob)))
        with self._explained(), self._lock, self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", records)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: wait for the other writer here, where waiting works, and not at the first change.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CBDCError(
                f"embedding cache {self._path}: {error}. Fix: check that its folder is writable and has space; a "
                "damaged file may be deleted, its embeddings will be computed again."
            ) from error
