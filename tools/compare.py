"""The same as `captioning compare`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
