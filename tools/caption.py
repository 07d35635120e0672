"""The same as `captioning caption`."""

import sys

from captioning.cli.main import main

if __name__ == "__main__":
    main(["caption", *sys.argv[1:]])
