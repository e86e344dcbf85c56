"""`metrics.csv` of a run, which a resumed training continues."""

from __future__ import annotations

import csv
import io
from bisect import bisect_left
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from pcattn.utils.files import naming_path, write_text


class ResumableCSVLogger(Logger):
    """Logs metrics to `<run>/metrics.csv`, one row per call, and continues the file of an interrupted training.

    Lightning's `CSVLogger` deletes the file when a training is resumed. Here a resumed training, which repeats the
    steps after its checkpoint, replaces their rows: in the end the file equals that of an uninterrupted training. Every
    row is written at once, so a killed training loses none.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run
        self.path = run / "metrics.csv"
        self._rows: list[dict[str, str]] | None = None  # sorted by step
        self._columns: set[str] = set()

    @property
    def name(self) -> str:
        """Empty: there is no folder for the logger inside the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: there is no folder for a version inside the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.run)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` holds the hyper-parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row. The file is rewritten if the row adds a column or repeats a step."""
        now = step or 0
        row = {name: str(value) for name, value in metrics.items()} | {"step": str(now)}
        if self._rows is None:
            self._rows = self._read()
            self._columns.update(*self._rows)
        start = bisect_left(self._rows, now, key=_step)
        same_step = [known for known in self._rows[start:] if _step(known) == now and known.keys() != row.keys()]
        appends = bool(self._rows) and row.keys() <= self._columns and len(same_step) == len(self._rows) - start
        self._rows[start:] = [*same_step, row]
        self._columns |= row.keys()
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, sorted(self._columns), lineterminator="\n")
        if appends:
            table.writerow(row)
            with naming_path(self.path), self.path.open("a", newline="") as file:
                file.write(text.getvalue())
        else:
            self.run.mkdir(parents=True, exist_ok=True)
            table.writeheader()
            table.writerows(self._rows)
            write_text(self.path, text.getvalue())

    def _read(self) -> list[dict[str, str]]:
        """The rows of the interrupted training, without a last line that was cut short."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]
        return [row for row in rows if row.get("step", "").isdecimal()]


def _step(row: dict[str, str]) -> int:
    return int(row["step"])
