"""The same as `captioning quickstart`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
