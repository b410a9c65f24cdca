"""The gate: candidate and champion scored on the same held-out rows, and the rule that says which of them is champion next."""

from __future__ import annotations

import math
from typing import Any, Literal

from components.data.dataset import Dataset
from components.data.index import read_index
from components.errors import UserError, did_you_mean
from components.evaluation.paired import Interval, Sums, block_scores, paired_bootstrap
from components.families.contract import Family
from components.families.model_folder import load_model
from components.report.numbers import number
from pipelines.schedule.config import Gate
from pipelines.schedule.decision import Comparison, Contender
from pipelines.store import Artifact
from pipelines.training import MODEL

SEED = 0  # of the resampling: the same blocks give the same interval
BLOCKS = 200  # where the gate does not say how many rows are one; more make an interval no better
FEW_BLOCKS = 20  # of fewer, a bootstrap interval is too narrow
FEW = "only {blocks} blocks of held-out rows make the interval too narrow; hold out more rows or lower gate.block_rows"
MOVES_NO_ROW = {"rows_per_shard", "shard_mib", "limit", "checksums"}  # options of preparing that leave every row in its split

Judged = dict[str, Any]  # fields of a Decision


def incomparable(candidate_data: Artifact, champion_data: Artifact | None) -> str | None:
    """Why the champion may have been trained on rows that are held out now; None when it was not.

    A row's split follows from the source's own splits or from its file's path, its number and the settings `seed` and `holdout`, never from
    the files beside it. So with equal settings, whatever was added since, no row that is held out now was trained on before.
    """
    if champion_data is None:
        return "the data that the champion learnt from is not in the store, so it is not known which rows it was trained on"
    now, before = candidate_data.manifest, champion_data.manifest
    if now.version != before.version:
        return f"the champion's data was prepared by version {before.version} of stage {before.stage}, the candidate's by {now.version}"
    for name in sorted({*now.config, *before.config} - MOVES_NO_ROW):
        if now.config.get(name) != before.config.get(name):
            return (
                f"the champion's data was prepared with {name}={before.config.get(name)}, the candidate's with {now.config.get(name)}: "
                f"rows that the champion was trained on may be held out now"
            )
    names = [read_index(data.url).class_names for data in (champion_data, candidate_data)]
    if names[0] != names[1]:
        return f"the champion knows the classes {', '.join(names[0])}, the data has {', '.join(names[1])}"
    return None


def judge(gate: Gate, candidate: Artifact, champion: Artifact | None, data: Artifact, champion_data: Artifact | None) -> Judged:
    """Scores both models on the split `gate.split` of `data`, and applies the rule; the fields of the decision that follow from it.

    Raises UserError when the split or the score does not exist, and when the candidate cannot be scored.
    """
    rows = Dataset.open(data.url, gate.split)
    model = load_model(candidate.path(MODEL))
    score, better = (gate.score, gate.best) if gate.score is not None else model.headline
    sums = _sums(model, rows, gate, score)
    found: Judged = {"score": score, "better": better, "margin": gate.margin, "split": gate.split, "rows": rows.num_rows}
    found["candidate"] = _contender(candidate, sums)
    if champion is None:
        return found | _first(gate, found)
    found["champion"] = Contender(artifact=champion.name)
    problem = incomparable(data, champion_data)
    if problem is not None or champion_data is None:
        return found | _not_compared(problem or "")
    holder = load_model(champion.path(MODEL))
    try:
        theirs = _sums(holder, rows, gate, score)
    except UserError as error:  # other shapes than the data has now
        return found | _not_compared(f"the champion cannot be scored on the new data: {error}")
    found["champion"] = _contender(champion, theirs)
    for name in ("candidate", "champion"):
        if found[name].score is None:
            return found | {"outcome": "kept", "reason": f"the {name}'s {score} on {rows.num_rows:,} held-out rows is not finite"}
    now, before = _compare(gate, sums, theirs), None
    if champion_data.fingerprint != data.fingerprint:
        earlier = Dataset.open(champion_data.url, gate.split)
        before = _compare(gate, *(_sums(each, earlier, gate, score) for each in (model, holder)))
    return found | _compared(gate, found, now, before)


