"""`captioning features`: encode images once and store their features, or verify a feature store."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from captioning.cli.options import encoder_of, positive, share
from captioning.errors import UserError

if TYPE_CHECKING:
    from captioning.loaders.feature_store import FeatureStore

EXAMPLES = """examples:
  captioning features configs/flickr8k_lstm.yaml
      the store that training with this config uses, for all splits (training also creates it if it is missing)
  captioning features configs/flickr8k_lstm.yaml dataset.root=data/flickr8k features.dtype=float32
  captioning features --images photos --encoder mobilenet_v2 --out features/photos
      all images below a folder; an image's id is its path below the folder
  captioning features --images photos --encoder kind=timm,name=tf_efficientnet_lite2,layer=before_head --out f
      any encoder that a config can have, with its own preprocessing
  captioning features --verify features/photos
      read all features and compare them with their checksums

Size and time are printed before the first image. Fewer bytes: --dtype float16 (the default), --grid 5 (regions pooled
to 5 x 5), and of timm's networks layer=before_head, which has fewer channels for some.

An interrupted build is continued, and new images are added. Images that cannot be read are listed in skipped.csv
in the store's folder."""


def main() -> int:
    args = parse_arguments()
    if args.verify:
        from captioning.loaders.feature_store import FeatureStore

        store = FeatureStore.open(args.verify)
        store.verify()
        print(f"verified: {_summary(store)}")
        return 0
    started = time.monotonic()
    store = _of_config(args) if args.config else _of_folder(args)
    print(f"{_summary(store)}; took {time.monotonic() - started:.0f} s")
    if store.skipped:
        print(
            f"{len(store.skipped)} images left out, listed in {store.folder / 'skipped.csv'}", file=sys.stderr
        )
    if store.noted:
        image_id, note = store.noted[0]
        print(f"{len(store.noted)} images encoded with a note (first {image_id}: {note})", file=sys.stderr)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Encode images once and store the features in memory-mapped files, or verify such a store.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", nargs="?", help="a YAML file of configs/, or the config.yaml of a run")
    add("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    add("--verify", metavar="FOLDER", help="verify this store")
    folder = parser.add_argument_group("a folder of images, without a config")
    add = folder.add_argument
    add("--images", metavar="DIR", help="the folder of images")
    add(
        "--encoder",
        metavar="NAME|KEY=VALUE,...",
        help="a CNN by its name in torchvision (mobilenet_v2, resnet101, ...), or the settings of a config's encoder "
        "section (kind=timm,name=vit_small_patch14_dinov2)",
    )
    add("--weights", metavar="WHAT", help="default (downloaded), none, or a .safetensors / .pth file")
    add("--out", metavar="FOLDER", help="the store")
    add("--size", type=positive, metavar="PIXELS", help="side of the square that images are resized to")
    add("--resize", metavar="HOW", help="stretch, short_side (crops the sides) or long_side (adds margins)")
    add("--grid", type=positive, metavar="CELLS", help="average the regions to a grid of this many a side")
    add("--dtype", choices=("float16", "float32"), help="precision")
    add("--flip", action="store_true", default=None, help="also store the mirrored image")
    add("--batch-size", type=positive, metavar="N", help="images encoded at once")
    add("--workers", type=int, metavar="N", help="processes that load images (0: load in the main process)")
    add("--max-bad", type=share, metavar="SHARE", help="largest share of images that may be unreadable")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_intermixed_args()
    given = [name for name in ("config", "images", "verify") if getattr(args, name)]
    if len(given) != 1:
        parser.error("give one of: a config, --images DIR, --verify FOLDER")
    if args.images and not (args.encoder and args.out):
        parser.error("--images needs --encoder and --out")
    return args


def _of_config(args: argparse.Namespace) -> FeatureStore:
    """The store that training with the config uses."""
    import torch

    from captioning.config import read_config
    from captioning.experiment import Experiment
    from captioning.models import encoders

    experiment = Experiment(read_config(args.config, args.overrides, allow_code=True))
    torch.manual_seed(experiment.config.seed)  # as in training, in case the weights are random
    encoder = encoders.build(experiment.config.encoder).to(experiment.device)
    if not encoder.frozen:
        raise UserError(
            f"{args.config}: the encoder is trained, so its features cannot be stored; freeze it in the config"
        )
    return experiment.feature_store(encoder, experiment.load_dataset().records)


def _of_folder(args: argparse.Namespace) -> FeatureStore:
    """A store of all images below a folder."""
    from captioning.images.preprocessing import Preprocessing
    from captioning.loaders.feature_writer import build_store
    from captioning.models import encoders
    from captioning.records import ImageRecord
    from captioning.utils.paths import find_images
    from captioning.utils.validation import validate

    if not os.path.isdir(args.images):
        raise UserError(f"{args.images}: no such folder of images")
    files = find_images([args.images])
    if not files:
        raise UserError(f"{args.images}: contains no images")
    config = encoder_of(args.encoder, **_given(weights=args.weights, grid=args.grid))
    values = asdict(config.default_preprocessing()) | _given(size=args.size, resize=args.resize)
    preprocessing: Preprocessing = validate(Preprocessing, values, where="", section="preprocessing")
    encoder = encoders.build(config)
    if not encoder.frozen:
        raise UserError("--encoder: this encoder is trained, so its features cannot be stored")
    return build_store(
        [ImageRecord(file.image_id, file.path, (), "") for file in files],
        encoder,
        preprocessing,
        args.out,
        **_given(
            dtype=args.dtype,
            flip=args.flip,
            batch_size=args.batch_size,
            workers=args.workers,
            max_bad=args.max_bad,
        ),
    )


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user set; the defaults of the others are those of the functions called."""
    return {name: value for name, value in options.items() if value is not None}


def _summary(store: FeatureStore) -> str:
    regions, channels = store.shape
    size = sum(path.stat().st_size for path in store.folder.glob("*.npy")) / 1e9
    views = "" if store.views == 1 else ", as they are and mirrored"
    return (
        f"{len(store):,} images{views}, {regions} regions of {channels} channels in {store.dtype}, "
        f"{size:.2f} GB, fingerprint {store.fingerprint}: {store.folder}"
    )
