"""Print the lowest versions that pyproject.toml allows of all dependencies but torch and torchvision, for pip."""

import re
from pathlib import Path

HEAVY = ("torch", "torchvision")  # a second copy takes gigabytes
text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
dependencies = text.partition("\ndependencies = [")[2].partition("\n]")[0]
for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', dependencies):
    if name not in HEAVY:
        print(f"{name}=={version}")
