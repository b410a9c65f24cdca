"""Texts without secrets, for all that is written where others read: errors, logs, manifests, tracking servers, jobs.

    redacted("data=https://anna:word@host/x?X-Amz-Signature=0123")  # data=https://host/x?X-Amz-Signature=<hidden>

A secret is the value of a variable whose name says so, and what a URL carries of users, passwords and signatures.
"""

from __future__ import annotations

import os
import re

LEAST_CHARACTERS = 6  # of a value that is hidden: shorter ones are parts of ordinary words
_NAME = re.compile(r"(SECRET|TOKEN(?!IZER)|PASSW|PASSPHRASE|CREDENTIAL|KEY)(?!\w*_(PATH|FILE|DIR)$)", re.IGNORECASE)
_USER = re.compile(r"(?<=//)[^/?#\s'\"]+@")  # user:password@host
_SIGNATURE = re.compile(
    r"([?&;](?:x-(?:amz|goog)-[\w-]+|signature|sig|awsaccesskeyid|[\w-]*(?:token|password|secret|key))=)[^&\s'\"]+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """`text` without what URLs carry of users, passwords and signatures, and without the values of variables that hold secrets."""
    held = ((name, value) for name, value in os.environ.items() if is_secret_name(name) and len(value) >= LEAST_CHARACTERS)
    for name, value in sorted(held, key=lambda each: len(each[1]), reverse=True):  # one may be a part of another
        text = text.replace(value, f"<{name}>")
    return _SIGNATURE.sub(r"\1<hidden>", _USER.sub("", text))


def holds_secret(text: str) -> bool:
    """Whether `redacted` would hide a part of it."""
    return redacted(text) != text


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret; that of a file with one holds none."""
    return _NAME.search(name) is not None
