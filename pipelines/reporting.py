"""The report page of any artifact: the artifact and all it was made from, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Iterable

from components import storage
from components.report.page import Exhibit, render
from pipelines.store import Artifact, Store

PAGE = "page.html"


def page_of(artifacts: Iterable[Artifact], title: str, summary: str, command: str) -> bytes:
    """The page's bytes."""
    exhibits = [Exhibit(each.url, each.manifest.to_json()) for each in artifacts]
    return render(title, summary, exhibits, command).encode()


def write_page(store: Store, artifact: Artifact, out: str | None) -> str:
    """Writes the page of `artifact` to `out` and returns its place; an artifact that is a page itself is only copied there."""
    if PAGE in artifact.manifest.files:
        if out is None:
            return artifact.path(PAGE)
        page = storage.read_bytes(artifact.path(PAGE))
    else:
        page = page_of(lineage(store, artifact), artifact.name, "One artifact and all it was made from.", artifact.manifest.command)
    place = out or f"{artifact.name}.html"
    storage.write_bytes(place, page)
    return place


def lineage(store: Store, artifact: Artifact) -> list[Artifact]:
    """`artifact` and those of its ancestors that are still in the store, each after what it was made from."""
    known = {found.name: found for found in store.artifacts()}
    ordered: dict[str, Artifact] = {}

    def visit(each: Artifact) -> None:
        for name, print_ in each.manifest.inputs.items():
            ancestor = known.get(f"{name}-{print_}")
            if ancestor is not None and ancestor.name not in ordered:
                visit(ancestor)
        ordered[each.name] = each

    visit(artifact)
    return list(ordered.values())
