"""The same as `captioning train`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
