"""The alert rules and the Grafana dashboard against promtool, and against what a real exposition has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from batching.database import Database
from batching.metrics import exposition
from batching.settings import Settings
from tests.accounting import FAILED, Desk
from tests.test_metrics import tell_something

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
GUIDE = ROOT / "docs" / "guide" / "metrics.md"
#: What Grafana puts in the place of its variables.
VARIABLES = {"$__rate_interval": "5m", "$queue": ".*", "$handler": ".*"}


def promtool(*arguments: str, given: bytes = b"") -> str:
    """What it says; fails when it finds something wrong."""
    path = Path(sys.executable).parent / "promtool"
    assert path.exists(), f"cannot check alerts and metrics: {path} is missing; `make {path.relative_to(ROOT)}` gets it"
    done = subprocess.run([str(path), *arguments], input=given, capture_output=True, check=False, timeout=120)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def dashboard_expressions() -> list[str]:
    """As Prometheus gets them."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [each.replace(name, value) for each in found]
    return found


def named(expressions: list[str]) -> set[str]:
    return {name for each in expressions for name in re.findall(r"\bbatching_\w+", each)}


@pytest.fixture
def exposed(postgresql_url: str) -> Iterator[bytes]:
    """What a store tells in which something of every kind has happened."""
    database = Database(postgresql_url)
    desk = Desk(database)
    desk.register()
    desk.work(desk.start(3, max_passes=1, failure_budget=3), lambda number: FAILED)
    desk.submit(2)
    tell_something(desk)
    yield exposition(database, Settings())
    database.close()


def families(text: bytes) -> dict[str, str]:
    """The kinds of the metrics, by name."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text.decode(), re.MULTILINE))


def series(text: bytes) -> set[str]:
    """Every name that a query can use."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, kind in families(text).items() for suffix in suffixes.get(kind, ("",))}


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(RULES))


def test_promtool_accepts_the_configuration_that_comes_with_it() -> None:
    assert "SUCCESS" in promtool("check", "config", str(RULES.parent / "prometheus.yml"))


def test_the_rules_fire_when_they_should_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(TESTS))


def test_each_rule_is_tested_to_fire_and_to_be_quiet() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert fires == quiet == {rule["alert"] for rule in rules()}


def test_promtool_has_nothing_against_the_metrics(exposed: bytes) -> None:
    assert promtool("check", "metrics", given=exposed) == ""


def test_each_name_in_a_rule_or_a_panel_is_exported(exposed: bytes) -> None:
    known = series(exposed)
    assert named([rule["expr"] for rule in rules()]) <= known
    assert named(dashboard_expressions()) <= known
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    assert named([each["definition"] for each in variables if "definition" in each]) <= known


def test_the_dashboard_shows_every_metric(exposed: bytes) -> None:
    """One that nobody looks at need not be exported."""
    shown = named(dashboard_expressions())
    assert {name for name in families(exposed) if not any(each.startswith(name) for each in shown)} == set()


def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(dashboard_expressions())]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in promtool("check", "rules", str(path))


def test_the_dashboard_can_be_imported_anywhere() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert dashboard["id"] is None
    for panel in panels():
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Is it healthy", "Queue", "Throughput", "Failures", "Workers", "Internals"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies upon another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_each_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / page) == GUIDE
    assert anchor == rule["alert"].lower()
    assert f"\n#### {rule['alert']}\n" in GUIDE.read_text(), f"{GUIDE} has no paragraph on {rule['alert']}"
