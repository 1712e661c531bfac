from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batching import BatchState
from batching.cli.demo import Audit
from batching.cli.demo_input import Expected, Line, Subject, altered_copy, expect, installed, key_of
from batching.database import Database
from batching.errors import BatchingError
from batching.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.statistics import BatchView

ROOT = Path(__file__).parent.parent


def test_every_distribution_with_a_record_is_a_subject_and_every_line_a_profile() -> None:
    found = {subject.name: subject for subject in installed()}
    celery = importlib.metadata.distribution("celery")
    record = celery.read_text("RECORD")
    assert record is not None
    assert len(found["celery"].lines) == len(record.splitlines())
    profiles = list(found["celery"].profiles(255))
    assert len({profile["key"] for profile in profiles}) == len(profiles)
    assert Path(found["celery"].root, "celery", "__init__.py").is_file()


def test_a_path_longer_than_a_key_may_be_is_cut_and_stays_unique() -> None:
    paths = ["a" * 300 + str(number) for number in range(3)]
    keys = {key_of(path, 255) for path in paths}
    assert len(keys) == 3
    assert all(len(key) == 255 for key in keys)
    assert key_of("short.py", 255) == "short.py"


def test_the_altered_copy_differs_in_one_file_and_the_original_stays(tmp_path: Path) -> None:
    subjects = installed()
    copy, culprit = altered_copy(subjects, tmp_path)
    original = next(subject for subject in subjects if copy.name == f"altered {subject.name}")
    assert expect(copy).culprits == (culprit,)
    assert expect(original).culprits == ()
    assert copy.lines == original.lines
    assert copy.root == str(tmp_path)


def test_without_anything_to_copy_the_demo_says_so(tmp_path: Path) -> None:
    with pytest.raises(BatchingError, match="none of the 0 distributions"):
        altered_copy([], tmp_path)


def test_a_missing_file_and_a_wrong_size_are_expected_to_fail(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"")
    empty = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
    subject = Subject("x", str(tmp_path), (Line("a.py", 0, empty), Line("b.py", 0, empty), Line("c.pyc", None, None)))
    assert expect(subject) == Expected(1, 1, ("b.py",))
    assert expect(Subject("x", str(tmp_path), (Line("a.py", 1, empty),))).culprits == ("a.py",)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The real demo on this environment, kept to be looked at."""
    home = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHING_")}
    # What is set for production must not reach the demo.
    environment |= {"PYTHONPATH": str(ROOT), "BATCHING_DATABASE_URL": "postgresql://nobody@nowhere.invalid/none"}
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "batching.cli.main", "demo", "--home", str(home), "--keep"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return answer, home


@pytest.fixture
def statistics(demo: tuple[subprocess.CompletedProcess[str], Path]) -> Iterator[Statistics]:
    (folder,) = demo[1].glob("demo-*")
    database = Database(f"sqlite:///{folder}/batching.db")
    yield Statistics(database)
    database.close()


def test_the_demo_comes_out_as_it_has_to(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    answer = demo[0]
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr
    assert "all as it had to be" in answer.stdout
    assert "altered " in answer.stdout


def test_the_store_says_the_same(statistics: Statistics) -> None:
    views = {view.name: view for view in statistics.batches(limit=10_000)}
    altered = _altered(statistics)
    assert altered.state is BatchState.FAILED
    assert (altered.failed, altered.pass_number) == (1, 3)
    (group,) = statistics.failures(altered.id)
    assert len(group.keys) == 1
    assert group.type.endswith("RecordMismatchError")
    for subject in installed():
        expected = expect(subject)
        view = views[subject.name]
        assert view.state is expected.state
        assert (view.total, view.succeeded, view.skipped) == (len(subject.lines), expected.succeeded, expected.skipped)
        if view.state is BatchState.SUCCEEDED:
            assert view.finished_at is not None
            assert altered.finished_at is not None
            assert view.finished_at <= altered.finished_at


def test_the_audit_sees_what_is_wrong(statistics: Statistics) -> None:
    altered = _altered(statistics)
    name = altered.name.removeprefix("altered ")
    subject = next(subject for subject in installed() if subject.name == name)
    culprit = statistics.failures(altered.id)[0].keys[0]
    right = Expected(altered.succeeded, altered.skipped, (culprit,))

    def audited(subject: Subject, expected: Expected) -> list[str]:
        audit = Audit(statistics, 255)
        audit.batch(subject, expected, altered)
        return audit.problems

    assert audited(subject, right) == []
    assert len(audited(subject, right._replace(succeeded=right.succeeded + 1))) == 1
    assert any("state" in each for each in audited(subject, right._replace(culprits=())))
    assert any("keys" in each for each in audited(Subject(name, subject.root, subject.lines[1:]), right))
    audit = Audit(statistics, 255)
    audit.only_what_failed(altered, "another.py")
    assert len(audit.problems) >= 1
    others = [view for view in statistics.batches(limit=10_000) if view.id != altered.id]
    early = next(view for view in reversed(others) if view.state is BatchState.SUCCEEDED)
    audit = Audit(statistics, 255)
    audit.last_of_all(altered, others)
    assert audit.problems == []
    audit.last_of_all(early, [view for view in others if view.id != early.id])
    assert len(audit.problems) == 1


def test_the_demo_leaves_no_litter_when_nothing_is_to_be_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "batching.cli.main", "demo", "--home", str(home)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr
    assert list(tmp_path.iterdir()) == []


def _altered(statistics: Statistics) -> BatchView:
    (view,) = (view for view in statistics.batches(limit=10_000) if view.name.startswith("altered "))
    return view
