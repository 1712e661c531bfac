"""What a file, and a batch, may not exceed: each refusal names the place and the limit."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

import pytest

from batching.encoding import MAX_COLUMNS
from batching.errors import InvalidInputError
from batching.intake import Limits, from_iterable, read_file
from batching.queue_manager import QueueManager
from batching.settings import get_settings

if TYPE_CHECKING:
    from pathlib import Path

    from batching.database import Database

LIMITS = Limits(payload=1_000_000, key=255, profiles=3)


def test_a_file_with_too_many_profiles_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("a\n\nb\nc\nd\ne\n")
    source = read_file(path, limits=LIMITS)

    assert [next(source).key for _ in range(3)] == ["1", "3", "4"]
    with pytest.raises(InvalidInputError, match=r"cannot take line 5 of .*many\.txt: a batch has at most 3 profiles"):
        next(source)


def test_as_many_as_the_limit_are_fine() -> None:
    assert len(list(from_iterable(["a", "b", "c"], LIMITS))) == 3


@pytest.mark.parametrize("limit", [2, 1_500])
def test_nothing_of_a_batch_that_is_too_large_is_left(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setenv("BATCHING_BATCH_LIMIT", str(limit))
    get_settings.cache_clear()
    manager = QueueManager(database)

    with pytest.raises(
        InvalidInputError, match=rf"item {limit + 1}: a batch has at most {limit:,} profiles.*BATCH_LIM"
    ):
        manager.submit("tests.handler", (f"k{number}" for number in range(limit + 1)))

    assert manager.statistics.batches() == []
    assert manager.submit("tests.handler", (f"k{number}" for number in range(limit))).total == limit
    manager.close()


def test_a_header_with_too_many_columns_is_refused() -> None:
    header = ",".join(f"c{number}" for number in range(MAX_COLUMNS + 1))

    with pytest.raises(
        InvalidInputError, match=r"line 1 of the stream: the header has 10,001 columns, the limit is 10"
    ):
        list(read_file(io.BytesIO(f"{header}\n".encode()), format="csv", limits=LIMITS))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_refused_also_behind_a_link(tmp_path: Path, device: str) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(device)

    for path in (device, str(link)):
        with pytest.raises(InvalidInputError, match=f"cannot read the file {path}: it is a device"):
            read_file(path, limits=LIMITS)


def test_links_to_files_and_pipes_are_the_callers_own(tmp_path: Path) -> None:
    path, link, pipe = tmp_path / "a.txt", tmp_path / "link.txt", tmp_path / "pipe.txt"
    path.write_text("one\n")
    link.symlink_to(path)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("two\n",))
    writer.start()

    assert [profile.payload for profile in read_file(link, limits=LIMITS)] == ['"one"']
    assert [profile.payload for profile in read_file(pipe, limits=LIMITS)] == ['"two"']
    writer.join()
