"""Text tables: the numbers of numpy's reader, and an error that names file and line for everything else."""

from pathlib import Path

import numpy as np
import pytest

from pcattn.io.text import read_table
from pcattn.utils.errors import DatasetBrokenError


def write(folder: Path, text: str) -> Path:
    path = folder / "cloud.txt"
    path.write_bytes(text.encode())
    return path


class TestReadTable:
    @pytest.mark.parametrize("form", ["%.6f", "%.9g", "%.25f", "%e", "%+.3E", "%.0f"])
    @pytest.mark.parametrize("separator", [" ", ",", "\t", ", ", ";"])
    def test_equals_numpy(self, form: str, separator: str, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(50, 7)) * 10.0 ** rng.integers(-12, 12, size=(50, 7))
        np.savetxt(tmp_path / "cloud.txt", values, fmt=form, delimiter=separator)
        table = read_table(tmp_path / "cloud.txt")
        lines = (tmp_path / "cloud.txt").read_text().splitlines()
        expected = np.array([line.replace(separator, " ").split() for line in lines])
        np.testing.assert_array_equal(table, expected.astype(np.float64).astype(np.float32))
        assert table.dtype == np.float32

    @pytest.mark.parametrize(
        "text",
        [
            "1 2 3\n4 5 6\n",
            "1 2 3\n4 5 6",
            "1 2 3\r\n4 5 6\r\n",
            "\n# x y z\n1 2 3 # first\n\n  4\t5 6  \n \n",
            "+1. 2e0 .3e+1\n400e-2,5.0E0,0.00006e5",
            "\ufeff1,2,3,\n4,5,6,\n",
            "1 2 3\r4 5 6\r",
        ],
    )
    def test_ways_to_write(self, text: str, tmp_path: Path) -> None:
        np.testing.assert_array_equal(read_table(write(tmp_path, text)), [[1, 2, 3], [4, 5, 6]])

    def test_extreme_numbers(self, tmp_path: Path) -> None:
        text = f"1e-400 3.4028234e38 {'1' * 30}e-29\n0e99999999999 -0 0.{'0' * 30}1"
        expected = np.array([[0, 3.4028234e38, 10 / 9], [0, 0, 1e-31]], np.float32)
        np.testing.assert_allclose(read_table(write(tmp_path, text)), expected, rtol=1e-7)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected lines of numbers, but got none"),
            ("# x y z\n\n", "expected lines of numbers, but got none"),
            ("1 2\n3 4\n", "at least 3 numbers, but got 2"),
            ("1 2 3\n\n4 5\n", "expected 3 numbers on every line as on the first, but got 2 on line 3"),
            ("1 2 3\n4 5 6 7\n", "but got 4 on line 2"),
            ("1 2 3\n4 nan 6\n", "finite numbers, but got 'nan' on line 2"),
            ("1 2 3\n4 -Inf 6\n", "finite numbers, but got '-Inf' on line 2"),
            ("1 2 1e39\n", "finite numbers, but got '1e39' on line 1"),
            ("1 2 3\n4 5 6x\n", "numbers, but got '6x' on line 2"),
            ("x,y,z\n1,2,3\n", "numbers, but got 'x' on line 1"),
            ("1 2 .\n", r"numbers, but got '\.' on line 1"),
            ("1 2 3e\n", "numbers, but got '3e' on line 1"),
            ("1 2 -\n", "numbers, but got '-' on line 1"),
            ("\x89PNG\r\n\x1a\n\x00\x01", "expected"),
        ],
    )
    def test_errors(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(DatasetBrokenError, match=rf"cloud\.txt.*{message}"):
            read_table(write(tmp_path, text))
