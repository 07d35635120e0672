"""`captioning train`: its options and its messages; what training does is tested in tests/training."""

import pytest

from captioning.utils.paths import shipped_configs
from tests.helpers.running import tool


def test_help_lists_the_shipped_configs():
    done = tool("train", "--help")
    assert done.code == 0, done.err
    names = {path.stem for path in shipped_configs().glob("*.yaml")}
    listed = {line.strip() for line in done.out.splitlines()} & names
    assert listed == {name for name in names if not name.startswith("study")} and len(listed) >= 13


def test_a_shipped_config_is_found_by_its_name(tmp_path):
    done = tool("train", "flickr8k_lstm", "dataset.root=empty", cwd=tmp_path)
    assert done.code == 2
    assert "empty" in done.err and "flickr8k_lstm:" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flickr8k_lstmm"], "flickr8k_lstm"),
        (["none.yaml"], "none.yaml"),
        (["shapes", "training.epoch=3"], "training.epoch: unknown key; did you mean training.epochs?"),
        (["shapes", "training.epochs"], "section.key=value"),
    ],
)
def test_errors_are_one_sentence(arguments, message, tmp_path):
    done = tool("train", *arguments, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and len(done.err.splitlines()) == 1
