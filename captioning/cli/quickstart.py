"""Command line: the whole way once, on drawn scenes: draw, train, caption, evaluate. Downloads nothing."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from captioning.errors import UserError

EPOCHS = 7
"""Of the config's 14: the others cost as many minutes again and give 12 points of BLEU-4 (RESULTS.md)."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Draw the `shapes` data, train a captioning model on it, caption and score the test images.",
        epilog="examples:\n  captioning quickstart\n  captioning quickstart name=second seed=1\n"
        f"  captioning quickstart name=longer training.epochs=14    as configs/shapes.yaml has it; here: {EPOCHS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings to change, as for train.py"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()

    began = time.time()
    from captioning.config import read_config  # not before the arguments are read: it imports torch
    from captioning.metrics.coco_names import read_scores
    from captioning.utils.files import read_json
    from captioning.utils.paths import shipped_configs

    config = shipped_configs() / "shapes.yaml"
    overrides = [f"training.epochs={EPOCHS}", *options.overrides]  # the last of a key counts
    folder = read_config(config, overrides).folder
    splits = ("test", "test_unseen")
    if not (folder / "model").exists():
        _tool("train", str(config), *overrides)
    _tool("evaluate", str(folder), *(f"--split={split}" for split in splits))
    first = read_json(folder / "predictions_test.json")[:4]
    print("\nthe first test images:")
    for entry in first:
        print(f"  {entry['image_id']}: {entry['caption']}")
    print("\n              BLEU-4   CIDEr-D   ROUGE-L")
    for split in splits:
        scores = read_scores(folder / f"scores_{split}.json")
        row = "  ".join(f"{100 * scores[name]:7.1f}" for name in ("BLEU-4", "CIDEr-D", "ROUGE-L"))
        print(f"{split:12s}{row}")
    print(f"\n{(time.time() - began) / 60:.1f} minutes. In {folder}:")
    print("  model/           the trained model: captioning caption IMAGE --model", folder / "model")
    print("  metrics.jsonl    every number of the training;  train.log  what you saw")
    print(
        "  predictions_*.json, scores_*.json   captions and scores of the test images, with their signature"
    )
    return 0


def _tool(name: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "captioning", name, *arguments])
    if done.returncode:
        raise UserError(f"captioning {name} stopped with code {done.returncode}; its message stands above")
