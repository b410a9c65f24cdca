"""What many tests share: small data on disk, and processes for distributed tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clusters.session import ENVIRONMENT
from tests.gang import Gang
from tests.s3 import s3, s3_server
from tests.small_data import write_codes, write_identities, write_images, write_points

__all__ = ["s3", "s3_server"]  # fixtures

os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})  # Ray looks at its import


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_data_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small data sets by kind, as the families' proofs name them."""
    folder = tmp_path_factory.mktemp("data")
    makers = {"images": write_images, "codes": write_codes, "identities": write_identities, "points": write_points}
    return {kind: make(folder / kind) for kind, make in makers.items()}


@pytest.fixture(scope="session")
def gang() -> Iterator[Gang]:
    """Four processes that join into gloo groups."""
    gang = Gang()
    yield gang
    gang.close()
