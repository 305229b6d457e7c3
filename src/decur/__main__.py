"""`python -m decur` is the command `decur`."""

from decur.cli import main

if __name__ == "__main__":
    main()
