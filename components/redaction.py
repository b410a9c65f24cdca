"""Texts without secrets, for whatever is written where others read: tracking servers, tags, warnings."""

from __future__ import annotations

import os
import re

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)
_USER = re.compile(r"(?<=//)[^/@\s]+@")  # user:password@host
_SIGNATURE = re.compile(r"([?&;](?:x-(?:amz|goog)-[\w-]+|signature|sig|[\w-]*token|password|secret)=)[^&\s'\"]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text` without what URLs carry of users, passwords and signatures, and without the values of the variables that hold secrets."""
    for name in SECRET_VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, f"<{name}>")
    return _SIGNATURE.sub(r"\1<hidden>", _USER.sub("", text))
