"""A study: decoders x seeds of one experiment, made equally large, run one or some at a time. Trains and scores by
the tools, each in a process of its own; knows files and settings, no batch and no metric."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from captioning import datasets
from captioning.config import ExperimentConfig, parse, read_config
from captioning.datasets import ShapesConfig, of_split
from captioning.errors import UserError
from captioning.models import cost, encoders
from captioning.models.decoders import DecoderConfig
from captioning.text.tokenizer import tokenize
from captioning.text.vocabulary import Vocabulary
from captioning.training.checkpoint import latest
from captioning.utils.files import read_json, read_text, recover_folder, sha256, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
TOO_FAST = "lower training.learning_rate"
"""What a run that diverged says: of a rate that is only tried, an answer; of any other run, an error."""

Tool = Callable[..., tuple[int, str]]
"""(tool's name, arguments...) -> exit code and what it said on stderr."""


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """One system: its decoder's section, and what else it wants otherwise than the base experiment."""

    __pydantic_config__ = {"extra": "forbid"}
    decoder: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    label: str | None = None  # in the report


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """What is made equal, and to what: a number, or the name of a decoder that stays as it is.

    `parameters` are the decoder's; `flops` those of its products in training on one caption of the training
    split's mean length, its share of the image's regions included (`analysis.cost`). One that comes out further
    than `tolerance` from the target is an error.
    """

    __pydantic_config__ = {"extra": "forbid"}
    by: Literal["parameters", "flops"] = "parameters"
    target: int | str
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study's YAML.

    base: an experiment's YAML; `overrides` change it for all systems alike.
    learning_rates: tried by every decoder alike with `search_epochs` epochs and the first seed; the best by the
        validation metric is used for all of its seeds. None: the experiment's own.
    lengths: of `shapes` captions, in words; every decoder and seed is then trained on each, and
        `search_length` is where rates are tried. `length_epochs` gives some lengths epochs of their own, the same
        for all systems: what is compared is one length's systems, never one length with another.
    split: what is captioned and reported on.
    """

    __pydantic_config__ = {"extra": "forbid"}
    name: str
    base: str
    decoders: dict[str, SystemConfig]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    runs: str = "runs"
    overrides: dict[str, Any] = field(default_factory=dict)
    match: MatchConfig | None = None
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    search_epochs: Annotated[int, Field(ge=1)] = 2
    split: str = "test"
    lengths: tuple[int, ...] = ()
    search_length: int | None = None
    length_epochs: dict[int, Annotated[int, Field(ge=1)]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


class Run(NamedTuple):
    """One training to be done: a system, a seed and, in a length study, a length in words."""

    system: str
    seed: int
    words: int | None
    config: ExperimentConfig


class Size(NamedTuple):
    """What matching has given for one system."""

    decoder: dict[str, Any]  # the whole section, as it is trained
    parameters: int
    flops: int  # of training on one caption: forward and backward
    factor: float  # by which its width was scaled


class Shape(NamedTuple):
    """What sizes are computed for."""

    channels: int
    regions: int
    vocabulary: int
    words: int  # of a caption, its end included: the mean, rounded
    captions: int  # of an image


class Plan(NamedTuple):
    """A study, solved: sizes and, but for learning rates yet to be found, every run."""

    study: StudyConfig
    shape: Shape
    sizes: dict[str, Size]
    trials: list[tuple[str, float, Run]]  # system, rate
    runs: list[Run]


def read_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> StudyConfig:
    """The study of a YAML file. `base` is looked for beside it, then from here.

    Args:
        overrides: `section.key=value` for the base experiment, for all systems alike.

    Raises:
        UserError: broken YAML, an unknown key or a wrong value.
    """
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: broken YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values at the root, found {type(values).__name__}")
    try:
        study = TypeAdapter(StudyConfig).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None
    if len(study.decoders) < 1 or len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"{path}: a study has a decoder at least, and each seed once")
    for name in (study.name, *study.decoders):
        if not name or set(name) & set("/\\ \n") or name.startswith("."):
            raise UserError(f"{path}: {name!r} is to be a folder's name; use letters, digits, _ and -")
    if study.match and isinstance(study.match.target, str) and study.match.target not in study.decoders:
        there = ", ".join(study.decoders)
        raise UserError(f"{path}: match.target {study.match.target!r} is none of its decoders ({there})")
    if study.lengths and study.search_length is None:
        study = replace(study, search_length=sorted(study.lengths)[len(study.lengths) // 2])
    beside = Path(path).parent / study.base
    changed = study.overrides
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"{override!r}: an override is written section.key=value")
        value = yaml.safe_load(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        changed = merged(changed, value)
    return replace(study, base=str(beside if beside.is_file() else study.base), overrides=changed)


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = [each.name for config in (StudyConfig, SystemConfig, MatchConfig) for each in fields(config)]
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
        return f"{place}: unknown key; " + (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        )
    if problem["type"] == "missing":
        return f"{place}: missing"
    return f"{place}: {problem['msg'][0].lower() + problem['msg'][1:]}, got {problem['input']!r}"


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section; a section of another `kind` is replaced whole."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other = "kind" in value and value["kind"] != old.get("kind")
            result[key] = dict(value) if other else merged(old, value)
        else:
            result[key] = value
    return result


def _batches(config: ExperimentConfig) -> tuple[int | None, ...]:
    return config.training.batch_size, config.training.captions_per_image, config.training.max_tokens


def plan(study: StudyConfig) -> Plan:
    """Solve the sizes and lay out the runs. Reads the training captions; draws `shapes` where they are not there.

    Raises:
        UserError: a setting is wrong, or a decoder cannot be made as large as the others.
    """
    base = read_config(study.base, allow_code=True).as_json()
    plain = {name: _experiment(study, base, name, None) for name in study.decoders}
    first = next(iter(plain.values()))
    for name, config in plain.items():
        for part in ("dataset", "encoder", "preprocessing", "features", "vocabulary", "search"):
            if getattr(config, part) != getattr(first, part):
                raise UserError(
                    f"study {study.name}: {name} has another {part} than the rest; systems are compared on the same"
                )
        if _batches(config) != _batches(first):
            raise UserError(f"study {study.name}: {name} has other batches than the rest")
    if study.lengths and not isinstance(first.dataset, ShapesConfig):
        raise UserError(
            f"study {study.name}: lengths are of the data set shapes, not of {first.dataset.kind}"
        )
    shape = _shape(_at_length(first, study.search_length))
    sizes = _solve(study, plain, shape)
    for name, size in sizes.items():
        plain[name] = _experiment(study, base, name, size.decoder)
    runs = []
    for seed in study.seeds:
        for words in study.lengths or (None,):
            for name, config in plain.items():
                place = f"{name}-words{words}-seed{seed}" if words else f"{name}-seed{seed}"
                changed = replace(_at_length(config, words), name=place, seed=seed)
                if words is not None and words in study.length_epochs:
                    epochs = study.length_epochs[words]
                    training = replace(
                        changed.training,
                        epochs=epochs,
                        validate_every=min(epochs, changed.training.validate_every),
                    )
                    changed = replace(changed, training=training)
                runs.append(Run(name, seed, words, changed))
    trials = []
    for name, config in plain.items():
        for rate in study.learning_rates:
            tried = replace(
                _at_length(config, study.search_length),
                name=f"{name}-rate{rate:g}",
                runs=str(study.folder / "rates"),
                seed=study.seeds[0],
                training=replace(
                    config.training,
                    epochs=study.search_epochs,
                    validate_every=study.search_epochs,
                    learning_rate=rate,
                ),
            )
            trials.append((name, rate, Run(name, tried.seed, study.search_length, tried)))
    return Plan(study, shape, sizes, trials, runs)


def _experiment(
    study: StudyConfig, base: Mapping[str, Any], name: str, decoder: Mapping[str, Any] | None
) -> ExperimentConfig:
    entrant = study.decoders[name]
    values = merged(base, {"tracking": {"group": study.name}})
    values = merged(values, study.overrides)
    values = merged(values, entrant.overrides)
    values |= {"decoder": dict(decoder or entrant.decoder), "name": name, "runs": str(study.folder)}
    return parse(values, where=f"study {study.name}, decoder {name}", allow_code=True)


def _at_length(config: ExperimentConfig, words: int | None) -> ExperimentConfig:
    if words is None or not isinstance(config.dataset, ShapesConfig):
        return config
    return parse(merged(config.as_json(), {"dataset": {"words": words}}), where=f"captions of {words} words")


def _shape(config: ExperimentConfig) -> Shape:
    """What the decoders' sizes depend on."""
    records = of_split(datasets.load(config.dataset), "train")
    captions = [caption for record in records for caption in record.captions]
    vocabulary = Vocabulary.build(captions, min_count=config.vocabulary.min_count)
    lengths = [min(len(tokenize(caption)), config.vocabulary.max_length) + 1 for caption in captions[::7]]
    eyes = encoders.build(config.encoder.without_weights()).eval()
    with torch.inference_mode():
        pixels = torch.zeros(1, 3, config.preprocessing.size, config.preprocessing.size)
        _, regions, channels = eyes(pixels).regions.shape
    return Shape(
        channels,
        regions,
        len(vocabulary),
        round(sum(lengths) / len(lengths)),
        min(config.training.captions_per_image, len(records[0].captions)),
    )


def _solve(study: StudyConfig, plain: Mapping[str, ExperimentConfig], shape: Shape) -> dict[str, Size]:
    """Each system's decoder at the size that `match` asks for."""
    asked = {name: config.decoder for name, config in plain.items()}
    if study.match is None:
        return {name: _size(decoder, decoder, shape) for name, decoder in asked.items()}
    by, target = study.match.by, study.match.target
    goal = _measure(by, shape, asked[target]) if isinstance(target, str) else target
    sizes = {}
    for name, decoder in asked.items():
        if name != target:
            decoder = cost.solve_width(decoder, goal, functools.partial(_measure, by, shape))
        sizes[name] = _size(decoder, asked[name], shape)
        off = getattr(sizes[name], by) / goal - 1
        if abs(off) > study.match.tolerance:
            raise UserError(
                f"study {study.name}: {name} comes out {100 * off:+.1f} % from {goal:,} {by}, allowed are "
                f"{100 * study.match.tolerance:g}; choose another match.target or its other sizes"
            )
    return sizes


def _measure(by: str, shape: Shape, decoder: Any) -> int:
    return _parameters(decoder, shape) if by == "parameters" else _flops(decoder, shape)


def _parameters(decoder: Any, shape: Shape) -> int:
    return cost.parameters(decoder, channels=shape.channels, vocabulary_size=shape.vocabulary)


def _flops(decoder: Any, shape: Shape) -> int:
    return cost.flops_per_caption(
        decoder,
        channels=shape.channels,
        vocabulary_size=shape.vocabulary,
        regions=shape.regions,
        words=shape.words,
        captions=shape.captions,
    )


def _size(decoder: Any, asked: Any, shape: Shape) -> Size:
    return Size(
        TypeAdapter(DecoderConfig).dump_python(decoder, mode="json"),
        _parameters(decoder, shape),
        _flops(decoder, shape),
        decoder.hidden / asked.hidden,
    )


def generate_captions(plan: Plan) -> list[str]:
    """The plan in lines for a person."""
    study, shape = plan.study, plan.shape
    by = "not matched" if study.match is None else f"matched by {study.match.by} to {study.match.target}"
    lines = [
        f"study {study.name}: {len(plan.sizes)} decoders x {len(study.seeds)} seeds"
        + (f" x lengths {', '.join(map(str, study.lengths))}" if study.lengths else "")
        + f", {by}; reported on {study.split}; in {study.folder}",
        f"{shape.regions} regions of {shape.channels} channels, {shape.vocabulary:,} words, captions of {shape.words} "
        "words on average, their end counted",
        "",
        f"{'decoder':<20}{'parameters':>12}{'MFLOP a caption':>18}{'scaled by':>11}   sizes",
    ]
    for name, size in plan.sizes.items():
        sizes = ", ".join(f"{key} {size.decoder[key]}" for key in cost.WIDTHS if size.decoder.get(key))
        lines.append(
            f"{name:<20}{size.parameters:>12,}{size.flops / 1e6:>18.1f}{size.factor:>11.3f}   {sizes}"
        )
    lines.append("")
    if plan.trials:
        rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
        lines.append(
            f"learning rates {rates}: {len(plan.trials)} trials of {study.search_epochs} epochs, seed {study.seeds[0]}"
        )
    todo = [run for run in plan.runs if state(run.config) != "trained"]
    lines.append(f"{len(plan.runs)} runs, {len(plan.runs) - len(todo)} trained already:")
    lines += [f"  {run.config.name:<32}{state(run.config)}" for run in plan.runs]
    return lines


def state(config: ExperimentConfig) -> Literal["new", "begun", "trained"]:
    """How far a run is. A folder without a whole checkpoint is new."""
    try:
        progress = _progress(config.folder)
    except UserError:
        return "new"
    done = progress["done"] and progress["phase"] == len(config.phases)
    return "trained" if done and (config.folder / "model" / "manifest.json").is_file() else "begun"


def _progress(folder: Path) -> dict[str, Any]:
    """Of a run's newest whole checkpoint. Raises UserError where there is none."""
    progress: dict[str, Any] = read_json(latest(folder) / "progress.json")
    return progress


def execute(
    plan: Plan, *, log: Callable[[str], None], tool: Tool | None = None, jobs: int = 1
) -> dict[str, float]:
    """Run what isn't there yet: trials of learning rates, trainings, captions and scores of the split.

    Whatever is killed is gone on with when called again.

    Args:
        jobs: trainings at a time, each with its share of the cores. What they say is then in their train.log only.

    Returns:
        The learning rate of each system.

    Raises:
        UserError: a tool failed, a run of that name was made with other settings, or another process is at work.
    """
    study = plan.study
    with locked(study.folder) as lock:
        tool = tool or process(lock, jobs)
        if any(state(run.config) != "trained" for run in plan.runs):
            write_json(study.folder / "plan.json", {**as_json(plan), "jobs": jobs})
        rates = _try_rates(plan, tool, log, jobs)

        def work(number: int, run: Run) -> None:
            config = with_rate(run.config, rates.get(run.system))
            began = time.perf_counter()
            if _train(config, tool, log, title=f"run {number} of {len(plan.runs)}"):
                log(f"{config.name}: trained in {(time.perf_counter() - began) / 60:.1f} minutes")
            _evaluate(config, study.split, tool, log)

        _at_once(jobs, [functools.partial(work, *each) for each in enumerate(plan.runs, 1)], "runs")
    return rates


def _at_once(jobs: int, work: Sequence[Callable[[], None]], what: str) -> None:
    """Do all of `work`, `jobs` at a time, begun in their order. The first error is raised when those already begun
    have ended; the rest is not begun."""
    if jobs == 1:
        for each in work:
            each()
        return
    failed = threading.Event()

    def one(each: Callable[[], None]) -> None:
        if failed.is_set():
            return
        try:
            each()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(work), desc=what, disable=None, delay=2) as bar:
        for future in as_completed([pool.submit(one, each) for each in work]):
            try:
                future.result()
            except BaseException:
                failed.set()  # Ctrl-C comes here, not into a thread
                raise
            bar.update()


