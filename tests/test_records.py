from __future__ import annotations

import base64
import hashlib
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from batching import Profile, SkipProfile
from batching.errors import InvalidInputError
from batching.handlers import registered
from workers.handlers.records import RecordMismatchError, verify

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"print('hello')\n"
DIGEST = base64.urlsafe_b64encode(hashlib.sha256(CONTENT).digest()).rstrip(b"=").decode()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "hello.py"
    path.write_bytes(CONTENT)
    return path


def profile(**payload: Any) -> Profile:
    return Profile("hello.py", payload, "0" * 36, 1, 1, 1, "0.1")


def test_the_handler_is_registered_under_its_name() -> None:
    assert registered()["records.verify"].function is verify


def test_a_file_that_equals_its_line_gives_what_was_found(module: Path) -> None:
    assert verify(profile(path=str(module), root="", size=len(CONTENT), sha256=DIGEST)) == {
        "size": len(CONTENT),
        "sha256": DIGEST,
    }


def test_a_path_is_relative_to_the_root(module: Path) -> None:
    found = verify(profile(path="hello.py", root=str(module.parent), size=None, sha256=DIGEST))
    assert found["size"] == len(CONTENT)


def test_a_path_may_leave_the_root_as_scripts_do(module: Path, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    assert verify(profile(path="../hello.py", root=str(tmp_path / "lib"), size=15, sha256=DIGEST))["size"] == 15


def test_altered_content_of_the_same_size_names_file_expected_and_found(module: Path) -> None:
    module.write_bytes(CONTENT.replace(b"hello", b"hullo"))
    with pytest.raises(RecordMismatchError) as raised:
        verify(profile(path=str(module), root="", size=len(CONTENT), sha256=DIGEST))
    text = str(raised.value)
    assert str(module) in text
    assert f"expected {len(CONTENT)} bytes, sha256={DIGEST}" in text
    assert f"found {len(CONTENT)} bytes, sha256=" in text


def test_a_wrong_size_is_a_mismatch_even_when_the_hash_is_right(module: Path) -> None:
    with pytest.raises(RecordMismatchError, match="expected 1 bytes"):
        verify(profile(path=str(module), root="", size=1, sha256=DIGEST))


def test_a_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(RecordMismatchError, match=r"gone\.py: it is in RECORD and missing on disk"):
        verify(profile(path="gone.py", root=str(tmp_path), size=1, sha256=DIGEST))


def test_a_line_without_hash_is_skipped_whether_or_not_the_file_is_there(module: Path, tmp_path: Path) -> None:
    for path in (module, tmp_path / "gone.pyc"):
        with pytest.raises(SkipProfile, match="no hash in RECORD"):
            verify(profile(path=str(path), root="", size=None, sha256=None))


@pytest.mark.parametrize(
    "payload",
    [None, "text", {}, {"path": 7}, {"path": "a", "size": "1"}, {"path": "a", "sha256": 5}],
    ids=repr,
)
def test_a_payload_that_is_no_record_line_is_refused(payload: Any) -> None:
    with pytest.raises(InvalidInputError, match="cannot verify profile 'k'"):
        verify(Profile("k", payload, "0" * 36, 1, 1, 1, "0.1"))


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as stream:
        stream.truncate(64 * 1024 * 1024)
    digest = base64.urlsafe_b64encode(hashlib.sha256(bytes(64 * 1024 * 1024)).digest()).rstrip(b"=").decode()
    tracemalloc.start()
    try:
        verify(profile(path=str(large), root="", size=64 * 1024 * 1024, sha256=digest))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
