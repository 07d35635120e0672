"""The same as `captioning features`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["features", *sys.argv[1:]])