def as_json(plan: Plan) -> dict[str, Any]:
    """What matching gave, for the report."""
    return {
        "study": TypeAdapter(StudyConfig).dump_python(plan.study, mode="json"),
        "shape": plan.shape._asdict(),
        "sizes": {name: size._asdict() for name, size in plan.sizes.items()},
    }


def with_rate(config: ExperimentConfig, rate: float | None) -> ExperimentConfig:
    return config if rate is None else replace(config, training=replace(config.training, learning_rate=rate))


def _try_rates(plan: Plan, tool: Tool, log: Callable[[str], None], jobs: int = 1) -> dict[str, float]:
    """Every trial not there yet; the best rate of each system."""

    def work(number: int, run: Run) -> None:
        if not _diverged(run.config).is_file():
            _train(run.config, tool, log, title=f"learning rate {number} of {len(plan.trials)}", trial=True)

    tries = [functools.partial(work, number, run) for number, (_, _, run) in enumerate(plan.trials, 1)]
    _at_once(jobs, tries, "learning rates")
    found = tried_rates(plan)
    rates = {}
    for name, values in found.items():
        known = {rate: value for rate, value in values.items() if value is not None}
        if not known:
            raise UserError(
                f"study {plan.study.name}: {name} diverged with every rate; give lower learning_rates"
            )
        rates[name] = max(known, key=lambda rate: known[rate])
        edge = len(values) > 1 and rates[name] in (min(values), max(values))
        log(
            f"{name}: learning rate {rates[name]:g} of "
            + ", ".join(
                f"{rate:g} ({'diverged' if value is None else f'{100 * value:.1f}'})"
                for rate, value in values.items()
            )
            + (" - at the edge of those tried" if edge else "")
        )
    return rates


