"""`records.verify`: compares an installed file with its line in a wheel's RECORD.

A RECORD line names a file, its SHA-256 in URL-safe base64 without padding, and its size in bytes; RECORD itself and
compiled files carry neither (https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching.errors import InvalidInputError, SkipProfile
from batching.handlers import profile_handler

if TYPE_CHECKING:
    from batching.handlers import Profile


class RecordMismatchError(Exception):
    """A file is not what its RECORD line says."""


@profile_handler(name="records.verify")
def verify(profile: Profile) -> dict[str, Any]:
    """Compare one file with its RECORD line.

    The payload has `path` (absolute, or relative to `root`), `root`, `size` (bytes, or null) and `sha256` (as
    RECORD has it, or null).

    Returns:
        The size (bytes) and SHA-256 found.

    Raises:
        SkipProfile: The line has no hash.
        RecordMismatchError: The file is missing, or differs.
        InvalidInputError: The payload does not describe a RECORD line.
    """
    path, size, sha256 = _line(profile)
    if sha256 is None:
        # Compiled files come and go with the interpreter that runs them: their absence says nothing.
        raise SkipProfile("no hash in RECORD")
    try:
        found_size, found_sha256 = measure(path)
    except FileNotFoundError:
        raise RecordMismatchError(f"cannot verify {path}: it is in RECORD and missing on disk; reinstall it") from None
    expected = (f"{size} bytes, " if size is not None else "") + f"sha256={sha256}"
    if found_sha256 != sha256 or size not in {None, found_size}:
        raise RecordMismatchError(
            f"{path} differs from its line in RECORD: expected {expected}; found {found_size} bytes, "
            f"sha256={found_sha256}; reinstall the distribution that owns it"
        )
    return {"size": found_size, "sha256": found_sha256}


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and RECORD's form of the SHA-256 of one file, read in chunks: a file may outgrow the memory."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
        # Where reading ended, not what the directory says: both numbers then describe the same bytes.
        size = stream.tell()
    return size, base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _line(profile: Profile) -> tuple[Path, int | None, str | None]:
    payload = profile.payload
    if not isinstance(payload, dict) or not isinstance(payload.get("path"), str) or not payload["path"]:
        raise InvalidInputError(
            f'cannot verify profile {profile.key!r}: its payload has no path; expected {{"path": …, "root": …, '
            '"size": bytes or null, "sha256": digest as in RECORD or null}'
        )
    size, sha256 = payload.get("size"), payload.get("sha256")
    if not isinstance(size, int | None) or not isinstance(sha256, str | None):
        raise InvalidInputError(
            f"cannot verify profile {profile.key!r}: size is {size!r} and sha256 is {sha256!r}; "
            "expected a number of bytes or null, and a text or null"
        )
    # By name, not through symbolic links: installers write `../../../bin/tool` by the names of the folders, too.
    return Path(os.path.normpath(Path(payload.get("root") or "") / payload["path"])), size, sha256
