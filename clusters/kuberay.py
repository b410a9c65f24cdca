"""Manifests for KubeRay 1.7 and Kubernetes: RayCluster, RayJob, RayCronJob and a plain CronJob that submits through the Jobs API.

Pods run as a user without privileges, with requests and limits, a scratch folder of stated size and probes; Ray's token comes from a secret
that KubeRay hands to every container, credentials of S3 from another. Nothing secret stands in a manifest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import ray

from clusters.description import ClusterConfig, Machine, NodeGroup
from clusters.ports import HEAD_PORT, JOBS_PORT, METRICS_PORT

Manifest = dict[str, Any]

API = "ray.io/v1"
USER = 1000  # of the image
RAYLET_HEALTH_PORT = 52365
RAY_METRICS_PORT = 8080
MEMORY_OF_OBJECT_STORE = 0.3  # Ray's share, which lies in shared memory
JOB_RETRIES = 2
JOB_KEPT_SECONDS = 3600
LATE_START_SECONDS = 3600


def ray_cluster(cluster: ClusterConfig) -> Manifest:
    """A cluster that stays until it is deleted."""
    return _manifest(API, "RayCluster", cluster, cluster.name, _cluster_spec(cluster))


def ray_job(cluster: ClusterConfig, command: Sequence[str]) -> Manifest:
    """A cluster for one `raymill` command, gone when it has ended; started again when a pod that matters died."""
    return _manifest(API, "RayJob", cluster, f"{cluster.name}-job", _job_spec(cluster, command))


def ray_cron_job(cluster: ClusterConfig, name: str, command: Sequence[str], cron: str, time_zone: str) -> Manifest:
    """A RayJob at the times of a cron line.

    The kind is alpha in KubeRay 1.7: the operator must run with the feature gate `RayCronJob`. It knows no concurrency policy; that one run
    does not meet another is the schedule's own lock.
    """
    spec = {"schedule": cron, "timeZone": time_zone, "jobTemplate": _job_spec(cluster, command)}
    return _manifest(API, "RayCronJob", cluster, name, spec)


def cron_job(cluster: ClusterConfig, name: str, command: Sequence[str], cron: str, time_zone: str) -> Manifest:
    """A pod that submits `command` to a RayCluster that runs already, at the times of a cron line, and ends as the job ends."""
    submit = ["raymill", "submit", "--cluster", f"http://{cluster.name}-head-svc:{JOBS_PORT}", "--", *command]
    pod = _submitter(cluster, submit)
    job = {"backoffLimit": 0, "ttlSecondsAfterFinished": JOB_KEPT_SECONDS, "template": pod}
    spec = {
        "schedule": cron,
        "timeZone": time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": LATE_START_SECONDS,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": job},
    }
    return _manifest("batch/v1", "CronJob", cluster, name, spec)


def _manifest(api: str, kind: str, cluster: ClusterConfig, name: str, spec: dict[str, Any]) -> Manifest:
    labels = {"app.kubernetes.io/name": "raymill", "app.kubernetes.io/instance": cluster.name}
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": cluster.namespace, "labels": labels},
        "spec": spec,
    }


def _job_spec(cluster: ClusterConfig, command: Sequence[str]) -> dict[str, Any]:
    submitter = _submitter(cluster, None)
    return {
        "entrypoint": shlex.join(["raymill", *command]),
        "submissionMode": "K8sJobMode",
        "backoffLimit": JOB_RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": JOB_KEPT_SECONDS,
        "submitterPodTemplate": submitter,
        "rayClusterSpec": _cluster_spec(cluster),
    }


def _cluster_spec(cluster: ClusterConfig) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "rayVersion": ray.__version__,
        "authOptions": {"mode": "token", "secretName": cluster.token_secret},
        "enableInTreeAutoscaling": cluster.autoscaling.enabled,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # no work on the head; its service asks from other pods
            "template": _node(cluster, "ray-head", cluster.head, head=True),
        },
        "workerGroupSpecs": [_worker_group(cluster, group) for group in cluster.groups],
    }
    if cluster.autoscaling.enabled:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": cluster.autoscaling.idle_seconds,
            "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}},
            "securityContext": _unprivileged(),
        }
    return spec


def _worker_group(cluster: ClusterConfig, group: NodeGroup) -> dict[str, Any]:
    fixed = not cluster.autoscaling.enabled
    return {
        "groupName": group.name,
        "replicas": group.most if fixed else group.least,
        "minReplicas": group.most if fixed else group.least,
        "maxReplicas": group.most,
        "rayStartParams": {},
        "template": _node(cluster, "ray-worker", group, head=False),
    }


def _node(cluster: ClusterConfig, container: str, machine: Machine, head: bool) -> dict[str, Any]:
    resources = {"cpu": str(machine.cpus), "memory": f"{machine.memory_gib}Gi", "ephemeral-storage": f"{machine.disk_gib}Gi"}
    if machine.gpus:
        resources["nvidia.com/gpu"] = str(machine.gpus)
    shared_mib = int(machine.memory_gib * 1024 * MEMORY_OF_OBJECT_STORE)
    node: dict[str, Any] = {
        "name": container,
        "image": cluster.image,
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": _unprivileged(),
        "env": _environment(cluster) + ([{"name": "RAYMILL_METRICS_HOST", "value": "0.0.0.0"}] if head else []),
        "ports": _ports(head),
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}, {"name": "shared-memory", "mountPath": "/dev/shm"}],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}},
        **_probes(head),
    }
    pod = _pod(cluster, node)
    pod["volumes"] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": f"{machine.disk_gib}Gi"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_mib}Mi"}},
    ]
    if machine.node_selector:
        pod["nodeSelector"] = dict(machine.node_selector)
    if machine.tolerations:
        pod["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in machine.tolerations]
    return {"spec": pod}


def _pod(cluster: ClusterConfig, container: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if cluster.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": cluster.image_pull_secret}]
    if cluster.storage.service_account:
        pod["serviceAccountName"] = cluster.storage.service_account
    return pod


def _submitter(cluster: ClusterConfig, command: list[str] | None) -> dict[str, Any]:
    """The pod that submits: `command`, or what KubeRay itself puts in; Ray's own client reads the token from its environment."""
    small = {"cpu": "500m", "memory": "1Gi"}
    container: dict[str, Any] = {
        "name": "submit",
        "image": cluster.image,
        "resources": {"requests": small, "limits": dict(small)},
        "securityContext": _unprivileged(),
    }
    if command is not None:
        container |= {"command": command, "env": _token(cluster)}
    return {"spec": _pod(cluster, container) | {"restartPolicy": "Never"}}


