"""`python -m pcattn`."""

from pcattn.cli import main

if __name__ == "__main__":
    main()
