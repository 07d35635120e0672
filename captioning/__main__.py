"""`python -m captioning`: the same as the `captioning` command."""

from captioning.cli.main import main

if __name__ == "__main__":
    main()
