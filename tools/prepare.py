"""The same as `captioning prepare`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
