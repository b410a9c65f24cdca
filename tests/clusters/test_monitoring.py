"""Rules, dashboard and scrape configurations, read by those who will read them: promtool, and the hub whose series they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from clusters.monitoring.hub import STAGE_NUMBERS, TERM, TRAINING_NUMBERS, MetricsHub
from clusters.scrape import DASHBOARD, RULES, kubernetes_scrape_config, scrape_config
from tests.clusters.test_metrics_hub import full, series
from tests.prometheus import needs_prometheus, needs_promtool, prometheus, promtool

NAMES = re.compile(r"\braymill_[a-z_]+")


def exported() -> set[str]:
    hub = MetricsHub()
    full(hub)
    return {name for name, _ in series(hub)}


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def test_every_metric_of_the_rules_and_the_dashboard_is_one_that_the_hub_exports() -> None:
    rules = {
        name for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] for name in NAMES.findall(rule["expr"])
    }
    tests = {name for name in NAMES.findall(RULES.with_name("alerts_test.yaml").read_text())}
    shown = set(NAMES.findall(DASHBOARD.read_text()))
    assert rules
    assert rules | tests | shown <= exported()
    assert {number.metric for number in (*STAGE_NUMBERS, *TRAINING_NUMBERS, TERM)} <= shown | {"raymill_preprocess_rows_done"} | {
        "raymill_training_last_checkpoint_step"
    }


def test_every_rule_has_a_severity_and_says_what_to_do_and_is_tried_both_ways() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    cases = [case for test in yaml.safe_load(RULES.with_name("alerts_test.yaml").read_text())["tests"] for case in test["alert_rule_test"]]
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert {bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]} == {True, False}, rule["alert"]


def test_the_dashboard_is_whole() -> None:
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {variable["name"] for variable in found["templating"]["list"]} == {"datasource", "run", "family"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or (panel["targets"] and panel["description"])


@needs_promtool
def test_the_rules_are_rules_and_fire_when_they_should() -> None:
    assert promtool("check", "rules", "--lint-fatal", str(RULES))[0] == 0
    code, said = promtool("test", "rules", "alerts_test.yaml", folder=RULES.parent)
    assert code == 0, said


@needs_promtool
def test_the_scrape_configuration_is_one(tmp_path: Path) -> None:
    discovery = tmp_path / "discovery.json"
    discovery.write_text('[{"labels": {"job": "ray"}, "targets": ["127.0.0.1:8080"]}]')
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(scrape_config(["head:9464", "other:9465"], str(discovery))))
    code, said = promtool("check", "config", "--lint-fatal", str(file))
    assert code == 0, said
    assert "10 rules found" in said
    assert "WARNING" not in said


@needs_prometheus
def test_pods_of_ray_clusters_are_found_and_labelled(tmp_path: Path) -> None:
    """Debian's Prometheus knows no Kubernetes: the pods' labels come from a file instead, the rest is what is rendered."""
    config = kubernetes_scrape_config("training")
    assert all(
        job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["training"]}}] for job in config["scrape_configs"]
    )
    for job in config["scrape_configs"]:
        job["file_sd_configs"] = [{"files": [str(tmp_path / "pods.json")]}]
    ports = {"head": ("gcs", "dashboard", "metrics"), "worker": ("metrics",)}
    pods = [
        {
            "targets": [f"10.0.0.{place}:{8080 if port == 'metrics' else 6379}"],
            "labels": {
                "__meta_kubernetes_pod_ip": f"10.0.0.{place}",
                "__meta_kubernetes_pod_name": f"{kind}-pod",
                "__meta_kubernetes_pod_container_port_name": port,
                "__meta_kubernetes_pod_label_ray_io_node_type": kind,
                "__meta_kubernetes_pod_label_ray_io_cluster": "small",
            },
        }
        for place, kind in enumerate(ports)
        for port in ports[kind]
    ]
    pods.append({"targets": ["10.0.0.9:80"], "labels": {"__meta_kubernetes_pod_ip": "10.0.0.9", "__meta_kubernetes_pod_name": "web"}})
    (tmp_path / "pods.json").write_text(json.dumps(pods))
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with prometheus(tmp_path / "prometheus.yml", tmp_path) as server:
        found = server.wait_for_targets(3)
    common = {"ray_cluster": "small"}
    assert found == {
        "http://10.0.0.0:9464/metrics": common | {"job": "raymill", "pod": "head-pod", "instance": "10.0.0.0:9464"},
        "http://10.0.0.0:8080/metrics": common | {"job": "ray", "pod": "head-pod", "instance": "10.0.0.0:8080"},
        "http://10.0.0.1:8080/metrics": common | {"job": "ray", "pod": "worker-pod", "instance": "10.0.0.1:8080"},
    }


def test_the_scrape_job_has_the_name_that_the_rules_ask_for() -> None:
    asked = set(re.findall(r'job="(\w+)"', RULES.read_text()))
    for config in (scrape_config(), kubernetes_scrape_config("training")):
        assert asked <= {job["job_name"] for job in config["scrape_configs"]}
    assert scrape_config()["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9464"]}]
