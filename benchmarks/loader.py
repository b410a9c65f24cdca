"""Rows per second of a fully shuffled epoch into torch tensors: our loader beside its peers, on the same images in one run.

    python -m benchmarks.loader

Every contender reads the training images of Fashion-MNIST, (1, 28, 28) uint8 and a label, from its own format on disk, in one process, in
batches of 256. Plain numpy indexes one array in memory by a permutation. Rounds are interleaved, figures are medians; setting up is not
counted.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.table import Table
from benchmarks.work import prepared
from components.data.dataset import Dataset
from components.data.loader import Loader

BATCH, ROUNDS, SHUFFLE_BUFFER = 256, 5, 10_000
Epoch = Callable[[], Iterable[dict[str, torch.Tensor]]]


def _ours(data: Dataset) -> Epoch:
    seeds = iter(range(10**6))
    return lambda: Loader(data, BATCH, next(seeds)).batches(0, data.num_rows // BATCH)


def _numpy(images: np.ndarray, labels: np.ndarray) -> Epoch:
    draw = np.random.default_rng(0)

    def epoch() -> Iterator[dict[str, torch.Tensor]]:
        order = draw.permutation(len(images))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            yield {"image": torch.from_numpy(images[rows]), "label": torch.from_numpy(labels[rows])}

    return epoch


def _ray_data(images: np.ndarray, labels: np.ndarray, scratch: Path) -> Epoch:
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.from_numpy([images]).zip(ray.data.from_numpy([labels]).rename_columns({"data": "label"})).write_parquet(
        str(scratch / "parquet")
    )
    data = ray.data.read_parquet(str(scratch / "parquet"))
    return lambda: data.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=SHUFFLE_BUFFER, drop_last=True)


def _hugging_face(images: np.ndarray, labels: np.ndarray, scratch: Path) -> Epoch:
    from datasets import Array3D, Features, Value, load_from_disk
    from datasets import Dataset as HFDataset

    features = Features({"image": Array3D((1, 28, 28), "uint8"), "label": Value("int64")})
    HFDataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(str(scratch / "hf"))
    data = load_from_disk(str(scratch / "hf")).with_format("torch")
    seeds = iter(range(10**6))
    return lambda: data.shuffle(seed=next(seeds)).iter(BATCH, drop_last_batch=True)


def _litdata(images: np.ndarray, labels: np.ndarray, scratch: Path) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(scratch / "litdata"), chunk_bytes="16MB")
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        writer.add_item(row, {"image": torch.from_numpy(image), "label": int(label)})
    writer.done()
    writer.merge()
    data = StreamingDataset(str(scratch / "litdata"), shuffle=True, drop_last=True)
    return lambda: StreamingDataLoader(data, batch_size=BATCH, num_workers=0)


def _webdataset(images: np.ndarray, labels: np.ndarray, scratch: Path) -> Epoch:
    import webdataset

    with webdataset.ShardWriter(str(scratch / "web-%02d.tar"), maxcount=10_000, verbose=0) as sink:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            sink.write({"__key__": f"{row:06d}", "npy": image, "cls": int(label)})
    shards = sorted(map(str, scratch.glob("web-*.tar")))

    def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.load(io.BytesIO(sample["npy"]), allow_pickle=False)), int(sample["cls"])

    def epoch() -> Iterator[dict[str, torch.Tensor]]:
        data = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(SHUFFLE_BUFFER).map(decode)
        for image, label in data.batched(BATCH, partial=False, collation_fn=torch.utils.data.default_collate):
            yield {"image": image, "label": label}

    return epoch


def _rows_per_second(epoch: Epoch) -> float:
    started, rows = time.perf_counter(), 0
    for batch in epoch():
        rows += len(next(iter(batch.values())))
    return rows / (time.perf_counter() - started)


def main() -> Table:
    from clusters.session import ray_cluster

    with tempfile.TemporaryDirectory() as folder, ray_cluster(None, cpus=2):
        scratch = Path(folder)
        data = Dataset.open(prepared(folder), "train")
        rows = data.take(np.arange(data.num_rows))
        images, labels = rows["image"], rows["label"]
        contenders: dict[str, Epoch] = {
            "raymill, full shuffle": _ours(data),
            "numpy, one array in memory": _numpy(images, labels),
            "Ray Data, local shuffle": _ray_data(images, labels, scratch),
            "Hugging Face datasets, full shuffle": _hugging_face(images, labels, scratch),
            "litdata, shuffle by chunk": _litdata(images, labels, scratch),
            "webdataset, shuffle buffer": _webdataset(images, labels, scratch),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, epoch in contenders.items():
                rates[name].append(_rows_per_second(epoch))
    ours = statistics.median(rates["raymill, full shuffle"])
    table = Table(f"loading {len(images):,} images, batches of {BATCH}", ["loader", "rows/s", "raymill is faster by"])
    for name, measured in rates.items():
        table.add(name, statistics.median(measured), ours / statistics.median(measured))
    return table


if __name__ == "__main__":
    print(main())
