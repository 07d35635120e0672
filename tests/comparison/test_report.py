"""Comparisons: what the numbers are, what is said of them, and the report as people and browsers get it."""

import base64
import html.parser
import json
import re
import statistics

import numpy as np
import pytest
from PIL import Image

from captioning.comparison import document, length_page, page, results
from captioning.comparison import systems as system_files
from captioning.comparison.results import System, SystemRun
from captioning.errors import UserError
from captioning.metrics.evaluation import evaluate
from captioning.records import ImageRecord
from tests.helpers.running import python, tool

WORDS = [
    "a",
    "dog",
    "cat",
    "runs",
    "sleeps",
    "on",
    "the",
    "grass",
    "red",
    "ball",
    "jumps",
    "over",
    "two",
    "men",
]
LENGTHS = (4, 7, 11)


def split(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        ImageRecord(
            number,
            f"/nowhere/{number}.jpg",
            tuple(" ".join(rng.choice(WORDS, LENGTHS[number % 3])) for _ in range(5)),
            "val",
        )
        for number in range(count)
    ]


def system(name, records, *, right, seeds, begin=0):
    """A system that says a reference for a share `right` of the images and gibberish for the rest."""
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng((begin, seed))
        captions = {
            record.image_id: record.captions[seed % 5]
            if rng.random() < right
            else " ".join(rng.choice(WORDS, 5))
            for record in records
        }
        runs.append(SystemRun(f"{name}-seed{seed}", seed, captions))
    return System(name, name.title(), runs)


def compared(records, *systems, resamples=400):
    scored, kept, remarks = results.score_all(systems, records, split="val")
    found = results.results(scored, kept, resamples=resamples)
    return found | {"split": "val", "metric": "CIDEr-D", "chosen_on": "val", "remarks": remarks}, scored, kept


def verdicts(found):
    return [each.verdict for each in results.findings(found)]


def test_pooled_seeds_are_the_corpus_of_all_their_captions():
    records = split(17)
    scored, _, _ = results.score_all([system("a", records, right=0.6, seeds=3)], records, split="val")
    twice = {
        (record.image_id, seed): (record.captions, run.captions[record.image_id])
        for record in records
        for seed, run in enumerate(scored[0].system.runs)
    }
    whole = evaluate(
        {key: references for key, (references, _) in twice.items()},
        {key: caption for key, (_, caption) in twice.items()},
        split_name="val",
        search=None,
    )
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
        assert scored[0].pooled.corpus[name] == pytest.approx(whole.scores[name])
    each = [evaluation.scores["CIDEr-D"] for evaluation in scored[0].evaluations]
    assert scored[0].pooled.corpus["CIDEr-D"] == pytest.approx(statistics.fmean(each))


@pytest.mark.parametrize(
    ("shares", "seeds", "wanted"),
    [((0.9, 0.3), 3, "supported"), ((0.9, 0.3), 1, "one seed"), ((0.6, 0.6), 3, "not told apart")],
)
def test_no_more_is_said_than_images_and_seeds_support(shares, seeds, wanted):
    records = split(60)
    systems = [
        system(name, records, right=share, seeds=seeds, begin=number)
        for number, (name, share) in enumerate(zip("ab", shares, strict=True))
    ]
    found, _, _ = compared(records, *systems)
    assert verdicts(found) == [wanted]
    said = results.headline(found, split="val")
    assert {
        "supported": "support",
        "one seed": "single trained models",
        "not told apart": "do not tell apart",
    }[wanted] in said
    assert ("A above B" in said) == (wanted != "not told apart")


def test_overlapping_seeds_leave_it_open_however_small_p_is():
    records = split(60)
    good, bad = (system(name, records, right=share, seeds=2) for name, share in (("a", 0.95), ("b", 0.2)))
    mixed = System("b", "B", [bad.runs[0], good.runs[1]._replace(name="b-seed1")])
    better = System("a", "A", [good.runs[0], good.runs[1]])
    found, _, _ = compared(records, better, mixed)
    test = found["pairs"][0]["metrics"]["CIDEr-D"]
    assert test["holm"] < 0.05 and not test["separated"]
    assert verdicts(found) == ["seeds overlap"]


