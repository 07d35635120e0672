"""`captioning train`: train a model from a config."""

from __future__ import annotations

import argparse

from captioning.utils.paths import shipped_configs
from captioning.utils.progress import print_line


def parse_arguments() -> argparse.Namespace:
    configs = [path.stem for path in sorted(shipped_configs().glob("*.yaml")) if "study" not in path.stem]
    parser = argparse.ArgumentParser(
        description="Train a captioning model. runs/NAME/model is the best epoch by the validation metric.",
        epilog=f"""examples:
  captioning train shapes
  captioning train flickr8k_lstm dataset.root=data/flickr8k training.epochs=10
  captioning train flickr8k_lstm name=second seed=1 tracking.mode=online
  captioning train my_config.yaml
  captioning train runs/second/config.yaml --resume
  torchrun --standalone --nproc-per-node 4 -m captioning train flickr8k_lstm

configs that come with the package; the first lines of each file give its time and expected scores:
  {chr(10).join(configs).replace(chr(10), chr(10) + "  ")}

Any setting of the config can be overridden as section.key=value; its value is YAML.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="the name of a config below, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    parser.add_argument("--resume", action="store_true", help="continue from the run's last checkpoint")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_arguments()
    # imported after the arguments are parsed: importing torch takes seconds
    from captioning.config import read_config
    from captioning.experiment import Experiment
    from captioning.metrics import get_metric
    from captioning.ops.cpu_kernels import keep_freed_memory

    keep_freed_memory()
    experiment = Experiment(read_config(args.config, args.overrides, allow_code=True), log=print_line)
    progress = experiment.train(resume=args.resume)
    metric = get_metric((experiment.config.training, *experiment.config.phases)[progress.phase].metric)
    print(
        f"best {metric.name} {metric.scale * (progress.best or 0):.1f} at epoch "
        f"{progress.best_epoch}, after {progress.seconds / 60:.1f} minutes\n"
        f"model: {experiment.folder / 'model'}   numbers: {experiment.folder / 'metrics.jsonl'}"
    )
    experiment.world.leave()
    return 0
