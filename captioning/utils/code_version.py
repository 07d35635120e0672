"""The version of this code, for signatures and model cards."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path


@functools.cache
def code_version() -> str:
    """The package's version and, in a checkout, its commit and changes (`describe_checkout`)."""
    try:
        version = importlib.metadata.version("captioning")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    checkout = describe_checkout(Path(__file__).resolve().parents[2])
    return f"{version}+{checkout}" if checkout else version


def describe_checkout(root: Path) -> str:
    """The commit of the checkout `root`, with "-dirty" and a hash of all that was changed or added since.

    Added files count in the folder `captioning`. "" if `root` is no checkout, or git fails or takes seconds.
    """
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "describe", "--always", "--abbrev=12", "--exclude=*").decode().strip()
        changes = hashlib.sha256(changed := _git(root, "diff", "HEAD", "--binary"))
        added = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "captioning").split(
            b"\0"
        )
        for name in sorted(filter(None, added)):
            changes.update(name + b"\0" + (root / name.decode()).read_bytes())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty-{changes.hexdigest()[:8]}" if changed or any(added) else commit


def _git(root: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, timeout=2, check=True).stdout
