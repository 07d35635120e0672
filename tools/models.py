"""The same as `captioning models`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["models", *sys.argv[1:]])
