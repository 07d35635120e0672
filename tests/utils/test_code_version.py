"""The code's version in a checkout: equal for equal content only, committed or not."""

import subprocess

from captioning.utils.code_version import describe_checkout


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", root, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_every_change_of_the_tree_changes_the_version(tmp_path):
    assert describe_checkout(tmp_path) == ""
    package = tmp_path / "captioning"
    package.mkdir()
    git(tmp_path, "init")
    (package / "a.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("*.log\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = describe_checkout(tmp_path)
    assert clean == git(tmp_path, "rev-parse", "HEAD")[:12]
    (package / "run.log").write_text("ignored")
    (tmp_path / "notes.txt").write_text("not code")
    assert describe_checkout(tmp_path) == clean

    seen = {clean}
    for name, text in (
        ("a.py", "x = 2\n"),
        ("a.py", "x = 3\n"),
        ("new.py", "y = 1\n"),
        ("new.py", "y = 2\n"),
    ):
        (package / name).write_text(text)
        version = describe_checkout(tmp_path)
        assert version.startswith(f"{clean}-dirty-") and version not in seen
        seen.add(version)
    (package / "new.py").unlink()
    (package / "a.py").write_text("x = 1\n")
    assert describe_checkout(tmp_path) == clean
