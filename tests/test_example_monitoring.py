"""The dashboard and the alert rules ask for families and labels that the server really has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support import ROOT

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from slmctl.config import CollectConfig, MachinePrices, ServeConfig
from slmctl.inference.escalation_policy import Policy
from slmctl.production import collector
from slmctl.production.collector import Collector
from slmctl.server import fleet, routed
from slmctl.server.fleet import Fleet
from slmctl.server.metrics import Metrics
from slmctl.server.routed import Escalation
from slmctl.server.router import Router
from slmctl.server.running_model import Release, RunningModel
from slmctl.task.contract import Task

FOLDER = ROOT / "examples" / "monitoring"
SELECTOR = re.compile(r"\b(slmctl[a-z_:0-9]*[a-z0-9])(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~?)"([^"]*)"')
# labels of counters that have no sample before the first request
LATER = {"slmctl_requests_total": {"path", "status"}, "slmctl_refused_total": {"reason"}}
Samples = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The labels of every sample of a server's page, by name; no
    label of a family without samples.
    """
    task = Task("classify", "{{ messages }}", "", labels=("billing",))
    policy = Policy(
        "f" * 64,
        task.digest,
        "classify",
        "the label",
        "",
        {"odds": 1.0, "allowed": 0.0},
        0.0,
        ((0.0, 0.5),),
        0.0,
    )
    prices = MachinePrices(machine_per_hour=1, input=1, output=1)
    deciding = Router(policy, task, "desk", Escalation(prices=prices))
    collecting = Collector(CollectConfig(to=tmp_path_factory.mktemp("collected")))
    metrics = Metrics()
    metrics.include(routed.FAMILIES, deciding.escalation.figures)
    metrics.include(collector.FAMILIES, collecting.figures)
    desk = Fleet([Release("desk", "", {}, 0, never_loaded)], ServeConfig())
    metrics.include(fleet.FAMILIES, desk.figures)
    page = metrics.page().decode()
    collecting.close()
    samples: Samples = {}
    for family in text_string_to_metric_families(page):
        samples.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, [])
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(dict(sample.labels))
    return samples


def never_loaded() -> RunningModel:
    raise AssertionError("no figure needs a model in memory")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(
        (FOLDER / "dashboard.json").read_text(encoding="utf-8")
    )["panels"]
    return listed


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


@pytest.mark.parametrize("expression", list(expressions()))
def test_an_expression_names_what_the_server_emits(expression: str, emitted: Samples) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    selected = SELECTOR.findall(expression)
    assert selected
    for name, matchers in selected:
        if name in recorded:
            continue
        assert name in emitted, f"{name} is no family of /metrics"
        fixed = {
            label: value
            for label, sign, value in MATCHER.findall(matchers)
            if sign == "=" and label != "job"
        }
        fits = [labels for labels in emitted[name] if fixed.items() <= labels.items()]
        assert fits or (name in LATER and not fixed), f"{name} never has {fixed}"
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


@pytest.mark.parametrize("expression", list(expressions()))
def test_an_expression_groups_by_labels_that_there_are(expression: str, emitted: Samples) -> None:
    grouped = {
        label.strip()
        for labels in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in labels.split(",")
    }
    names = [name for name, _ in SELECTOR.findall(expression) if name in emitted]
    there = {label for name in names for labels in emitted[name] for label in labels}
    there |= {label for name in names for label in LATER.get(name, ())}
    assert grouped <= there | {"job", "instance"}


def test_the_rules_have_what_prometheus_wants() -> None:
    for rule in rules():
        if "record" in rule:
            assert set(rule) == {"record", "expr"} and re.fullmatch(
                r"[a-z_]+:[a-z_]+:\d[dh]", rule["record"]
            )
            continue
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Slmctl[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "for" not in rule or re.fullmatch(r"\d+[mh]", rule["for"])
    assert max(Counter(rule.get("alert", rule.get("record")) for rule in rules()).values()) == 1


def test_the_rules_pass_promtool() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: Debian has it as a package of that name")
    done = subprocess.run(
        [promtool, "check", "rules", FOLDER / "alerts.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_dashboard_has_what_grafana_wants() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= dashboard.keys()
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {
        "datasource",
        "job",
    }
    cells: Counter[tuple[int, int]] = Counter()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
        assert panel["title"] and panel["type"] in ("stat", "timeseries")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert all(
                'job=~"$job"' in matchers for _, matchers in SELECTOR.findall(target["expr"])
            )
    assert max(cells.values()) == 1  # no panel lies on another
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_a_family_that_is_not_there_is_seen(emitted: Samples) -> None:
    for wrong in ("rate(slmctl_right_total[5m])", 'slmctl_routed_total{route="elsewhere"}'):
        with pytest.raises(AssertionError):
            test_an_expression_names_what_the_server_emits(wrong, emitted)
