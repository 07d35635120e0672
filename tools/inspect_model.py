"""The same as `captioning inspect`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["inspect", *sys.argv[1:]])
