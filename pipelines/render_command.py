"""The command `raymill cluster render`: one description of a cluster into every file that starts it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from components import storage
from components.errors import UserError
from pipelines.job_commands import check_command
from pipelines.options import JsonOption, VerboseOption
from pipelines.shell import Answer


def render(
    context: typer.Context,
    description: Annotated[str, typer.Argument(help="A cluster as YAML; clusters/examples has some.")],
    command: Annotated[list[str] | None, typer.Argument(help="After --: a raymill command, for a RayJob.")] = None,
    out: Annotated[str, typer.Option("--out", help="Folder for the files.")] = "manifests",
    schedule: Annotated[str | None, typer.Option("--schedule", help="A schedule as YAML, for a RayCronJob and a CronJob.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="s3:// store of the schedule.")] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Writes the files of a cluster: RayCluster, RayJob, RayCronJob and CronJob for Kubernetes, `ray up`, Prometheus.

    \b
    raymill cluster render clusters/examples/cpu/cluster.yaml
    raymill cluster render cluster.yaml --out manifests -- run tokens --preset full --workers 8 --store s3://bucket/store
    raymill cluster render cluster.yaml --schedule nightly.yaml --store s3://bucket/store
    """
    if command:
        check_command(context.find_root().command, command)
    files = manifests(description, command or [], schedule, store)
    for name, (about, values) in files.items():
        text = f"# {about}\n# Rendered from {description} by `raymill cluster render`: change that file, and render again.\n"
        storage.write_bytes(storage.join(out, name), (text + yaml.safe_dump(values, sort_keys=False, width=140)).encode())
    places = [storage.join(out, name) for name in files]
    return Answer({"cluster": description, "files": places}, places)


def manifests(description: str, command: list[str], schedule: str | None, store: str | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """File name -> (what it is for, its value). Raises UserError for what the description or the options lack."""
    from clusters import aws, kuberay, scrape
    from clusters.description import ClusterConfig

    cluster = ClusterConfig.read(description)
    files = {"raycluster.yaml": ("kubectl apply -f raycluster.yaml", kuberay.ray_cluster(cluster))}
    if command:
        files["rayjob.yaml"] = ("A cluster for this one command: kubectl create -f rayjob.yaml", kuberay.ray_job(cluster, command))
    if schedule is not None:
        files |= _scheduled(cluster, schedule, store)
    elif store is not None:
        raise UserError(f"--store {store} has no effect without --schedule; put the store of a job behind the --, with its command")
    if cluster.aws is not None:
        files["ray-up.yaml"] = ("ray up ray-up.yaml", aws.ray_up(cluster, cluster.require_aws(description)))
    scraped = scrape.kubernetes_scrape_config(cluster.namespace, rules="/etc/prometheus/alerts.yaml")
    return files | {"prometheus.yaml": ("For a Prometheus in the same Kubernetes; alerts.yaml lies in clusters/monitoring.", scraped)}


def _scheduled(cluster: Any, path: str, store: str | None) -> dict[str, tuple[str, dict[str, Any]]]:
    from clusters import kuberay
    from pipelines.schedule.config import ScheduleConfig

    schedule = ScheduleConfig.read(path)
    if schedule.trigger.cron is None:
        raise UserError(f"{path}: trigger has no cron line, which Kubernetes needs; add one, or use `raymill schedule start`")
    if store is None or not storage.is_remote(store):
        raise UserError(f"--schedule {path} needs --store s3://..., where all its runs find their state; --store is {store!r}")
    run = ["schedule", "run", schedule.name, "--store", store]
    when = (schedule.name, run, schedule.trigger.cron, schedule.trigger.time_zone)
    return {
        "raycronjob.yaml": (
            "A cluster for each run; KubeRay's operator needs the feature gate RayCronJob, which is off by default.",
            kuberay.ray_cron_job(cluster, *when),
        ),
        "cronjob.yaml": (
            "Runs are submitted to the cluster of raycluster.yaml; use it or raycronjob.yaml.",
            kuberay.cron_job(cluster, *when),
        ),
    }
