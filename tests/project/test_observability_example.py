"""The example for Prometheus and Grafana: what it names there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from support.app import MakeHooks, serving
from support.paths import ROOT

FOLDER = ROOT / "examples" / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
BOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.fixture
def told(make_hooks: MakeHooks) -> dict[str, list[dict[str, str]]]:
    """The labels of everything that is told, by the name of the metric."""
    hooks = make_hooks(metrics_open=True)
    hooks.on_prefetch(name="greet")(lambda call: None)
    hooks.on_end_of_call(name="book")(lambda call: None)
    labels: dict[str, list[dict[str, str]]] = {"up": [], "millis_hooks_runs": []}
    with serving(hooks) as client:
        for family in text_string_to_metric_families(client.get("/metrics").text):
            for sample in family.samples:
                labels.setdefault(sample.name, []).append(dict(sample.labels))
    return labels


def named(query: str) -> Iterator[str]:
    """The metrics that a query names."""
    yield from re.findall(r"\b(?:millis_hooks|process)_\w+|\bup\b", query)


def chosen(query: str) -> Iterator[tuple[str, str, str]]:
    """The values of labels that a query asks for, each with its metric."""
    for metric, labels in re.findall(r"\b(millis_hooks_\w+)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            yield metric, label, value


def test_every_metric_that_is_named_exists(told: dict[str, list[Any]]) -> None:
    for query in QUERIES + [rule["expr"] for rule in RULES]:
        names = {*named(query)}
        assert names, query
        assert names <= told.keys(), query


def test_every_label_value_that_is_named_may_occur(told: dict[str, list[Any]]) -> None:
    for query in QUERIES + [rule["expr"] for rule in RULES]:
        for metric, label, value in chosen(query):
            if metric != "millis_hooks_runs":
                assert value in [labels.get(label) for labels in told[metric]], query


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "action"} == rule["annotations"].keys()


def test_the_panels_do_not_overlap() -> None:
    taken = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len({*taken})
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_prometheus_finds_the_rules() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert {job["job_name"] for job in config["scrape_configs"]} == {"millis_hooks"}
