"""The same as `captioning evaluate`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
