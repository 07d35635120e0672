"""Data sets as large as COCO: read in little memory, and worker processes end an epoch with no copy of the lists."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from captioning.loaders.batches import TrainingBatches, bucketed_batches, loader
from captioning.loaders.captions import EncodedCaptions
from captioning.records import ImageRecord
from captioning.text.vocabulary import Vocabulary
from captioning.utils.packed_strings import PackedStrings
from tests.helpers.running import python

IMAGES, CAPTIONS = 123_287, 617_000

LOAD = """
import re, sys, time
from captioning.datasets import load
from captioning.datasets.coco import CocoConfig
began = time.process_time()
records = load(CocoConfig(root=sys.argv[1], images=None, val=None)).records
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # getrusage has the parent's as well
print(len(records), sum(len(record.captions) for record in records), time.process_time() - began, peak / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which Linux has")
def test_617_000_captions_load_in_seconds_and_little_memory(tmp_path):
    (tmp_path / "annotations").mkdir()
    with open(tmp_path / "annotations" / "captions_train2017.json", "w") as file:
        image = '{"license": 3, "file_name": "%012d.jpg", '
        image += '"coco_url": "http://images.cocodataset.org/train2017/%012d.jpg", '
        image += '"height": 480, "width": 640, "date_captured": "2013-11-14 16:28:13", "id": %d}'
        caption = (
            '{"image_id": %d, "id": %d, "caption": "A man with a red helmet on a small moped on road %d."}'
        )
        file.write('{"info": {}, "licenses": [], "images": [')
        file.write(", ".join(image % (3 * n, 3 * n, 3 * n) for n in range(IMAGES)) + '], "annotations": [')
        file.write(", ".join(caption % (3 * (n % IMAGES), n, n) for n in range(CAPTIONS)) + "]}")
    done = python(LOAD, str(tmp_path))
    assert done.code == 0, done.err
    images, captions, seconds, megabytes = map(float, done.out.split())
    assert (images, captions) == (IMAGES, CAPTIONS)
    assert megabytes < 1500
    assert seconds < 15  # of the processor: 3 to 5 on a quiet machine


class Nothing:
    def __call__(self, numbers, epoch):
        return torch.zeros(len(numbers))


def own_memory(pid: str) -> int:
    """Bytes that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which Linux has")
def test_workers_do_not_copy_what_they_read():
    """With a list of the same ids they do."""
    compact, plain = (np.array(own_memories_in_a_process(kind)) / 2**20 for kind in ("PackedStrings", "list"))
    assert max(compact) - compact[0] < 3
    assert max(plain) - max(compact) > 8, (compact, plain)


def own_memories_in_a_process(kind: str) -> list[int]:
    """In a fresh process, whose memory other tests have not filled."""
    code = f"from tests.end_to_end.test_coco_size import *\nprint(json.dumps(own_memories({kind})))"
    done = python(code)
    assert done.code == 0, done.err
    return json.loads(done.out)


def own_memories(kind) -> list[int]:
    """Of a worker, after each batch of an epoch."""
    records = [ImageRecord(f"{number:0200d}", "", ("a dog",), "train") for number in range(60_000)]
    vocabulary = Vocabulary.build(["a dog"], min_count=1)
    captions = EncodedCaptions.from_records(records, vocabulary, max_length=5)
    ids = kind(record.image_id for record in records)
    dataset = TrainingBatches(ids, captions, Nothing(), captions_per_image=1, pad=0, seed=0, epoch=0)
    batches = bucketed_batches(captions, size=1000, seed=0, epoch=0)
    sizes = []
    before = set(children())
    for batch in loader(dataset, batches, workers=1, pin_memory=False):
        assert len(batch.image_ids) == 1000
        (worker,) = set(children()) - before
        sizes.append(own_memory(worker))
    return sizes


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_packed_sequence_gives_back_what_was_put_in():
    values = [0, -3, 10**15, "", "=", "7", "é\udce4/\n", json.dumps({"a": 1})]
    packed = PackedStrings(values)
    assert list(packed) == values and len(packed) == len(values)
    assert [type(each) for each in packed] == [type(each) for each in values]
    for number in (-1, len(values)):
        with pytest.raises(IndexError, match=f"index {number} is out of range: there are 8 elements"):
            packed[number]
    assert packed[np.int64(2)] == 10**15