def tried_rates(plan: Plan) -> dict[str, dict[float, float | None]]:
    """For each system and rate tried so far the best validation score; None where it diverged."""
    found: dict[str, dict[float, float | None]] = {}
    for name, rate, run in plan.trials:
        if _diverged(run.config).is_file():
            found.setdefault(name, {})[rate] = None
        elif state(run.config) == "trained":
            found.setdefault(name, {})[rate] = _progress(run.config.folder)["best"]
    return found


def _diverged(config: ExperimentConfig) -> Path:
    return config.folder / "diverged.json"


def _train(
    config: ExperimentConfig, tool: Tool, log: Callable[[str], None], *, title: str, trial: bool = False
) -> bool:
    """Train a run, from the start or on from its last checkpoint; whether there was anything to do."""
    where = state(config)
    if where != "new":
        _refuse_other(config)
    if where == "trained":
        return False
    log(f"{title}: {config.folder} {'goes on' if where == 'begun' else 'begins'}")
    if where == "new":
        # killed before its first checkpoint was whole
        shutil.rmtree(config.folder / "checkpoints", ignore_errors=True)
    file = config.folder / "experiment.yaml"
    write_text(file, yaml.safe_dump(config.as_json(), sort_keys=False))
    code, said = tool("train", str(file), *(["--resume"] if where == "begun" else []))
    if code and trial and TOO_FAST in said:
        write_json(_diverged(config), {"said": said.strip()})
        log(f"{config.name}: {said.strip()}")
    elif code:
        raise UserError(f"{config.folder}: training stopped with code {code}: {said.strip()[-500:]}")
    return True


