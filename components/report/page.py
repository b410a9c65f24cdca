"""One self-contained HTML page about an artifact and all it was made from: no script, no outside link, light and dark, wide and narrow."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components import storage
from components.report.figures import Curve, chart_svg, curve_svg, histogram_svg
from components.report.findings import Findings, Picture, Score, Table
from components.report.numbers import duration, figure, number
from components.report.sweep import TRIALS, sweep_section
from components.training.record import read_metrics

TEMPLATES = Path(__file__).parent
SPEED = {"samples_per_second", "step_seconds", "data_wait_seconds", "peak_memory_bytes", "model_flops_per_second", "model_flop_utilisation"}
HELD_OUT = "held_out."


@dataclass(frozen=True)
class Exhibit:
    """An artifact as the page shows it: where it lies and what its manifest says (`pipelines/store.py`)."""

    url: str
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    def holds(self, name: str) -> bool:
        return any(file == name or file.startswith(f"{name}/") for file in self.manifest["files"])


def render(title: str, summary: str, exhibits: Sequence[Exhibit], command: str, config: str | None = None) -> str:
    """The page of `exhibits`, given in the order in which they were made; `command` makes them again, and `config` is its config file."""
    findings = [(each, Findings.read(each.url)) for each in exhibits if each.holds("findings.json")]
    trainings = [each for each in exhibits if each.holds("metrics")]
    return fill(
        "page.html",
        title=title,
        summary=summary,
        scores=[_score(score) for _, found in findings for score in found.scores],
        tables=[_table(table) for _, found in findings for table in found.tables],
        charts=[
            {"chart": chart, "stage": each.stage, "svg": chart_svg(chart, f"{each.stage}-chart-{place}")}
            for each, found in findings
            for place, chart in enumerate(found.charts)
        ],
        pictures=[_picture(each, picture) for each, found in reversed(findings) for picture in found.pictures],  # the last compares most
        histograms=[
            {"title": h.title, "caption": h.caption, "svg": histogram_svg(h.shares, f"{each.stage}-histogram-{place}")}
            for each, found in findings
            for place, h in enumerate(found.histograms)
        ],
        sweeps=[sweep_section(each.url, each.stage) for each in exhibits if each.holds(TRIALS)],
        trainings=[_training(each) for each in trainings],
        timings=_timings(exhibits),
        lineage=[_ancestry(each) for each in exhibits],
        config=config_yaml(exhibits) if config is None else config,
        command=command,
    )


def fill(template: str, **values: Any) -> str:
    """The page that one of this folder's templates makes of the values; a value that the template knows and nobody gave is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "number": number, "duration": duration}
    return environment.get_template(template).render(**values)


def config_yaml(exhibits: Sequence[Exhibit]) -> str:
    """The exact config of all of them, as a file that `raymill run --config` reads."""
    sources = {name: place for each in exhibits for name, place in each.manifest["sources"].items()}
    sections = {each.stage: dict(each.manifest["config"]) for each in exhibits if each.manifest["config"]}
    return yaml.safe_dump(sources | sections, sort_keys=False, allow_unicode=True, width=100)


def _score(score: Score) -> dict[str, Any]:
    """The score, and bars of it and of what stands beside it, in percent of the longest."""
    beside = sorted(score.beside.items(), key=lambda pair: pair[1], reverse=score.better == "higher")
    values = {"this run": score.value, **dict(beside)}
    longest = max([abs(v) for v in values.values()] + [abs(score.target or 0.0)]) or 1.0
    bars = [
        {"name": name, "value": value, "percent": 100 * max(value, 0.0) / longest, "ours": place == 0}
        for place, (name, value) in enumerate(values.items())
    ]
    return {"score": score, "bars": bars, "target_percent": None if score.target is None else 100 * score.target / longest}