def test_p_values_are_corrected_over_pairs_and_metrics_together():
    records = split(30)
    systems = [
        system(name, records, right=share, seeds=1, begin=number)
        for number, (name, share) in enumerate((("a", 0.5), ("b", 0.55), ("c", 0.8)))
    ]
    found, _, _ = compared(records, *systems)
    tests = [test for pair in found["pairs"] for test in pair["metrics"].values()]
    assert len(tests) == 3 * 7
    least = min(tests, key=lambda test: test["p"])
    assert least["holm"] == pytest.approx(min(1, 21 * least["p"]))
    assert all(test["holm"] >= test["p"] for test in tests)


def test_parts_by_reference_length_are_scored_on_their_own_images():
    records = split(31)
    found, scored, kept = compared(records, system("a", records, right=0.5, seeds=2))
    assert sum(row["images"] for row in found["by_length"]) == 31
    for row in found["by_length"]:
        chosen = [
            number
            for number, record in enumerate(kept)
            if row["from"] <= statistics.fmean(len(text.split()) for text in record.captions) <= row["to"]
        ]
        assert len(chosen) == row["images"]
        for seed, evaluation in enumerate(scored[0].evaluations):
            mean = evaluation.metrics.per_image["CIDEr-D"][chosen].mean()
            assert row["systems"]["a"]["CIDEr-D"]["seeds"][seed] == pytest.approx(mean)


def test_images_without_a_caption_are_left_out_for_all_and_it_is_said():
    records = split(11)
    whole, part = (system(name, records, right=0.5, seeds=1) for name in "ab")
    part = part._replace(
        runs=[part.runs[0]._replace(captions={i: c for i, c in part.runs[0].captions.items() if i != 3})]
    )
    found, _, kept = compared(records, whole, part)
    assert [record.image_id for record in kept] == [i for i in range(11) if i != 3]
    assert found["images"] == 10 and "10 of the split's 11" in found["remarks"][0]
    with pytest.raises(UserError, match="not in val"):
        results.score_all([whole], records[:5], split="val")


def test_images_that_differ_most_and_where_all_fail():
    records = split(9)
    words = {record.image_id: "zebra zebra" for record in records}
    good = System("a", "A", [SystemRun("a", 0, {**words, 4: records[4].captions[0], 7: "a dog"})])
    bad = System("b", "B", [SystemRun("b", 0, {**words, 7: records[7].captions[1]})])
    _, scored, kept = compared(records, good, bad)
    above = results.differ_most(scored, kept, "a", "b", primary="CIDEr-D", count=3)
    assert [each.record.image_id for each in above] == [4]
    below = results.differ_most(scored, kept, "b", "a", primary="CIDEr-D", count=3)
    assert [each.record.image_id for each in below] == [7]
    worst = results.fail_most(scored, kept, primary="CIDEr-D", count=7)
    assert {each.record.image_id for each in worst} == set(range(9)) - {4, 7}


def test_limits_name_the_split_that_chose_the_epoch_and_what_chance_does_with_seeds():
    records = split(12)
    found, _, _ = compared(records, *(system(name, records, right=0.5, seeds=3) for name in "ab"))
    said = " ".join(results.limits(found, split="val", chosen_on="val"))
    assert "chosen on `val`" in said and "in 1 of 10 cases" in said
    assert "chosen on" not in " ".join(results.limits(found, split="test", chosen_on="val"))


