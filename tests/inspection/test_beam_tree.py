"""The recorded beam search equals a plain beam search on lists; explanations of captions and errors."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.captioner.ensemble import EnsembleCaptioner
from captioning.captioner.predict import generate_captions
from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.inspection.beam_tree import explain_search
from captioning.inspection.rescoring import error_shares, judge
from captioning.models.decoders import Decoder, unroll
from captioning.tensors import StepOutput
from captioning.text.vocabulary import SPECIALS, Vocabulary
from tests.cli.test_evaluate import IMAGES, make_run
from tests.helpers.models import PREPROCESSING, WORDS, save_tiny_model, tiny_captioner
from tests.helpers.running import tool

V = Vocabulary
WANTED = range(len(SPECIALS), len(SPECIALS) + len(WORDS))
BEAMS = [
    BeamConfig(width=3, n_best=3, max_length=7),
    BeamConfig(width=5, n_best=2, max_length=6, min_length=2, length_rule="gnmt", patience=2.0),
    BeamConfig(width=2, n_best=1, max_length=5, length_rule="sum", patience=None),
    BeamConfig(width=3, n_best=3, max_length=7, prefix="a red", no_repeat=1),
]


def pixels(images, seed=0):
    return torch.rand(images, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def distribution(captioner, image, words):
    """(V,) log-probabilities of the word behind `words`, by `forward`."""
    steps = captioner.decoder(torch.tensor([[[V.start, *words]]]), captioner.encode_memory(image))
    return captioner.decoder.logits(steps.hidden)[0, 0, -1].double().log_softmax(-1)


def text(words):
    return " ".join((*SPECIALS, *WORDS)[word] for word in words if word != V.end)


def score(logprob, length, config):
    rule = {"sum": 1, "mean": length, "gnmt": ((5 + length) / 6) ** config.alpha}[config.length_rule]
    return logprob / rule


def plain_tree(captioner, image, config):
    """[(live before, live after, ended)] a word, each {text: logp}: a beam in lists, prefixes read anew."""
    prefix = [captioner.vocabulary.ids[word] for word in config.prefix.split()]
    total = sum(float(distribution(captioner, image, prefix[:t])[word]) for t, word in enumerate(prefix))
    live, ended, steps = [(prefix, total)], [], []
    enough = (
        math.inf if config.patience is None else max(config.n_best, math.ceil(config.width * config.patience))
    )
    for length in range(len(prefix) + 1, config.max_length + 1):
        ways = []
        for words, logprob in live:
            each = distribution(captioner, image, words)
            for word in (V.end, *WANTED):
                if (word == V.end and length <= config.min_length) or (config.no_repeat and word in words):
                    continue
                ways.append(([*words, word], logprob + float(each[word])))
        ways.sort(key=lambda way: -way[1])
        ends = [way for way in ways[: config.width] if way[0][-1] == V.end]
        after = [way for way in ways if way[0][-1] != V.end][: config.width]
        steps.append(tuple({text(words): logprob for words, logprob in part} for part in (live, after, ends)))
        ended += ends
        live = after
        kept = sorted((score(logprob, len(words), config) for words, logprob in ended), reverse=True)[
            : config.n_best
        ]
        reach = score(live[0][1], config.max_length, config)
        if len(ended) >= enough or (len(kept) == config.n_best and reach <= kept[-1]):
            break
    return steps


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize("config", BEAMS, ids=range(len(BEAMS)))
def test_the_tree_is_that_of_a_plain_beam(kind, config):
    captioner, image = tiny_captioner(kind), pixels(1, seed=3)
    told = explain_search(captioner, image, 7, config)
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        **told,
        "search": json.loads(json.dumps(told["search"])),
    }
    expected = plain_tree(captioner, image, config)
    assert len(told["steps"]) == len(expected)
    first = len(config.prefix.split()) + 1
    for number, (step, (before, after, ends)) in enumerate(zip(told["steps"], expected, strict=True)):
        assert step["length"] == first + number
        assert [each["caption"] for each in step["active"]] == list(after)
        assert [each["logprob"] for each in step["active"]] == pytest.approx(list(after.values()), abs=1e-5)
        assert {each["caption"]: each["logprob"] for each in step["finished"]} == pytest.approx(
            ends, abs=1e-5
        )
        for each in step["finished"]:
            assert each["score"] == pytest.approx(score(each["logprob"], step["length"], config))
        said = list(before)
        parents = set()
        for rank, each in enumerate(step["active"]):
            assert each["rank"] == rank
            assert f"{said[each['parent']]} {each['word']}".strip() == each["caption"]
            assert each["logprob"] - each["word_logprob"] == pytest.approx(
                before[said[each["parent"]]], abs=1e-5
            )
            parents.add(said[each["parent"]])
        parents |= {each["caption"] for each in step["finished"]}
        assert {each["caption"] for each in step["pruned"]} == set(before) - parents
        for each in step["pruned"]:
            assert each["lost_to"]["caption"] == list(after)[-1]
            assert each["next"] is None or each["next"]["logprob"] <= each["lost_to"]["logprob"]
        assert step["stopped"] == (number == len(expected) - 1)


@pytest.mark.parametrize("config", BEAMS, ids=range(len(BEAMS)))
def test_what_is_found_is_what_the_search_finds(config):
    captioner, image = tiny_captioner("lstm"), pixels(1, seed=5)
    found = explain_search(captioner, image, "x", config)["captions"]
    (prediction,) = generate_captions(captioner, image, ["x"], config=config)
    ranked = (prediction, *prediction.alternatives)
    assert [each["caption"] for each in found] == [each.caption for each in ranked]
    for each, other in zip(found, ranked, strict=True):
        assert (each["logprob"], each["score"], each["finished"]) == (
            other.logprob,
            other.score,
            other.finished,
        )
    assert found[0]["lost_to"] is None
    for each in found[1:]:
        assert each["lost_to"]["by"] == pytest.approx(found[0]["score"] - each["score"])
        at = each["lost_to"]["differs_at"] - 1
        one, best = each["caption"].split(), found[0]["caption"].split()
        assert one[:at] == best[:at] and one[at : at + 1] != best[at : at + 1]


class Garden(Decoder):
    """Leads greedy search up a garden path; the next word depends on the last alone."""

    NEXT = {
        "<start>": {"a": 0.5, "dog": 0.45, "<end>": 0.05},
        "a": {"red": 0.24, "cat": 0.19, "runs": 0.19, "on": 0.19, "grass": 0.19},
        "dog": {"red": 0.55, "cat": 0.45},
        **{word: {"<end>": 1.0} for word in ("red", "cat", "runs", "on", "grass", "café", "the")},
    }

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary_size = len(vocabulary)
        table = torch.full((len(vocabulary), len(vocabulary)), 1e-9, dtype=torch.float64)
        for last, following in self.NEXT.items():
            for word, probability in following.items():
                table[vocabulary.ids[last], vocabulary.ids[word]] = probability
        self.table = table.log()

    def encode_memory(self, features):
        return features.regions.double()

    def init_state(self, memory, num_sequences):
        return memory.new_zeros(len(memory), num_sequences, 1)

    def step(self, words, state, memory):
        return StepOutput(hidden=self.table[words], attention=None), state

    def forward(self, words, memory, batch_sizes=None):
        return unroll(self, words, memory)

    def logits(self, hidden):
        return hidden


def test_where_the_beam_leaves_greedy_s_path():
    captioner = tiny_captioner("lstm")
    captioner.decoder = Garden(captioner.vocabulary).eval()
    told = explain_search(
        captioner,
        pixels(1),
        0,
        BeamConfig(width=2, n_best=2, max_length=5, length_rule="sum"),
        references=["A cat."],
    )
    assert [each["caption"] for each in told["captions"]] == ["dog red", "dog cat"]
    assert told["captions"][1]["lost_to"] == {
        "caption": "dog red",
        "by": pytest.approx(math.log(0.55 / 0.45)),
        "differs_at": 2,
    }
    first, second, third = told["steps"]
    assert [each["caption"] for each in first["active"]] == ["a", "dog"] and not first["pruned"]
    assert second["pruned"] == [
        {
            "rank": 0,
            "caption": "a",
            "logprob": pytest.approx(math.log(0.5)),
            "next": {"word": "red", "logprob": pytest.approx(math.log(0.5 * 0.24))},
            "lost_to": {"caption": "dog cat", "logprob": pytest.approx(math.log(0.45 * 0.45))},
        }
    ]
    assert [(each["parent"], each["caption"]) for each in third["finished"]] == [
        (0, "dog red"),
        (1, "dog cat"),
    ]
    assert told["greedy"] == {
        "caption": "a red",
        "logprob": pytest.approx(math.log(0.5 * 0.24)),
        "score": pytest.approx(math.log(0.5 * 0.24)),
        "finished": True,
        "diverges_at": 2,
        "greedy_logprob": pytest.approx(math.log(0.5 * 0.24)),
        "worst_active_logprob": pytest.approx(math.log(0.45 * 0.45)),
    }
    assert told["verdict"] == {
        "image_id": 0,
        "error": "model",
        "reference": "A cat.",
        "score": pytest.approx(math.log(0.5 * 0.19)),
        "found_score": pytest.approx(math.log(0.45 * 0.55)),
    }
    wide = explain_search(captioner, pixels(1), 0, BeamConfig(width=5, max_length=5, length_rule="sum"))
    assert wide["greedy"]["diverges_at"] is None and wide["verdict"] is None
    greedy = explain_search(
        captioner, pixels(1), 0, BeamConfig(width=1, max_length=5, length_rule="sum"), references=["Dog red!"]
    )
    assert greedy["captions"][0]["caption"] == "a red" and greedy["greedy"]["diverges_at"] is None
    assert greedy["verdict"]["error"] == "search"  # the reference, .2475, is likelier than .12


def test_an_ensemble_is_explained_like_any_captioner():
    captioner = EnsembleCaptioner(
        [tiny_captioner("lstm"), tiny_captioner("transformer", encoder="frozen")],
        names=["one", "two"],
        average="probabilities",
    )
    images = [pixels(1), pixels(1)]
    told = explain_search(captioner, images, 0, BEAMS[0], references=["a dog on grass"])
    for each in told["captions"]:
        assert sum(word["logprob"] for word in each["words"]) == pytest.approx(each["logprob"], abs=1e-5)
    assert told["verdict"]["error"] in ("search", "model")


def test_only_a_beam_is_explained():
    with pytest.raises(UserError, match="not greedy"):
        explain_search(tiny_captioner("lstm"), pixels(1), 0, GreedyConfig())


# --- captioning caption ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "lstm", "lstm")


@pytest.fixture
def photos(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (23, 31 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p{number}.png")
    return [tmp_path / f"p{number}.png" for number in range(3)]


def test_words_in_the_json_of_the_tool(model, photos):
    done = tool("caption", *photos, "--model", model, "--json", "--words", "--top", "2")
    assert done.code == 0, done.err
    plain = tool("caption", *photos, "--model", model, "--json", "--top", "2")
    for line, bare in zip(done.out.splitlines(), plain.out.splitlines(), strict=True):
        entry = json.loads(line)
        for each in (entry, *entry["alternatives"]):
            words = each.pop("words")
            assert [word["word"] for word in words] == each["caption"].split() + ["<end>"] * each["finished"]
            assert sum(word["logprob"] for word in words) == pytest.approx(each["logprob"], abs=1e-5)
            assert all(0 < word["probability"] <= 1 and word["entropy"] >= 0 for word in words)
        assert entry == json.loads(bare)


def test_the_tool_explains(model, photos, tmp_path):
    done = tool(
        "caption",
        photos[0],
        "--model",
        model,
        "--beam",
        "2",
        "--explain",
        tmp_path / "see",
        "--reference",
        "A red dog.",
    )
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "see" / "p0.png.beam.json").read_text())
    assert told["captions"][0]["caption"] == done.out.strip().split("\t")[1]
    assert told["search"]["width"] == 2 and told["verdict"]["reference"] == "A red dog."
    assert max(len(step["active"]) for step in told["steps"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--words"], "--words needs --json"),
        (["--reference", "a dog"], "--reference needs --explain"),
        (["--explain", "see", "--reference", "a dog"], "--reference is for one image"),
        (["--explain", "see", "--search", "greedy"], "only a beam search can be explained, not greedy"),
    ],
)
def test_what_does_not_go_together(model, photos, tmp_path, arguments, said):
    done = tool("caption", *photos, "--model", model, *arguments, cwd=tmp_path)
    assert done.code == 2 and said in done.err and not done.out
    assert not (tmp_path / "see").exists()


# --- captioning evaluate -----------------------------------------------------------------------------------------


def test_the_errors_of_a_split(tmp_path):
    config = make_run(tmp_path)
    run = config.folder
    done = tool("evaluate", run, "--errors", "--json", "--batch", "2", "--max-length", "6", cwd=tmp_path)
    assert done.code == 0, done.err
    told, written = json.loads(done.out), json.loads((run / "errors_val_max_length=6.json").read_text())
    captioner = tiny_captioner("lstm")
    search = BeamConfig(width=3, max_length=6)
    names = [name for name, (split, _) in IMAGES.items() if split == "val"]
    photos = tmp_path / "data" / "images"
    images = torch.stack([preprocess(load_image(photos / name), PREPROCESSING) for name in names])
    with torch.inference_mode():
        memory = captioner.encode_memory(images)
    found = generate_captions(captioner, images, names, config=search)
    expected = judge(captioner, memory, found, [IMAGES[name][1] for name in names], search)
    assert [each["error"] for each in written["verdicts"]] == [each.error for each in expected]
    assert [each["reference"] for each in written["verdicts"]] == [each.reference for each in expected]
    assert told["errors"] == error_shares(expected) == {key: written[key] for key in told["errors"]}
    assert len({each.error for each in expected}) > 1


def test_an_ensemble_of_runs(tmp_path):
    config = make_run(tmp_path)
    run, out = config.folder, tmp_path / "both"
    assert tool("evaluate", run, "--json", cwd=tmp_path).code == 0
    before = {path.name: path.read_bytes() for path in run.glob("*_val.json")}
    twin = tmp_path / "runs" / "twin"
    shutil.copytree(run, twin)
    done = tool("evaluate", run, twin, "--out", out, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    captions = [
        [each["caption"] for each in json.loads((folder / "predictions_val.json").read_text())]
        for folder in (run, out)
    ]
    assert captions[0] == captions[1]  # the mean of twins
    model = json.loads(done.out)["signature"]["model"]
    assert len(model["mean of"]) == 2 and model["in"] == "probabilities"
    assert {path.name: path.read_bytes() for path in run.glob("*_val.json")} == before
    for arguments, said in (([run, twin], "--out"), ([run, "--average", "probabilities"], "--average")):
        done = tool("evaluate", *arguments, cwd=tmp_path)
        assert done.code == 2 and said in done.err
