"""`pcattn download`: what it refuses, and what it leaves alone. Nothing is fetched."""

from pathlib import Path

import pytest

from pcattn.cli.main import main


def test_existing_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "modelnet40_ply_hdf5_2048").mkdir()
    with pytest.raises(SystemExit, match="0"):
        main(["download", "modelnet40", "--root", str(tmp_path)])
    assert "exists already" in capsys.readouterr().out


def test_terms_of_use(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["download", "scanobjectnn", "--root", str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith(
        "pcattn: error: expected --accept_terms, which says that you agree to the terms of use at https"
    )