def _refuse_other(config: ExperimentConfig) -> None:
    """Raises UserError where the run that is there was made with other settings."""
    there = config.folder / "config.yaml"
    found = read_config(there)
    if found.fingerprint == config.fingerprint:
        return
    ours, theirs = (_flat(each.as_json()) for each in (config, found))
    left_out = ("name", "runs", "device", "tracking")
    differ = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key.split(".")[0] not in left_out
    ]
    raise UserError(
        f"{there}: this run was made with other settings ({differ[0]} {theirs.get(differ[0])!r}, now "
        f"{ours.get(differ[0])!r}); give the study another name, or delete that run's folder"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _evaluate(config: ExperimentConfig, split: str, tool: Tool, log: Callable[[str], None]) -> None:
    if scored(config.folder, split):
        return
    log(f"{config.name}: captions and scores of {split}")
    code, said = tool("evaluate", str(config.folder), "--split", split)
    if code:
        raise UserError(f"{config.folder}: evaluation stopped with code {code}: {said.strip()[-500:]}")


def scored(folder: Path, split: str) -> bool:
    """Whether the split's captions and scores are there and of the model that is there."""
    files = [folder / f"{what}_{split}.json" for what in ("predictions", "scores")]
    if not all(file.is_file() for file in files):
        return False
    model = recover_folder(folder / "model") / "manifest.json"
    return read_json(files[1])["signature"].get("model") == sha256(model)[:16]


@contextlib.contextmanager
def locked(folder: Path, *, patience: float = 5.0) -> Iterator[int]:
    """Only one process at a time works on a study. The lock is handed on to trainings, which may outlive us.

    Args:
        patience: seconds to wait; what was started by a process just killed ends with it, a moment later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(
                        f"{folder}: another process is at work on this study; wait for it, or end it"
                    ) from None
                time.sleep(0.25)
        yield descriptor
    finally:
        os.close(descriptor)


def process(lock: int, jobs: int = 1) -> Tool:
    """Runs a tool as a process of its own, which holds the lock too and ends when we do.

    With several `jobs` each gets its share of the cores, and only its last line on stderr is kept.
    """
    alone = jobs == 1
    shared = {} if alone else {"OMP_NUM_THREADS": str(threads_each(jobs))}

    def run(name: str, *arguments: str) -> tuple[int, str]:
        sys.stdout.flush()
        child = subprocess.Popen(
            [sys.executable, "-m", "captioning", name, *arguments],
            stdout=None if alone else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(lock,),
            preexec_fn=_end_with_parent,
            env={
                **os.environ,
                **shared,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
        )
        said = b""
        assert child.stderr is not None
        try:
            while part := child.stderr.read1(1 << 16):  # type: ignore[attr-defined]
                if alone:
                    os.write(2, part)  # progress bars too are for the person
                said = (said + part)[-4000:]
            return child.wait(), _last_line(said.decode("utf-8", "replace"))
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()

    return run


def usual_jobs() -> int:
    """Trainings at a time: small models use one core best, and a GPU is shared by none."""
    return 1 if torch.cuda.is_available() else min(4, torch.get_num_threads())


def threads_each(jobs: int) -> int:
    """A training's share of the cores that this process may use."""
    return max(1, torch.get_num_threads() // jobs)


def _last_line(said: str) -> str:
    lines = [line for line in said.replace("\r", "\n").split("\n") if line.strip()]
    return lines[-1] if lines else ""


def _end_with_parent() -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux only; elsewhere the lock tells
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
