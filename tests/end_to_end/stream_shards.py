"""Stream a million tiny records from shards, as training does: does memory stay flat, and how fast is it?

    python tests/stream_shards.py
    python tests/stream_shards.py --records 100000 --workers 2 --pixels

Writes 20,000 records with `shards.write`, multiplies the tars with other ids, reads them all in one epoch of training
batches in their random order, and prints resident memory on the way; then the same 20,000 images from plain files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from captioning import datasets
from captioning.datasets.prepare.shards import write
from captioning.datasets.shards import ShardsConfig
from captioning.images.preprocessing import Preprocessing
from captioning.loaders.batches import TrainingBatches, bucketed_batches, loader
from captioning.loaders.captions import EncodedCaptions
from captioning.loaders.images import Images, PixelImages
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.utils.file_slice import read_bytes
from captioning.utils.files import sha256, write_json
from captioning.utils.packed_strings import PackedStrings

WRITTEN, SIDE = 20_000, 16


def draw(folder: Path, count: int) -> list[ImageRecord]:
    """Tiny images in plain files."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    records = []
    for number in range(count):
        path = folder / f"{number}.png"
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)
        records.append(
            ImageRecord(100_000 + number, str(path), (f"a record of number {number % 997}",), "train")
        )
    return records


def multiply(root: Path, times: int) -> None:
    """So many copies of each shard, every one with ids of its own."""
    index = json.loads((root / "index.json").read_text())
    first = list(index["shards"])
    for copy in range(1, times):
        for shard in first:
            tar, listing = (root / shard["file"]), (root / shard["listing"])
            new = f"copy{copy:03d}-{tar.stem}"
            shutil.copyfile(tar, root / f"{new}.tar")
            lines = listing.read_text().replace('{"id": ', f'{{"id": {copy}')  # another number, as text
            (root / f"{new}.jsonl").write_text(lines)
            digest = sha256(root / f"{new}.jsonl")
            index["shards"].append(
                shard | {"file": f"{new}.tar", "listing": f"{new}.jsonl", "listing_sha256": digest}
            )
    write_json(root / "index.json", index)


class Content:
    """The bytes of images, not decoded: what reading alone costs."""

    def __init__(self, paths: list[str]):
        self.paths = PackedStrings(paths)

    def __call__(self, numbers: np.ndarray, epoch: int) -> torch.Tensor:
        return torch.tensor([len(read_bytes(str(self.paths[number]))) for number in numbers])


def memory(pid: int | str = "self") -> tuple[float, float]:
    """MB resident, and MB that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return found["Rss"] / 1024, (found["Private_Clean"] + found["Private_Dirty"]) / 1024


def stream(records: list[ImageRecord], images: Images, *, workers: int, show: int) -> str:
    """Read one epoch; says how fast, and for how much work of this process, for the machine may be shared."""
    vocabulary = Vocabulary.build((record.captions[0] for record in records[:1000]), min_count=1)
    captions = EncodedCaptions.from_records(records, vocabulary, max_length=20)
    ids = PackedStrings(record.image_id for record in records)
    dataset = TrainingBatches(ids, captions, images, captions_per_image=1, pad=0, seed=0, epoch=0)
    batches = loader(
        dataset, bucketed_batches(captions, size=100, seed=0, epoch=0), workers=workers, pin_memory=False
    )
    began, worked, done = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        done += len(batch.image_ids)
        if done % show < 100:
            resident, own = memory()
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split() if workers else []
            theirs = [f"{memory(child)[1]:.1f}" for child in children]
            print(
                f"{done:>9,} images {time.perf_counter() - began:7.1f} s   "
                f"resident {resident:8.1f} MB, own {own:8.1f} MB"
                + (f"   workers' own {', '.join(theirs)} MB" if theirs else ""),
                flush=True,
            )
    took, worked = time.perf_counter() - began, time.process_time() - worked
    return f"{done / took:,.0f} images/s, {done / worked:,.0f} a CPU second"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000, help="a multiple of 20,000")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pixels", action="store_true", help="decode the images, not only read them")
    args = parser.parse_args()

    def images(records: list[ImageRecord]) -> Images:
        paths = [record.path for record in records]
        if not args.pixels:
            return Content(paths)
        return PixelImages(paths, Preprocessing(size=SIDE), augmentation=None, seed=0)

    with tempfile.TemporaryDirectory() as folder:
        plain = draw(Path(folder, "images"), WRITTEN)
        began = time.process_time()
        payload = lambda record: ("png", Path(record.path).read_bytes())  # noqa: E731
        root = Path(folder, "shards")
        write(plain, root, payload, holds={"kind": "images"})
        print(f"written: {WRITTEN / (time.process_time() - began):,.0f} records a CPU second", flush=True)
        multiply(root, args.records // WRITTEN)
        size = sum(path.stat().st_size for path in root.iterdir())
        began = time.process_time()
        records = datasets.load(ShardsConfig(root=str(root))).records
        took = time.process_time() - began
        print(
            f"{len(records):,} records in {size / 1e9:.2f} GB listed in {took:.1f} CPU s; "
            f"resident {memory()[0]:.0f} MB",
            flush=True,
        )
        rate = stream(records, images(records), workers=args.workers, show=max(1, len(records) // 10))
        again = stream(plain, images(plain), workers=args.workers, show=WRITTEN)
        print(f"shards {rate}; plain folder {again}")


if __name__ == "__main__":
    main()
