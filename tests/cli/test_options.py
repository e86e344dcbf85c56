"""Options that several commands share."""

import argparse

import pytest
import torch

from pcattn.cli.options import add_ckpt_path, add_device, at_least, normalize


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="pcattn some")


def test_dashes_and_underscores() -> None:
    args = ["show", "a-b.ply", "--top-k=a-b", "--no_picture", "--a.b-c+=d-e", "-c", "x-y", "-1", "--", "--file-name"]
    expected = [
        "show",
        "a-b.ply",
        "--top_k=a-b",
        "--no_picture",
        "--a.b_c+=d-e",
        "-c",
        "x-y",
        "-1",
        "--",
        "--file-name",
    ]
    assert normalize(args) == expected


def test_renamed_option(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture) -> None:
    add_ckpt_path(parser, help="weights", required=True)
    assert parser.parse_args(["--ckpt_path", "a"]).ckpt_path == "a"
    assert not capsys.readouterr().err
    assert parser.parse_args(["--checkpoint", "a"]).ckpt_path == "a"
    assert capsys.readouterr().err == "pcattn: hint: --checkpoint is now --ckpt_path\n"


def test_device(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    add_device(parser)
    assert parser.parse_args([]).device == "cpu"
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--device", "cuda"])
    assert "expected a CUDA device, but torch sees none" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "message"), [("1", "at least 2, but got 1"), ("two", "an integer, but got 'two'")])
def test_at_least(value: str, message: str, parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture) -> None:
    parser.add_argument("--number", type=at_least(2))
    assert parser.parse_args(["--number", "2"]).number == 2
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--number", value])
    assert f"argument --number: expected {message}" in capsys.readouterr().err
