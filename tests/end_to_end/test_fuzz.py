"""Every kind of file that the package reads, mutated: it is read, or refused in one sentence, and nothing else happens.

`FUZZ_EXAMPLES=2000 pytest -n 2 tests/end_to_end/test_fuzz.py` tries 2,000 cases of each kind, other ones each time, and
prints how many were read and refused.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from captioning.errors import USER_ERROR, UserError, explain
from tests.end_to_end.fuzz_targets import TARGETS, Target
from tests.helpers.fuzzing import mutated_bytes, mutated_json
from tests.helpers.running import ROOT

LONG_RUN = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
SECONDS = 30
"""The longest that a file of a few kilobytes may take, on a busy machine."""


def mutations(target: Target) -> st.SearchStrategy[bytes]:
    """The target's file with edits, of its bytes and of its values."""
    edited = mutated_bytes(target.file.read_bytes())
    return edited | mutated_json(target.value, lines=target.tree == "lines") if target.tree else edited


PARSERS = {
    "captioner/captioner.py": "model model.safetensors",
    "datasets/prepare/archives.py": "archive zip",
    "datasets/prepare/shards.py": "tar",
    "datasets/tables.py": "folder csv",
    "images/reading.py": "png",
    "loaders/feature_store.py": "store shard",
    "loaders/images.py": "shard features",
    "metrics/document_frequencies.py": "document frequencies",
    "models/encoders/region_files.py": "regions npy",
    "models/encoders/weights.py": "weights pth",
    "utils/parsing.py": "config",
}
"""The files that parse a format themselves, and a kind that they read."""

OWN_FILES = {
    "metrics/spice.py": "what its Java program has just written",
    "text/bpe.py": "what the library tokenizers has just trained",
    "training/wandb_process.py": "events of the run, in a process that cannot disturb it",
}

PARSING = re.compile(
    r"\b(?<!def )(json\.loads?|yaml\.\w*load\w*|np\.(load|fromfile|memmap)|torch\.load|load_file|safe_open|Image\.open"
    r"|tarfile\.open|zipfile\.ZipFile|csv\.(reader|DictReader)|pickle\.loads?|literal_eval)\("
)


def test_every_parser_is_attacked():
    sources = {
        str(path.relative_to(ROOT / "captioning")): path for path in (ROOT / "captioning").rglob("*.py")
    }
    found = {name for name, path in sources.items() if PARSING.search(path.read_text(encoding="utf-8"))}
    assert found == PARSERS.keys() | OWN_FILES.keys()
    assert set(PARSERS.values()) <= TARGETS.keys()


@pytest.mark.parametrize("kind", TARGETS)
def test_mutated_files_are_read_or_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    target = TARGETS[kind](tmp_path)
    target.read()  # the file that is mutated can be read
    counts: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=not LONG_RUN,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if LONG_RUN else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(content=mutations(target))
    def attack(content: bytes) -> None:
        target.file.write_bytes(content)
        target.repair()
        began = time.monotonic()
        try:
            target.read()
        except (UserError, OSError) as error:
            counts["refused"] += 1
            message, code = explain(error)
            assert code == USER_ERROR
            assert message and message.isprintable() and len(message) < 1100, message
        else:
            counts["read"] += 1
        assert time.monotonic() - began < SECONDS

    attack()
    if LONG_RUN:
        print(f"{kind}: {counts['read']} read, {counts['refused']} refused", file=sys.__stderr__)
    assert counts["read"] + counts["refused"] >= min(EXAMPLES, 20)
