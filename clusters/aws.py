"""The file that `ray up` makes a cluster on AWS from.

Ray runs in the image, on machines that Ray starts. The token is read from AWS Secrets Manager on each machine, by the name of its
secret and with the machine's own role, into a file that only the container sees.
"""

from __future__ import annotations

import math
import shlex
from typing import Any

from clusters.description import AWS, ClusterConfig, Machine, NodeGroup
from clusters.ports import HEAD_PORT, JOBS_PORT

TOKEN_FOLDER = "/etc/raymill"
IMAGE_USER = 1000
SYSTEM_GIB = 40  # of the disk, for the machine itself and the image


def ray_up(cluster: ClusterConfig, aws: AWS) -> dict[str, Any]:
    """The configuration as a value; `aws` is the cluster's own section, see `ClusterConfig.require_aws`."""
    groups = {group.name: _node_type(aws, group, group.spot) | _bounds(cluster, group) for group in cluster.groups}
    head = _node_type(aws, cluster.head, spot=False) | {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0}  # no work there
    start = "ulimit -n 65536; ray start"
    return {
        "cluster_name": cluster.name,
        "max_workers": sum(group.most for group in cluster.groups),
        "idle_timeout_minutes": math.ceil(cluster.autoscaling.idle_seconds / 60),
        "provider": {
            "type": "aws",
            "region": aws.region,
            "availability_zone": ",".join(aws.availability_zones),
            "cache_stopped_nodes": False,
        },
        "auth": {"ssh_user": aws.ssh_user},
        "docker": {"image": cluster.image, "container_name": "raymill", "pull_before_run": True, "run_options": _container(cluster)},
        "available_node_types": {"head": head} | groups,
        "head_node_type": "head",
        "initialization_commands": _fetch_token(cluster, aws),
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port={HEAD_PORT} --dashboard-host=127.0.0.1 --dashboard-port={JOBS_PORT} "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:{HEAD_PORT} --disable-usage-stats"],
    }


def _bounds(cluster: ClusterConfig, group: NodeGroup) -> dict[str, int]:
    return {"min_workers": group.least if cluster.autoscaling.enabled else group.most, "max_workers": group.most}


def _node_type(aws: AWS, machine: Machine, spot: bool) -> dict[str, Any]:
    disk = {"VolumeSize": SYSTEM_GIB + machine.disk_gib, "VolumeType": "gp3", "Encrypted": True}
    config: dict[str, Any] = {
        "InstanceType": machine.instance_type,
        "ImageId": aws.image_id,
        "IamInstanceProfile": {"Name": aws.instance_profile},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},  # one hop more: the role is used inside a container
    }
    if spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    resources = {"CPU": machine.cpus} | ({"GPU": machine.gpus} if machine.gpus else {})
    return {"resources": resources, "node_config": config}


def _container(cluster: ClusterConfig) -> list[str]:
    """Options of `docker run`. GPUs, and the shared memory of the object store, are Ray's own to add."""
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{TOKEN_FOLDER}/token",
        "AWS_EC2_METADATA_DISABLED": "false",  # where the role's credentials come from; the image turns it off
        "AWS_DEFAULT_REGION": cluster.storage.region,
    }
    if cluster.storage.endpoint:
        variables["AWS_ENDPOINT_URL_S3"] = cluster.storage.endpoint
    mounts = ["--ulimit nofile=65536:65536", f"-v {TOKEN_FOLDER}:{TOKEN_FOLDER}:ro"]
    return mounts + [f"-e {name}={shlex.quote(value)}" for name, value in variables.items()]


def _fetch_token(cluster: ClusterConfig, aws: AWS) -> list[str]:
    """Run on the machine, outside the container."""
    ask = (
        f"aws secretsmanager get-secret-value --region {shlex.quote(aws.region)} --secret-id {shlex.quote(cluster.token_secret)} "
        "--query SecretString --output text"
    )
    return [
        f"sudo install -d -m 0750 -o {IMAGE_USER} {TOKEN_FOLDER}",
        f"set -o pipefail; {ask} | sudo tee {TOKEN_FOLDER}/token > /dev/null",
        f"sudo chown {IMAGE_USER} {TOKEN_FOLDER}/token && sudo chmod 0400 {TOKEN_FOLDER}/token",
    ]
