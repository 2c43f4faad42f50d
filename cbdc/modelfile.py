"""Model files: one safetensors file that holds arrays, a JSON document and the sha256 of both. No pickle."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .errors import ModelFileError

__all__ = ["FORMAT_VERSION", "part_of", "read_modelfile", "write_modelfile"]

FORMAT_VERSION = 1

_T = TypeVar("_T")


def write_modelfile(path: str | Path, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Path:
    """Write arrays and a JSON document to one file, atomically.

    The file is written beside its target under another name, flushed to the disk and then renamed: a crash leaves the
    old file or the new one, never half of either.

    Parameters
    ----------
    path : str or Path
        Target; its folder must exist.
    arrays : dict of str to ndarray
        Any shapes of numeric or boolean dtype.
    document : dict
        JSON-able, numbers of numpy included; NaN and infinity are refused, since JSON has neither (put them in an
        array).

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ModelFileError
        If the folder is missing, the disk is full or the document is not JSON-able.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from cbdc.modelfile import read_modelfile, write_modelfile
    >>> path = write_modelfile(tempfile.mkdtemp() + "/m.cbdc", {"w": np.eye(2)}, {"classes": ["mel", "nv"]})
    >>> arrays, document = read_modelfile(path)
    >>> document
    {'classes': ['mel', 'nv']}
    """
    path = Path(path)
    try:
        text = json.dumps(document, sort_keys=True, allow_nan=False, default=_number)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path.name}: the document cannot be written as JSON: {error}.") from error
    contiguous = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    payload = _in_order(
        to_safetensors(
            contiguous,
            metadata={
                "format": "cbdc",
                "format_version": str(FORMAT_VERSION),
                "document": text,
                "sha256": _digest(contiguous, text, str(FORMAT_VERSION)),
            },
        )
    )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ModelFileError(
            f"{path.name}: could not be written ({error.strerror or error}). The file there before is as it was. "
            "Fix: check that the folder exists, is writable and has space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _number(value: Any) -> Any:
    """A parameter that came from numpy, as that of a search does."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"object of type {type(value).__name__} is not JSON-able")


def read_modelfile(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_modelfile` wrote and check its sha256.

    Parameters
    ----------
    path : str or Path
        A file written by `write_modelfile`.

    Returns
    -------
    arrays : dict of str to ndarray
    document : dict

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, changed by a single bit, not of this format, or newer than this library. The
        sha256 finds damage; it is no signature, and does not prove who wrote the file.

    Examples
    --------
    >>> import tempfile
    >>> path = write_modelfile(tempfile.mkdtemp() + "/m.cbdc", {"w": np.zeros(2)}, {"a": 1})
    >>> read_modelfile(path)
    ({'w': array([0., 0.])}, {'a': 1})
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path.name}: no such model file. Fix: make one with `cbdc fit ... --out {path.name}`.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelFileError(
            f"{path.name}: not a cbdc model file, or a truncated one ({error}). Fix: copy it again or fit again; "
            "pickles and torch files are never loaded."
        ) from error
    if metadata.get("format") != "cbdc":
        raise ModelFileError(f"{path.name}: a safetensors file, but not a cbdc model. Fix: give a file of `cbdc fit`.")
    version = metadata.get("format_version", "")
    if not version.isdigit() or int(version) > FORMAT_VERSION:
        raise ModelFileError(
            f"{path.name}: format version {version!r}; this library reads up to {FORMAT_VERSION}. Fix: upgrade cbdc."
        )
    text = metadata.get("document", "")
    if _digest(arrays, text, version) != metadata.get("sha256"):
        raise ModelFileError(
            f"{path.name}: sha256 mismatch, the file was changed after it was saved. Fix: copy it again or fit again."
        )
    return arrays, json.loads(text)


def _digest(arrays: dict[str, np.ndarray], text: str, version: str) -> str:
    digest = hashlib.sha256(f"{version}\0{text}".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def part_of(arrays: Mapping[str, _T], prefix: str) -> dict[str, _T]:
    """Those whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _in_order(payload: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in an order that is drawn anew each time."""
    end = 8 + int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + payload[end:]
