"""The entry of the command line: `pcattn`, `python -m pcattn` and `python train.py`."""

import os


def main() -> None:
    """Run the command line of the process."""
    # OpenMP's threads wait for each other busily by default. One other busy process on the machine then makes training
    # on the CPU 18 times slower; waiting asleep costs a fifth on an idle one. It is read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pcattn.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
