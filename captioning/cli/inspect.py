"""Looks inside trained decoders: gates and attention word by word, gradients by distance. Computes neither itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioning.captioner.captioner import Captioner
    from captioning.config import ExperimentConfig
    from captioning.inspection.gradients import Probe
    from captioning.models.decoders import Decoder, DecoderConfig
    from captioning.records import ImageRecord
    from captioning.tensors import Features

EXAMPLES = """\
examples, what happens inside while a photo is captioned (RUN: a run's folder or a model folder):
  captioning inspect runs/shapes --image photo.png             the caption that the model's search finds
  captioning inspect MODEL --image photo.jpg --text "a dog on the grass"   a caption of yours, read by it
  captioning inspect MODEL --image photo.jpg --beam 1 --out see/   another search, another folder

examples, how far back the loss of a word is felt (RUN: a run's folder; its data set gives the captions):
  captioning inspect runs/shapes --gradients                   one run, beside untrained relatives
  captioning inspect runs/*_rnn_* runs/*_lstm_* --gradients    kinds and seeds that were trained alike
  captioning inspect runs/shapes --gradients --captions 2 --seeds 1   a quick look

--image writes NAME.trace.png (words across: attention over the photo, gates, size of the state), .trace.json
(log-probabilities, gates' means and saturation, half-life of the memory) and .trace.npz (every gate and state).
--gradients writes gradients.png and gradients.json and prints how fast gradients decay with distance: for RNN,
GRU, LSTM and Transformer of the run's sizes as training begins, and for the runs as it left them. Runs of one
decoder are seeds of one kind; all must have the same data set and vocabulary.
exit code: 0 done; 2 not, with the reason on stderr"""


class Trained(NamedTuple):
    """A run that is looked at."""

    name: str
    config: ExperimentConfig
    captioner: Captioner


def parse_arguments() -> argparse.Namespace:
    from captioning.cli.options import add_allow_code, add_search, positive

    parser = argparse.ArgumentParser(
        description="Look inside a trained decoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN --image FILE [--text CAPTION] [options]\n"
        "       %(prog)s RUN [RUN ...] --gradients [options]",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder (runs/NAME); for --image also a model folder")
    add("--image", metavar="FILE", help="trace the caption of this photo")
    add("--text", metavar="CAPTION", help="trace this caption instead of the one that the search finds")
    add("--gradients", action="store_true", help="gradient norms by distance")
    add("--out", metavar="DIR", help="where files go (default: RUN/inspect; of a model folder: ./inspect)")
    add_search(parser, default="the model's")
    add("--captions", type=positive, metavar="N", help="captions to take gradients of (default: 8)")
    add("--losses", type=positive, metavar="N", help="words of each whose loss is looked at (default: 16)")
    add("--seeds", type=positive, metavar="N", help="seeds of each kind as training begins (default: 3)")
    add("--split", metavar="NAME", help="whose captions (default: val)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU where there is one")
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    if bool(args.image) == args.gradients:
        parser.error("give --image FILE or --gradients, one of them")
    searches = ("search", "search_option", "beam", "max_length", "length_rule")
    mine, others = (
        ("text", *searches),
        ("captions", "losses", "seeds", "split"),
    )
    mode = "--gradients" if args.gradients else "--image"
    if wrong := [name for name in (mine if args.gradients else others) if getattr(args, name)]:
        parser.error(f"--{wrong[0].replace('_', '-')} has no meaning with {mode}")
    if args.image and len(args.runs) > 1:
        parser.error("--image takes one RUN")
    if args.text is not None and any(getattr(args, name) for name in searches):
        parser.error("--text is read as it is; a search's options have no meaning with it")
    return args


def main() -> None:
    args = parse_arguments()
    if args.gradients:
        inspect_gradients(args)
    else:
        inspect_image(args)


def inspect_image(args: argparse.Namespace) -> None:
    """Trace one caption of one photo."""
    # after the arguments are parsed: torch takes seconds
    from captioning.captioner.captioner import Captioner
    from captioning.cli.options import search_of
    from captioning.experiment import choose_device
    from captioning.images.preprocessing import preprocess
    from captioning.images.reading import load_image
    from captioning.inspection.trace import NO_GATES, save_arrays, summary, trace_search, trace_text
    from captioning.inspection.trace_figure import draw_trace
    from captioning.utils.files import write_json

    run = Path(args.runs[0])
    folder = model_folder(run)
    out = output_folder(args, run)
    image = load_image(args.image)
    captioner = Captioner.open(folder, device=choose_device(args.device), allow_code=args.allow_code)
    preprocessing = captioner.config.preprocessing
    pixels = preprocess(image, preprocessing).to(next(captioner.parameters()).device)
    if args.text is not None:
        trace = trace_text(captioner, pixels, args.text)
    else:
        trace = trace_search(
            captioner, pixels, config=search_of(captioner, args, n_best=1), image_id=Path(args.image).name
        )
    told = summary(trace)
    base = out / Path(args.image).stem
    paths = {ending: str(base.with_name(f"{base.name}.trace.{ending}")) for ending in ("png", "json", "npz")}
    decoder = captioner.config.decoder
    save_arrays(trace, paths["npz"])
    draw_trace(
        trace,
        image,
        paths["png"],
        preprocessing=preprocessing,
        title=f"[{run}, {decoder.kind}]   {told['caption']}",
    )
    where = {
        "image": args.image,
        "model": str(folder),
        "decoder": decoder.kind,
        "given": args.text is not None,
    }
    write_json(paths["json"], {**where, **told, "files": paths})
    print(told["caption"])
    print(
        f"log-probability {told['logprob']:.3f}, a word's probability {told['confidence']:.3f} (geometric mean)"
    )
    for number, layer in enumerate(told["layers"], 1):
        print(f"layer {number}: {describe_layer(layer)}")
    if not told["layers"]:
        print(NO_GATES)
    print("\n".join(paths.values()))


def describe_layer(layer: dict[str, Any]) -> str:
    """A layer's gates and memory in a line."""
    parts = [f"{layer['units']} units"]
    parts += [
        f"{name} gate {sum(gate['mean']) / len(gate['mean']):.2f} on average "
        f"({100 * gate['above_0.9']:.0f} % above .9, {100 * gate['below_0.1']:.0f} % below .1)"
        for name, gate in layer["gates"].items()
    ]
    if "half_life" in layer:
        median = layer["half_life"]["words"]["median"]
        parts.append(
            "its median unit never fades" if median is None else f"half a memory in {median:.1f} words"
        )
    return "; ".join(parts)


def inspect_gradients(args: argparse.Namespace) -> None:
    """Gradients by distance, of the runs given and of fresh decoders of their sizes."""
    # after the arguments are parsed: torch takes seconds
    from tqdm import tqdm

    from captioning import datasets
    from captioning.inspection import gradients
    from captioning.inspection.gradients_figure import draw_gradients
    from captioning.text.vocabulary import Vocabulary
    from captioning.utils.files import write_json

    folders = [Path(name) for name in args.runs]
    out = output_folder(args, folders[0])
    runs = open_runs(folders, args.device, allow_code=args.allow_code)
    first = runs[0]
    records = datasets.of_split(datasets.load(first.config.dataset), args.split or "val")
    chosen = some(records, args.captions or 8)
    named = labels(runs)
    limits = [each.captioner.config.decoder.max_positions for each in runs]
    most = min((limit for limit in limits if limit is not None), default=None)
    captions = encode(chosen, first.captioner.vocabulary, most)
    longest = max(len(words) for words in captions) - 1
    seeds = range(args.seeds or 3)
    kinds = gradients.relatives(first.captioner.config.decoder, max_positions=longest)
    kinds |= {name: each.captioner.config.decoder for name, each in named}
    features = [see(each, chosen) for each in runs]
    stages: dict[str, dict[str, list[Probe]]] = {"initialisation": {}, "trained": {}}
    sizes: dict[str, int] = {}
    total = (len(kinds) * len(seeds) + len(runs)) * len(captions)
    with tqdm(total=total, desc="gradients", unit="caption", leave=False, disable=None, delay=2) as progress:

        def probe(decoder: Decoder, seen: Features) -> Probe:
            return gradients.probe(
                decoder, seen, captions, end=Vocabulary.end, count=args.losses or 16, told=progress.update
            )

        for name, config in kinds.items():
            for seed in seeds:
                decoder = gradients.fresh(
                    config,
                    channels=first.captioner.encoder.channels,
                    vocabulary_size=len(first.captioner.vocabulary),
                    seed=seed,
                ).to(features[0].regions.device)
                sizes[name] = sum(parameter.numel() for parameter in decoder.parameters())
                stages["initialisation"].setdefault(name, []).append(probe(decoder, features[0]))
        for (name, each), seen in zip(named, features, strict=True):
            stages["trained"].setdefault(name, []).append(probe(each.captioner.decoder, seen))
    common = stages["trained"][named[0][0]][0].common
    told = {stage: gradients.report(each) for stage, each in stages.items()}
    verdicts = {stage: gradients.verdict(each, common) for stage, each in told.items()}
    paths = {ending: str(out / f"gradients.{ending}") for ending in ("png", "json")}
    dataset = first.config.dataset.kind
    report = {
        "runs": [{"run": each.name, "decoder": name} for name, each in named],
        "dataset": dataset,
        "captions": [
            {"image_id": record.image_id, "words": len(words) - 1}
            for record, words in zip(chosen, captions, strict=True)
        ],
        "common": common,
        "vanished": gradients.VANISHED,
        "parameters": sizes,
        **told,
        "verdict": verdicts,
        "files": paths,
    }
    title = f"Gradients by distance: {len(captions)} captions of {dataset}, {longest} words"
    draw_gradients(report, paths["png"], title=title)
    write_json(paths["json"], report)
    print(f"{title}; {', '.join(f'{name} {size:,}' for name, size in sizes.items())} parameters\n")
    print(gradients.table(told))
    print()
    for stage, verdict in verdicts.items():
        if verdict:
            print(f"{stage}: the vanishing gradient is in the RNN and not in the LSTM? {verdict['answer']}.")
            print(f"  {verdict['sentence']}")
    print("\n".join(paths.values()))


def model_folder(run: Path) -> Path:
    """The model's folder: `run`, or `run/model`. Raises UserError where neither is one."""
    from captioning.errors import UserError

    if (run / "manifest.json").is_file():
        return run
    if (run / "model").is_dir() or (run / ".model.old").is_dir():  # the latter: see `files.recover_folder`
        return run / "model"
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give a run (runs/NAME) or a model folder")
    raise UserError(f"{run}: holds no model (no manifest.json, no model/); give a finished run")


def output_folder(args: argparse.Namespace, run: Path) -> Path:
    """Where files go. Raises UserError where it cannot be written to: now, and not after the work."""
    from captioning.errors import UserError

    if args.out:
        out = Path(args.out)
    else:
        out = run / "inspect" if (run / "model").is_dir() else Path("inspect")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a folder ({error.strerror}); give another --out") from None
    return out


def open_runs(folders: Sequence[Path], device: str, *, allow_code: bool = False) -> list[Trained]:
    """Runs with their models. Raises UserError where one is none, or differs in what must be the same."""
    from captioning.captioner.captioner import Captioner
    from captioning.config import read_config
    from captioning.errors import UserError
    from captioning.experiment import choose_device

    runs: list[Trained] = []
    for folder in folders:
        model = model_folder(folder)
        if model == folder:
            raise UserError(f"{folder}: a model's folder, which knows no captions; give the run's folder")
        config = read_config(folder / "config.yaml", allow_code=allow_code)
        captioner = Captioner.open(model, device=choose_device(device), allow_code=allow_code)
        runs.append(Trained(str(folder), config, captioner))
        first = runs[0]
        if config.dataset != first.config.dataset:
            raise UserError(f"{folder}: another data set than {first.name}; give runs of one data set")
        if runs[-1].captioner.vocabulary.words != first.captioner.vocabulary.words:
            raise UserError(f"{folder}: another vocabulary than {first.name}; give runs of one vocabulary")
    return runs


def labels(runs: Sequence[Trained]) -> list[tuple[str, Trained]]:
    """Each run with what its decoder is called; runs of one config share a label, others never do."""
    from captioning.inspection.gradients import label

    given: dict[str, DecoderConfig] = {}
    named = []
    for run in runs:
        config = run.captioner.config.decoder
        name = label(config)
        if given.setdefault(name, config) != config:
            known = [other for other, each in given.items() if each == config]
            name = known[0] if known else f"{name} of {Path(run.name).name}"
            given[name] = config
        named.append((name, run))
    return named


def some(records: list[ImageRecord], count: int) -> list[ImageRecord]:
    """`count` records from all over the list, the same ones each time."""
    count = min(count, len(records))
    return [records[number * len(records) // count] for number in range(count)]


def encode(records: Sequence[ImageRecord], vocabulary: Any, longest: int | None) -> list[list[int]]:
    """A caption of each image as ids: the first image's first, the second's second, and so on."""
    from captioning.text.tokenizer import tokenize

    found = []
    for number, record in enumerate(records):
        tokens = tokenize(record.captions[number % len(record.captions)])
        found.append(vocabulary.encode(tokens, max_length=len(tokens) if longest is None else longest - 1))
    return found


def see(run: Trained, records: Sequence[ImageRecord]) -> Features:
    """What the run's encoder sees in the images."""
    import torch

    from captioning.images.preprocessing import preprocess
    from captioning.images.reading import load_image

    preprocessing = run.captioner.config.preprocessing
    pixels = torch.stack([preprocess(load_image(record.path), preprocessing) for record in records])
    with torch.no_grad():
        return run.captioner.features(pixels.to(next(run.captioner.parameters()).device))
