"""`metrics.csv` of a run, which a resumed training goes on with."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from pcattn.utils.files import naming, write_text


class MetricsLog(Logger):
    """A row for everything that is logged, written at once, so that a killed run has all of them.

    A training that goes on from a checkpoint makes steps for a second time that lie behind it. What it logs there takes
    the place of what was logged before: in the end the file is that of an uninterrupted run.

    Args:
        run: folder of the file, of which the rows that are there are kept.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run
        self.path = run / "metrics.csv"
        self._rows: list[dict[str, str]] | None = None

    @property
    def name(self) -> str:
        """None: the run is one folder."""
        return ""

    @property
    def version(self) -> str:
        """None, likewise."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run."""
        return str(self.run)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row."""
        row = {name: str(value) for name, value in metrics.items()} | {"step": str(step or 0)}
        rows = self._read() if self._rows is None else self._rows
        kept = [known for known in rows if not _again(known, row)]
        columns = sorted({name for known in (*rows, row) for name in known})
        appends = len(kept) == len(rows) > 0 and columns == sorted({name for known in rows for name in known})
        self._rows = [*kept, row]
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, lineterminator="\n")
        if appends:
            table.writerow(row)
            with naming(self.path), self.path.open("a", newline="") as file:
                file.write(text.getvalue())
        else:
            self.run.mkdir(parents=True, exist_ok=True)
            table.writeheader()
            table.writerows(self._rows)
            write_text(self.path, text.getvalue())

    def _read(self) -> list[dict[str, str]]:
        """The rows of the training that this one goes on with; a last line that was cut short is none."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]
        return [row for row in rows if row.get("step", "").isdecimal()]


def _again(known: dict[str, str], row: dict[str, str]) -> bool:
    """Whether a known row is of a step that is made again."""
    before, now = int(known["step"]), int(row["step"])
    return before > now or (before == now and known.keys() == row.keys())
