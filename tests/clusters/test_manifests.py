"""Every rendered file fits its published schema, and keeps what operators look for: secrets by name, limits, probes, no root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from clusters import aws, kuberay
from clusters.description import ClusterConfig
from components.config import merge
from components.errors import UserError
from pipelines.render_command import manifests
from tests.clusters.kuberay_schema import check, check_pod

EXAMPLES = sorted(Path("clusters/examples").glob("*/cluster.yaml"))
COMMAND = ["run", "tokens", "--preset", "full", "--workers", "8", "--store", "s3://bucket/store", "data=s3://bucket/it's here"]
CRON = ("nightly", ["schedule", "run", "nightly", "--store", "s3://bucket/store"], "0 3 * * *", "Europe/Berlin")


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.parent.name)
def cluster(request: pytest.FixtureRequest) -> ClusterConfig:
    return ClusterConfig.read(str(request.param))


def rendered(cluster: ClusterConfig) -> list[dict[str, Any]]:
    return [
        kuberay.ray_cluster(cluster),
        kuberay.ray_job(cluster, COMMAND),
        kuberay.ray_cron_job(cluster, *CRON),
        kuberay.cron_job(cluster, *CRON),
    ]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification in a manifest."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def test_the_schemas_accept_what_is_rendered(cluster: ClusterConfig) -> None:
    *of_ray, plain = rendered(cluster)
    for manifest in of_ray:
        check(manifest)
    check_pod(plain["spec"]["jobTemplate"]["spec"]["template"])


def test_the_schemas_reject_a_misspelt_key_and_a_wrong_type(cluster: ClusterConfig) -> None:
    misspelt, wrong = kuberay.ray_cluster(cluster), kuberay.ray_cluster(cluster)
    misspelt["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolicyy"] = "Always"
    wrong["spec"]["workerGroupSpecs"][0]["maxReplicas"] = "many"
    for manifest in (misspelt, wrong):
        with pytest.raises(jsonschema.ValidationError):
            check(manifest)


def test_every_pod_has_limits_requests_and_no_privileges(cluster: ClusterConfig) -> None:
    found = [pod for manifest in rendered(cluster) for pod in pods(manifest)]
    assert len(found) == 2 * (2 + len(cluster.groups)) + (1 + len(cluster.groups)) + 1  # two jobs with submitters, a cluster, a submitter
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys()
            assert resources["requests"] == resources["limits"]  # guaranteed: no node takes memory back in mid-training
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_ray_containers_have_probes_that_need_no_token(cluster: ClusterConfig) -> None:
    containers = [each for pod in pods(kuberay.ray_cluster(cluster)) for each in pod["containers"]]
    for container in containers:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["path"] in ("/api/local_raylet_healthz", "/api/gcs_healthz")


def test_tokens_and_credentials_are_named_not_held(cluster: ClusterConfig) -> None:
    for manifest in rendered(cluster):
        for pod in pods(manifest):
            for variable in (each for container in pod["containers"] for each in container.get("env", [])):
                secret = any(part in variable["name"] for part in ("TOKEN", "SECRET", "KEY_ID", "PASSWORD"))
                assert ("valueFrom" in variable) == secret, variable["name"]
    assert kuberay.ray_cluster(cluster)["spec"]["authOptions"] == {"mode": "token", "secretName": cluster.token_secret}


def test_the_job_runs_the_same_command_as_a_shell(cluster: ClusterConfig) -> None:
    import shlex

    assert shlex.split(kuberay.ray_job(cluster, COMMAND)["spec"]["entrypoint"]) == ["raymill", *COMMAND]


def test_replicas_follow_autoscaling() -> None:
    cluster = ClusterConfig.read("clusters/examples/cpu/cluster.yaml")
    fixed = merge(cluster, {"autoscaling": {"enabled": False}}, "test")
    by_need = kuberay.ray_cluster(cluster)["spec"]
    always = kuberay.ray_cluster(fixed)["spec"]
    assert [by_need["workerGroupSpecs"][0][key] for key in ("minReplicas", "replicas", "maxReplicas")] == [0, 0, 8]
    assert [always["workerGroupSpecs"][0][key] for key in ("minReplicas", "replicas", "maxReplicas")] == [8, 8, 8]
    assert by_need["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    assert "autoscalerOptions" not in always


def test_ray_up_accepts_the_aws_file(cluster: ClusterConfig) -> None:
    """Ray's own preparation and validation, which `ray up` runs before it asks AWS for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = aws.ray_up(cluster, cluster.require_aws("test"))
    validate_config(prepare_config(yaml.safe_load(yaml.safe_dump(config))))
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert set(config["available_node_types"]) == {"head", *(group.name for group in cluster.groups)}
    broken = config | {"max_worker": 3}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(broken))


def test_the_aws_file_reads_the_token_by_the_name_of_its_secret(cluster: ClusterConfig) -> None:
    commands = "\n".join(aws.ray_up(cluster, cluster.require_aws("test"))["initialization_commands"])
    assert f"--secret-id {cluster.token_secret} " in commands
    assert "chmod 0400" in commands


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_files_beside_the_examples_are_those_that_would_be_rendered(example: Path) -> None:
    beside = {path.name: yaml.safe_load(path.read_text()) for path in example.parent.glob("*.yaml") if path.name != "cluster.yaml"}
    command = beside["rayjob.yaml"]["spec"]["entrypoint"].split()[1:]
    assert beside == {name: values for name, (_, values) in manifests(str(example), command, None, None).items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "Not_A_Label"}, "name='Not_A_Label' is not valid"),
        ({"groups": []}, "groups=[] is not valid"),
        ({"groups": [{"name": "a", "cpus": 1, "memory_gib": 1, "least": 3, "most": 2}]}, "at least 3 nodes and at most 2"),
        ({"groups": [{"name": "a", "cpus": 1, "memory_gib": 1, "most": 2}] * 2}, "groups share the name 'a'"),
        ({"groups": [{"name": "a", "cpus": 0, "memory_gib": 1, "most": 2}]}, "groups.0.cpus=0 is not valid"),
        ({"storage": {"endpoint": "http://user:word@host:1"}}, "without a user or password"),
        ({"storage": {"credentials_secret": "a", "service_account": "b"}}, "give one of them"),
        ({"tokensecret": "x"}, "did you mean 'token_secret'"),
        ({"aws": {"region": "x"}}, "availability_zones"),
    ],
)
def test_a_description_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    values = yaml.safe_load(EXAMPLES[0].read_text())
    place = tmp_path / "cluster.yaml"
    place.write_text(yaml.safe_dump(values | change))
    with pytest.raises(UserError) as caught:
        ClusterConfig.read(str(place))
    assert says in str(caught.value)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "user:word" not in str(caught.value)


def test_aws_needs_a_type_for_every_machine(tmp_path: Path) -> None:
    values = yaml.safe_load(EXAMPLES[0].read_text())
    del values["groups"][0]["instance_type"]
    with pytest.raises(UserError, match="group cpu has no instance_type"):
        ClusterConfig.parse(values, "cluster.yaml").require_aws("cluster.yaml")