def _unprivileged() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _probes(head: bool) -> dict[str, Any]:
    """Ray answers these two paths without a token; a raylet that lost its head counts as dead, and its pod starts again."""
    raylet = {"httpGet": {"path": "/api/local_raylet_healthz", "port": RAYLET_HEALTH_PORT}}
    ready = {"httpGet": {"path": "/api/gcs_healthz", "port": JOBS_PORT}} if head else raylet
    return {
        "startupProbe": raylet | {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 60},
        "livenessProbe": raylet | {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 12},
        "readinessProbe": ready | {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 10},
    }


def _ports(head: bool) -> list[dict[str, Any]]:
    named = {"metrics": RAY_METRICS_PORT} | ({"gcs": HEAD_PORT, "dashboard": JOBS_PORT, "raymill": METRICS_PORT} if head else {})
    return [{"name": name, "containerPort": port} for name, port in named.items()]


def _token(cluster: ClusterConfig) -> list[dict[str, Any]]:
    return [{"name": "RAY_AUTH_MODE", "value": "token"}, _secret("RAY_AUTH_TOKEN", cluster.token_secret, "auth_token")]


def _environment(cluster: ClusterConfig) -> list[dict[str, Any]]:
    storage = cluster.storage
    plain = {"AWS_DEFAULT_REGION": storage.region} | ({"AWS_ENDPOINT_URL_S3": storage.endpoint} if storage.endpoint else {})
    named = [{"name": name, "value": value} for name, value in plain.items()]
    if storage.credentials_secret:
        named += [_secret(name, storage.credentials_secret, name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    return named


def _secret(name: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