# --- the report --------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        self.links += [values[key] for key in ("href", "src", "srcset") if key in values]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_asks_for_nothing_and_every_picture_says_what_it_shows(tmp_path):
    records = split(13)
    Image.new("RGB", (500, 400), "red").save(tmp_path / "photo.jpg")
    records = [
        ImageRecord(r.image_id, str(tmp_path / "photo.jpg"), ("<b>", *r.captions[1:]), "val") for r in records
    ]
    curve = [{"step": 5, "score": 0.1, "loss": 2.0, "seconds": 3.0, "tokens": 9.0, "teraflop": 0.2}]
    systems = [system(name, records, right=share, seeds=2) for name, share in (("a", 0.9), ("b", 0.1))]
    systems = [each._replace(runs=[run._replace(curve=curve) for run in each.runs]) for each in systems]
    found, scored, kept = compared(records, *systems)
    found["costs"] = {name: dict.fromkeys(page.COSTS, 1.5) | {"repeats": 3} for name in ("a", "b")}
    page.write_report(tmp_path / "out", found, scored, kept, title="A < B & more")
    text = (tmp_path / "out" / "report.html").read_text()
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    assert "A &lt; B &amp; more" in text and "<b>" not in re.sub(r"<b>[\w ]+</b>", "", text)
    assert len(parsed.images) >= 6 and all(len(image["alt"]) > 10 for image in parsed.images)
    assert all(link.startswith("data:image/") for link in parsed.links)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    for image in parsed.images:
        assert base64.b64decode(image["src"].split(",")[1])[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
    shown = (tmp_path / "out" / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", shown):
        assert (tmp_path / "out" / name).is_file()
    assert found["headline"] in shown
    kept_numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert kept_numbers["pairs"][0]["metrics"]["CIDEr-D"]["difference"] > 0


def test_tables_in_both_forms():
    table = document.Table(["", "a|b"], [["x", "1 < 2"]], "title")
    assert "| x | 1 < 2 |" in document.markdown("t", [table]) and "a\\|b" in document.markdown("t", [table])
    assert "<td>1 &lt; 2</td>" in document.page("t", [table])


# --- runs and files ----------------------------------------------------------------------------


def test_learning_curves_count_seconds_and_tokens():
    lines = [
        {"step": 4, "train/loss": 3.0},
        {"step": 5, "speed/tokens_per_s": 10.0, "speed/seconds": 2.0},
        {"step": 10, "speed/tokens_per_s": 20.0, "speed/seconds": 3.0},
        {"step": 10, "val/CIDEr-D": 0.4, "val/loss": 2.5},
    ]
    assert system_files.learning_curve(lines, "CIDEr-D", flops_per_token=5e11) == [
        {"step": 10, "score": 0.4, "loss": 2.5, "seconds": 5.0, "tokens": 80.0, "teraflop": 40.0}
    ]
    del lines[1]["speed/seconds"]
    assert system_files.learning_curve(lines, "CIDEr-D", flops_per_token=None) == [
        {"step": 10, "score": 0.4, "loss": 2.5}
    ]


def test_lines_torn_by_a_crash_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "a": 1}\n{"step": 5, "a"')
    assert system_files.metrics_lines(tmp_path) == [{"step": 3, "a": 1}]
    (tmp_path / "timings.jsonl").write_text('{"step": 3, "b": 2}\n')
    assert system_files.metrics_lines(tmp_path) == [{"step": 3, "b": 2}, {"step": 3, "a": 1}]


def test_files_of_captions_are_compared_without_torch(tmp_path):
    records = split(19)
    references = {
        "images": [{"id": record.image_id, "file_name": f"{record.image_id}.jpg"} for record in records],
        "annotations": [
            {"id": 5 * record.image_id + k, "image_id": record.image_id, "caption": caption}
            for record in records
            for k, caption in enumerate(record.captions)
        ],
    }
    (tmp_path / "references.json").write_text(json.dumps(references))
    for name, share in (("one", 0.9), ("two", 0.2)):
        captions = system(name, records, right=share, seeds=1).runs[0].captions
        results = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    code = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    files = [str(tmp_path / f"{name}.json") for name in ("one", "two", "references")]
    arguments = ["compare", "--predictions", *files[:2], "--references", files[2]]
    done = python(code, *arguments, "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "single trained models, not for kinds of model, one above two" in done.out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["name"] for each in found["systems"]] == ["one", "two"]
    assert "curves" not in {path.stem for path in (tmp_path / "out" / "figures").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a study"),
        (["--predictions", "a.json"], "go together"),
        (["runs/a", "--dry-run"], "for a study"),
        (["a.yaml", "--split", "val"], "says its split"),
        (["runs/none"], "not the folder of a run"),
        (["none.yaml"], "no such file"),
    ],
)
def test_what_the_tool_refuses(arguments, said):
    done = tool("compare", *arguments)
    assert done.code == 2 and said in done.err


# --- the length study --------------------------------------------------------------------------


def numbers(*, lstm, rnn, transformer, slow=1.0, decode=1.0):
    lengths = [10, 200]
    recall = {"lstm": lstm, "rnn": rnn, "transformer": transformer}
    by_length = {
        name: {words: [value - 0.01, value + 0.01] for words, value in zip(lengths, values, strict=True)}
        for name, values in recall.items()
    }
    costs = {
        name: [
            {
                "words": words,
                "train_us_per_token": train,
                "train_kb_per_token": 1.0,
                "decode_ms_per_word": each,
            }
            for words in lengths
        ]
        for name, train, each in (("lstm", slow, 1.0), ("rnn", 1.0, 1.0), ("transformer", 1.0, decode))
    }
    return {
        "quality": by_length,
        "recall": by_length,
        "agreement": by_length,
        "costs": costs,
        "metric": "CIDEr-D",
        "lengths": lengths,
        "labels": {name: name.upper() for name in recall},
    }


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        (
            {"lstm": (1, 0.9), "rnn": (1, 0.1), "transformer": (1, 0.99), "slow": 2.0},
            ("yes", "yes", "depends"),
        ),
        ({"lstm": (1, 0.2), "rnn": (0.3, 0.2), "transformer": (1, 0.99)}, ("depends", "no", "yes")),
        (
            {"lstm": (1, 0.2), "rnn": (1, 0.2), "transformer": (1, 0.99), "slow": 1.2, "decode": 3.0},
            ("no", "depends", "depends"),
        ),
        ({"lstm": (1, 0.9), "rnn": (1, 0.1), "transformer": (1, 0.5)}, ("yes", "no", "no")),
    ],
)
def test_claims_are_answered_from_the_numbers(values, answers):
    found = length_page.claims(numbers(**values))
    assert tuple(claim.answer for claim in found)[:2] == answers[:2]
    third = found[2]
    assert third.answer == answers[2] or (answers[2] == "depends" and "memory" not in third.why), third
    assert all(f"{claim.claim}”: **{claim.answer}**" in length_page.headline(found) for claim in found)


def test_claims_without_their_systems_are_not_measured():
    study = numbers(lstm=(1, 1), rnn=(1, 1), transformer=(1, 1))
    for part in ("quality", "recall", "agreement", "costs"):
        study[part].pop("lstm", None)
    assert {claim.answer for claim in length_page.claims(study)} == {"not measured"}


def test_agreement_of_first_and_last_name():
    captions = [
        "anna looks at this picture . so says anna .",
        "anna looks at this picture . so says boris .",
        "the picture shows a star",
        "anna looks at this picture",
    ]
    assert length_page.agreement(captions) == 0.25


def test_the_length_study_has_its_figures_and_tables():
    blocks = length_page.blocks(numbers(lstm=(1, 0.9), rnn=(1, 0.1), transformer=(1, 0.99)))
    pictures = [block for block in blocks if isinstance(block, document.Picture)]
    assert [each.name for each in pictures] == ["memory.png", "training_cost.png", "long.png"]
    assert all(each.content[:4] == b"\x89PNG" for each in pictures)
    assert sum(isinstance(block, document.Table) for block in blocks) == 6
