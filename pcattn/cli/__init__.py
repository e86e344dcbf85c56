"""The command line, one command a file; `main` finds and runs them."""
