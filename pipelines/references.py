"""Real pictures as a judge sees them, looked at once: what was found lies in the store's cache, by the fingerprints of data and judge."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

from components import storage
from components.config import fingerprint
from components.data.dataset import Dataset
from components.errors import UserError
from components.evaluation.generation import Reference, Scores, require_enough
from components.evaluation.reference_points import HELD_OUT, point_scores
from components.evaluation.sampling import picture_shape
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.model_folder import load_model
from pipelines.source import Source
from pipelines.store import Store

VERSION = 1
HELD_OUT_SPLIT = "test"


class Judging:
    """A judge and the real pictures of a split, for all that is to be scored against them."""

    def __init__(self, store: Store, judge: Source, data: Source, split: str) -> None:
        """Raises UserError when the judge is no classifier, or not one of pictures like these."""
        model = load_model(judge.url, expect="classifier")
        assert isinstance(model, Classifier)
        self.judge, self._store, self._data = model, store, data
        self._seen = {"version": VERSION, "judge": judge.fingerprint, "data": data.fingerprint, "split": split}
        self._train = Dataset.open(data.url, split)
        self.judge.require_fitting(self._train.shape, self._train.url, split)
        require_enough(self.judge, self._train.num_rows, f"split {split} of {data.url} has")

    def require_pictures_of(self, model: Family) -> None:
        """Raises UserError when the model makes pictures of another shape than the judge knows, or none at all."""
        made, config = picture_shape(model), self.judge.config
        if made != (config.image_channels, *config.image_size):
            raise UserError(
                f"the model makes pictures of shape {made} (channels, height, width), the judge knows "
                f"{(config.image_channels, *config.image_size)}; give a judge that was trained on pictures like the model's"
            )

    def points(self, count: int) -> dict[str, Scores]:
        """Scores of `count` pictures of each reference point: real ones of another split, Gaussians of each class, noise."""
        place = self._place(f"points-{fingerprint(self._seen | {'count': count})}.json")
        if storage.exists(place):
            with suppress(UserError):
                return storage.read_json(place)
        other = HELD_OUT_SPLIT in self._train.splits and self._train.split != HELD_OUT_SPLIT
        held_out = Dataset.open(self._data.url, HELD_OUT_SPLIT) if other else None
        found = point_scores(self.judge, self.reference, self._train, held_out, count)
        with suppress(UserError):  # a read-only store still works; the next command looks again
            storage.write_json(place, found)
        return found

    @cached_property
    def reference(self) -> Reference:
        """The real pictures."""
        place = self._place(f"reference-{fingerprint(self._seen)}.safetensors")
        if storage.exists(place):
            with suppress(UserError, ValueError):  # a cache that was cut short is none
                return Reference.from_bytes(storage.read_bytes(place))
        found = Reference.of(self.judge, self._train)
        with suppress(UserError):
            storage.write_bytes(place, found.to_bytes())
        return found

    def _place(self, name: str) -> str:
        return self._store.place("cache", name)


def held_out_first(points: dict[str, Scores], score: str) -> dict[str, float]:
    """One score of every reference point, as it stands beside a model's."""
    names = sorted(points, key=lambda name: name != HELD_OUT)
    return {name: points[name][score] for name in names}
