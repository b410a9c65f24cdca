"""What Prometheus is told to ask: Raymill's endpoint, Ray's own metrics, and the rules that watch them.

    yaml.safe_dump(scrape_config())                       # a prometheus.yml for the head node
    yaml.safe_dump(kubernetes_scrape_config("training"))  # for a Prometheus inside the Kubernetes cluster

Rules and a dashboard for Grafana lie in `clusters/monitoring/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clusters.ports import METRICS_PORT

RULES = Path(__file__).parent / "monitoring" / "alerts.yaml"
DASHBOARD = Path(__file__).parent / "monitoring" / "dashboard.json"
RAYMILL, RAY = "raymill", "ray"  # names of the scrape jobs; the rules ask for the first
RAY_DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"  # Ray's head keeps the addresses of all its nodes there
INTERVAL = "15s"


def scrape_config(
    targets: Sequence[str] = (f"127.0.0.1:{METRICS_PORT}",),
    ray_discovery: str = RAY_DISCOVERY,
    rules: str = str(RULES),
    interval: str = INTERVAL,
) -> dict[str, Any]:
    """A `prometheus.yml` that asks the Raymill endpoints `targets` (host:port), and each Ray node that the discovery file names."""
    jobs = [
        {"job_name": RAYMILL, "static_configs": [{"targets": list(targets)}]},
        {"job_name": RAY, "file_sd_configs": [{"files": [ray_discovery]}]},
    ]
    return _config(jobs, rules, interval)


def kubernetes_scrape_config(namespace: str, rules: str = str(RULES), interval: str = INTERVAL, port: int = METRICS_PORT) -> dict[str, Any]:
    """A `prometheus.yml` that finds the pods of KubeRay's clusters in `namespace`: Raymill's endpoint on heads, Ray's on every pod.

    The head's pod needs RAYMILL_METRICS_HOST=0.0.0.0; `rules` is where the alert rules are mounted.
    """
    cluster = {"source_labels": ["__meta_kubernetes_pod_label_ray_io_cluster"], "target_label": "ray_cluster"}
    pod = {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"}
    pods = {"kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": [namespace]}}]}
    head = {"source_labels": ["__meta_kubernetes_pod_label_ray_io_node_type"], "regex": "head", "action": "keep"}
    place = {"source_labels": ["__meta_kubernetes_pod_ip"], "target_label": "__address__", "replacement": f"$1:{port}"}
    of_ray = {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "metrics", "action": "keep"}
    jobs = [
        {"job_name": RAYMILL, **pods, "relabel_configs": [head, place, cluster, pod]},
        {"job_name": RAY, **pods, "relabel_configs": [of_ray, cluster, pod]},
    ]
    return _config(jobs, rules, interval)


def _config(jobs: list[dict[str, Any]], rules: str, interval: str) -> dict[str, Any]:
    return {"global": {"scrape_interval": interval, "evaluation_interval": interval}, "rule_files": [rules], "scrape_configs": jobs}
