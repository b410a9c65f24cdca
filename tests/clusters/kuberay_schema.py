"""The published KubeRay schemas as JSON schemas that reject what they do not know, as an API server with strict validation does."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(os.environ.get("KUBERAY_CRDS", Path(__file__).parents[3] / "shared" / "kuberay-crds"))


def check(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError when the manifest does not fit the schema of its kind; skips where the schemas are absent."""
    jsonschema.validate(manifest, schema_of(manifest["kind"]))


def check_pod(template: dict[str, Any]) -> None:
    """A pod template against the schema of pod templates, which the schema of RayJob holds."""
    jsonschema.validate(template, schema_of("RayJob")["properties"]["spec"]["properties"]["submitterPodTemplate"])


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    place = FOLDER / f"ray.io_{kind.lower()}s.yaml"
    if not place.exists():
        pytest.skip(f"no schema at {place}; set KUBERAY_CRDS to the folder helm-chart/kuberay-operator/crds of KubeRay 1.7")
    definition = yaml.load(place.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema: dict[str, Any] = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items() if key != "description"}
    if "properties" in strict and isinstance(strict["properties"], dict) and "type" in strict:
        strict.setdefault("additionalProperties", False)
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict
