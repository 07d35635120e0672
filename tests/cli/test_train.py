"""`captioning train`: its options and its messages; what training does is tested in tests/training."""

from captioning.utils.paths import shipped_configs
from tests.helpers.running import tool


def test_help_lists_the_shipped_configs():
    done = tool("train", "--help")
    assert done.code == 0, done.err
    names = {path.stem for path in shipped_configs().glob("*.yaml")}
    listed = {line.strip() for line in done.out.splitlines()} & names
    assert listed == {name for name in names if not name.startswith("study")} and len(listed) >= 13
