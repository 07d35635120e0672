"""`python -m captioning`: the same as the command `captioning`."""

from captioning.cli.main import main

if __name__ == "__main__":
    main()