def rule(now: Interval, before: Interval | None, margin: float, better: Literal["min", "max"]) -> bool:
    """Whether the candidate takes the champion's place.

    It does when the *whole* interval of its improvement on the held-out rows of the newest data (`now`) lies above the margin. The other
    rule that one meets, "improvement of at least the margin, and an interval above zero", promotes a candidate whose true improvement is
    just short of the margin every second time: there the margin is asked of the estimate, not of the model. Here it is asked of the model,
    with the gate's confidence; at margin 0 both are the same. Who wants more promotions gives a smaller margin, or holds out more rows,
    which narrows the interval.

    And it may not be worse, with its whole interval, on the rows that were held out before the new data came (`before`; None: there is no
    new data). New data with wrong labels has wrong labels in its held-out rows too, and a model that learnt them looks good on those alone.
    """
    return now.surpasses(margin, better) and not (before is not None and _is_worse(before, better))


def _is_worse(found: Interval, better: Literal["min", "max"]) -> bool:
    """With its whole interval."""
    return found.high < 0 if better == "max" else found.low > 0


def _first(gate: Gate, found: Judged) -> Judged:
    value, rows = found["candidate"].score, f"{found['rows']:,} held-out rows"
    if value is None:
        return {"outcome": "kept", "reason": f"no champion yet, but the candidate's {found['score']} on {rows} is not finite"}
    shown = f"{found['score']} {number(value)} on {rows}"
    if gate.floor is not None and (value < gate.floor if found["better"] == "max" else value > gate.floor):
        return {"outcome": "kept", "reason": f"no champion yet, but {shown} does not reach the floor of {number(gate.floor)}"}
    return {"outcome": "promoted", "reason": f"no champion yet: the first is the candidate with {shown}"}


def _not_compared(problem: str) -> Judged:
    return {"outcome": "kept", "reason": f"not compared: {problem}. Look at both and promote the candidate by hand if it is better"}


def _compared(gate: Gate, found: Judged, now: Interval, before: Interval | None) -> Judged:
    """What follows from the intervals, and the sentence that says so."""
    better, value, against = found["better"], found["candidate"].score, found["champion"].score
    promoted, enough = rule(now, before, gate.margin, better), rule(now, None, gate.margin, better)
    reason = (
        f"{found['score']} {number(value)} against the champion's {number(against)} on the same {found['rows']:,} held-out rows: "
        f"{_said(now, gate, better)}, {'all of it' if enough else 'not all of it'} above the margin of {number(gate.margin)}"
    )
    if before is not None and _is_worse(before, better):
        told = f"{_said(before, gate, better)} on the rows held out before the new data came: new labels may be wrong"
        reason += f"; {'but' if enough else 'and'} {told}"
    warnings = (FEW.format(blocks=now.blocks),) if now.blocks < FEW_BLOCKS else ()
    judged: Judged = {"outcome": "promoted" if promoted else "kept", "reason": reason, "warnings": warnings}
    return judged | {"comparison": _value(now, gate), "earlier": None if before is None else _value(before, gate)}


def _said(interval: Interval, gate: Gate, better: Literal["min", "max"]) -> str:
    sign = 1 if better == "max" else -1
    gain, (low, high) = sign * interval.difference, sorted((sign * interval.low, sign * interval.high))
    said = f"better by {number(gain)}" if gain > 0 else f"worse by {number(-gain)}" if gain < 0 else "no better"
    return f"{said} ({100 * gate.confidence:g} % interval of the improvement {number(low)} to {number(high)})"


def _compare(gate: Gate, candidate: Sums, champion: Sums) -> Interval:
    return paired_bootstrap(candidate, champion, resamples=gate.resamples, confidence=gate.confidence, seed=SEED)


def _value(found: Interval, gate: Gate) -> Comparison:
    return Comparison(difference=found.difference, low=found.low, high=found.high, confidence=gate.confidence, blocks=found.blocks)


def _contender(artifact: Artifact, sums: Sums) -> Contender:
    """Its score is the ratio of the sums, as everywhere; None when that is no number."""
    value = float(sums[0].sum() / sums[1].sum())
    return Contender(artifact=artifact.name, score=value if math.isfinite(value) else None)


def _sums(model: Family, rows: Dataset, gate: Gate, score: str) -> Sums:
    scores = block_scores(model, rows, gate.block_rows or max(1, rows.num_rows // BLOCKS))
    if score not in scores:
        raise UserError(f"gate.score={score} is no score of {type(model).__name__}; {did_you_mean(score, scores)}")
    return scores[score]
