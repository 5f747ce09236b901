"""The alert rules and the Grafana dashboard in monitoring/: they are valid, and name only metrics that the daemon has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from registry.queue.findings import CODES, SEVERITIES
from tests.live import ROOT, Daemon
from tests.talk import ask

ALERTS, TESTED = ROOT / "monitoring" / "alerts.yml", ROOT / "tests" / "alerts.yml"
DASHBOARD = ROOT / "monitoring" / "grafana.json"
METRIC = re.compile(r"\bregistry_[a-z_]+")


def run_promtool(*words: str | Path) -> str:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    ran = subprocess.run([promtool, *map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text("utf-8"))


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def test_each_alert_fires_where_it_should_and_nowhere_else() -> None:
    run_promtool("check", "rules", ALERTS)
    run_promtool("test", "rules", TESTED)


def test_each_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    named = re.findall(r"- alert: (\w+)", ALERTS.read_text("utf-8"))
    tests = TESTED.read_text("utf-8")
    assert len(named) == len(set(named)) >= 6
    for name in named:
        assert re.search(rf"alertname: {name}\n +exp_alerts:", tests), name
        assert f"alertname: {name}}}" in tests, name


def test_each_finding_has_a_rule_and_its_line_in_the_docs() -> None:
    rules = re.findall(r"finding: (\w+)", ALERTS.read_text("utf-8"))
    assert sorted(rules) == sorted(CODES)
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8").partition("\n## Findings\n")[2]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page.partition("\n## ")[0], re.MULTILINE))
    assert listed == SEVERITIES


def test_every_metric_that_they_name_is_on_the_page(served: Daemon) -> None:
    page = ask(served, "GET", "/metrics").body.decode()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    known = set(types)
    for name, kind in types.items():
        if kind == "histogram":
            known |= {f"{name}_{end}" for end in ("bucket", "sum", "count")}
    expressions = "\n".join(line for line in ALERTS.read_text("utf-8").splitlines() if "registry_" in line)
    named = set(METRIC.findall(expressions)) | set(METRIC.findall("\n".join(queries())))
    assert named - known == set()
    # And each metric of the page is explained.
    explained = set(METRIC.findall((ROOT / "docs" / "monitoring.md").read_text("utf-8")))
    assert set(types) - explained == set()


def test_the_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    assert len(queries()) > 20
    # As rules, because promtool of Debian checks no queries.
    rules = [
        {"record": f"query:{at}", "expr": query.replace("$__rate_interval", "5m")}
        for at, query in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    run_promtool("check", "rules", file)


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