def _table(table: Table) -> dict[str, Any]:
    """The table with its cells as text, and which columns are of numbers."""
    units = [table.units.get(column, "") for column in table.columns]
    rows = [
        ["–" if cell is None else cell if isinstance(cell, str) else figure(cell, unit) for cell, unit in zip(row, units, strict=True)]
        for row in table.rows
    ]
    numeric = [not any(isinstance(row[place], str) for row in table.rows) for place in range(len(table.columns))]
    return {"table": table, "rows": rows, "numeric": numeric, "heads": list(zip(table.columns, units, strict=True))}


def _picture(each: Exhibit, picture: Picture) -> dict[str, Any]:
    data = base64.b64encode(storage.read_bytes(storage.join(each.url, picture.file))).decode()
    return {"picture": picture, "source": f"data:image/png;base64,{data}"}


def _training(each: Exhibit) -> dict[str, Any]:
    """Curves of one training stage, and how it ran."""
    rows = read_metrics(each.url)
    names = sorted(dict.fromkeys(name for row in rows for name in row if _is_shown(name)), key=lambda name: not name.startswith("loss."))
    curves = []
    for name in names:
        shown = [row for row in rows if isinstance(row.get(name), float)]
        held = [row for row in rows if isinstance(row.get(HELD_OUT + name), float)]
        if shown:
            curve = Curve(
                name,
                [row["step"] for row in shown],
                [row[name] for row in shown],
                [row["step"] for row in held],
                [row[HELD_OUT + name] for row in held],
            )
            curves.append(curve_svg(curve, f"{each.stage}-{name}"))
    run = storage.read_json(storage.join(each.url, "run.json")) if each.holds("run.json") else {}
    held_out = any(name.startswith(HELD_OUT) for row in rows for name in row)
    return {"stage": each.stage, "curves": curves, "held_out": held_out, "facts": _facts(rows, run)}


def _is_shown(name: str) -> bool:
    """Losses and the family's own metrics; not speed, and not what is told by phase (learning rates, gradient norms)."""
    return name.startswith("loss.") or ("." not in name and name not in SPEED | {"step", "steps"})


def _facts(rows: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, str]:
    """How fast a run was and what it took, for people."""

    def every(name: str) -> list[float]:
        return [row[name] for row in rows if isinstance(row.get(name), (int, float))]

    facts = {name: str(run[name]) for name in ("workers", "device") if name in run}
    if len(run.get("sizes", [])) > 1:
        facts["workers"] = ", ".join(f"{size['workers']} from step {size['step']}" for size in run["sizes"])
    if "parameters" in run:
        facts["parameters"] = f"{run['parameters']:,}"
    facts["steps"] = str(rows[-1]["step"]) if rows else "0"
    if speeds := sorted(every("samples_per_second")):
        facts["samples/s"] = number(speeds[len(speeds) // 2])
    if steps := sorted(every("step_seconds")):
        facts["step"] = f"{1000 * steps[len(steps) // 2]:.1f} ms"
    if waits := every("data_wait_seconds"):
        facts["waited for data"] = duration(sum(waits))
    if peaks := every("peak_memory_bytes"):
        facts["peak memory"] = f"{max(peaks) / 2**20:,.0f} MiB"
    if uses := sorted(every("model_flop_utilisation")):
        facts["of peak FLOP/s"] = f"{uses[len(uses) // 2]:.0%}"
    return facts


def _timings(exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    total = sum(each.manifest["seconds"] for each in exhibits)
    longest = max((each.manifest["seconds"] for each in exhibits), default=0.0) or 1.0
    bars = [
        {"stage": each.stage, "seconds": each.manifest["seconds"], "percent": 100 * each.manifest["seconds"] / longest} for each in exhibits
    ]
    return {"bars": bars, "total": total}


def _ancestry(each: Exhibit) -> dict[str, Any]:
    manifest = each.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return {
        "stage": each.stage,
        "fingerprint": manifest["fingerprint"],
        "version": manifest["version"],
        "inputs": [(name, print_, manifest["sources"].get(name)) for name, print_ in manifest["inputs"].items()],
        "made_at": manifest["made_at"][:19].replace("T", " "),
        "size": f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB",
        "files": len(manifest["files"]),
    }
