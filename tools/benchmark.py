"""The same as `captioning benchmark`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
