"""What `make audit` concludes from pip-audit's report: silence of its service is no verdict."""

from __future__ import annotations

from tools.audit import CLEAN, NO_VERDICT, VULNERABLE, verdict

_FINE = {"name": "click", "version": "8.1", "vulns": []}
_FLAWED = {
    "name": "redis",
    "version": "6.4",
    "vulns": [{"id": "CVE-2099-1", "fix_versions": ["6.4.1"], "aliases": []}],
}
_UNKNOWN = {"name": "celery", "skip_reason": "Dependency not found on PyPI"}
_OURS = {"name": "batching", "skip_reason": "distribution marked as editable"}


def test_a_clean_report() -> None:
    assert verdict({"dependencies": [_FINE, _OURS]}).code == CLEAN


def test_a_vulnerability_is_named_with_its_remedy() -> None:
    said = verdict({"dependencies": [_FINE, _FLAWED, _UNKNOWN]})

    assert said.code == VULNERABLE
    assert said.lines[1:] == ["redis 6.4: CVE-2099-1, fixed in 6.4.1"]


def test_packages_that_the_service_does_not_know_are_no_verdict() -> None:
    said = verdict({"dependencies": [_FINE, _UNKNOWN]})

    assert said.code == NO_VERDICT
    assert "1 of 2 packages (celery)" in said.lines[0]
