"""The log of a run, of an interrupted one too."""

from pathlib import Path

from pcattn.training.logger import ResumableCSVLogger


def write(run: Path, *rows: tuple[int, dict[str, float]]) -> str:
    log = ResumableCSVLogger(run)
    for step, metrics in rows:
        log.log_metrics(metrics, step)
    return (run / "metrics.csv").read_text()


def test_new_columns(tmp_path: Path) -> None:
    text = write(tmp_path / "run", (0, {"lr": 0.1}), (4, {"val/oa": 0.5, "epoch": 0}), (4, {"val/oa": 0.25}))
    assert text == "epoch,lr,step,val/oa\n,0.1,0,\n0,,4,0.5\n,,4,0.25\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_steps_made_again(tmp_path: Path) -> None:
    """What a resumed training logs takes the place of what lay behind its checkpoint, whatever was cut short."""
    rows = [(step, {"loss": 1 / step}) for step in range(1, 6)]
    whole = write(tmp_path / "whole", *rows)
    write(tmp_path / "run", *rows[:4])
    with (tmp_path / "run" / "metrics.csv").open("a") as file:
        file.write("0.1")  # killed while it wrote
    assert write(tmp_path / "run", *rows[2:]) == whole


def test_other_columns_of_a_step_stay(tmp_path: Path) -> None:
    write(tmp_path, (3, {"lr": 0.1}), (3, {"val/oa": 0.5}), (4, {"lr": 0.05}))
    assert write(tmp_path, (3, {"val/oa": 0.75})) == "lr,step,val/oa\n0.1,3,\n,3,0.75\n"
