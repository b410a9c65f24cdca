"""What a cluster is, said once: every manifest and launch file is rendered from this value.

    raymill cluster render clusters/examples/cpu/cluster.yaml --out manifests -- run tokens --preset full

Secrets are named, never held: whoever runs the cluster keeps them where its nodes can read them.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from components.config import Config, read_yaml
from components.errors import UserError

DNS_LABEL = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"  # of Kubernetes, shorter: services and pods add their own endings

Name = Annotated[str, Field(pattern=f"^{DNS_LABEL}$")]


class Toleration(Config):
    """A taint that pods of a group accept."""

    key: str
    operator: str = "Exists"
    value: str | None = None
    effect: str | None = None


class Machine(Config):
    """What one node has, and where it may be placed."""

    cpus: int = Field(ge=1)
    memory_gib: int = Field(ge=1)
    gpus: int = Field(default=0, ge=0)
    disk_gib: int = Field(default=50, ge=1)  # for the node cache and what Ray spills
    instance_type: str | None = None  # AWS
    node_selector: dict[str, str] = Field(default_factory=dict)  # Kubernetes
    tolerations: tuple[Toleration, ...] = ()


class NodeGroup(Machine):
    """Equal nodes that train and prepare; the autoscaler keeps their number between `least` and `most`."""

    name: Name
    least: int = Field(default=0, ge=0)
    most: int = Field(ge=1)
    spot: bool = False

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"group {self.name!r} asks for at least {self.least} nodes and at most {self.most}")
        return self


class Autoscaling(Config):
    """When nodes come and go. Without it every group has its `most` nodes all the time."""

    enabled: bool = True
    idle_seconds: int = Field(default=300, ge=10)


class StorageAccess(Config):
    """How nodes reach S3: credentials of a secret by name, or those of the nodes themselves."""

    endpoint: str | None = None
    region: str = "us-east-1"
    credentials_secret: str | None = None  # Kubernetes: with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    service_account: str | None = None  # Kubernetes: one that is bound to a role

    @field_validator("endpoint")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@\s]+/?", value):
            raise ValueError("expected http(s)://host[:port] without a user or password, such as http://seaweedfs:8333")
        return value


class AWS(Config):
    """What `ray up` needs to know of an account."""

    region: str
    availability_zones: tuple[str, ...] = Field(min_length=1)
    image_id: str = Field(pattern="^ami-")  # with Docker, the NVIDIA runtime for GPU groups, and the AWS command line
    ssh_user: str = "ubuntu"
    instance_profile: str  # name of the IAM instance profile: reads the token's secret and the buckets


class ClusterConfig(Config):
    """A cluster. `token_secret` names the secret with Ray's token (Kubernetes: key `auth_token`; AWS: a Secrets Manager secret)."""

    name: Name
    image: str = Field(min_length=1)
    image_pull_secret: str | None = None
    namespace: str = "default"
    token_secret: str = Field(min_length=1, pattern=r"^[-A-Za-z0-9_./]+$")
    head: Machine = Machine(cpus=2, memory_gib=8)
    groups: tuple[NodeGroup, ...] = Field(min_length=1)
    autoscaling: Autoscaling = Autoscaling()
    storage: StorageAccess = StorageAccess()
    aws: AWS | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [group.name for group in self.groups]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"groups share the name {twice[0]!r}; each needs its own")
        if self.storage.credentials_secret and self.storage.service_account:
            raise ValueError("storage has both credentials_secret and service_account; give one of them")
        return self

    @classmethod
    def read(cls, path: str) -> ClusterConfig:
        """The cluster described in a YAML file; raises UserError naming the file, the key and what was expected."""
        return cls.parse(read_yaml(path), path)

    def require_aws(self, path: str) -> AWS:
        """The AWS section; raises UserError when it, or a machine's type, is missing."""
        if self.aws is None:
            raise UserError(
                f"{path}: no section aws, which the `ray up` file is rendered from; add region, availability_zones, image_id ..."
            )
        for where, machine in [("head", self.head), *((f"group {group.name}", group) for group in self.groups)]:
            if machine.instance_type is None:
                raise UserError(f"{path}: {where} has no instance_type, which `ray up` needs, for example m7i.2xlarge")
        return self.aws
