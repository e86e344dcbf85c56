"""A lock between processes, also in a child process that inherits it."""

import subprocess
import sys
from pathlib import Path

import pytest

from pcattn.utils.errors import InputError
from pcattn.utils.locks import exclusive_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")


def test_other_paths_are_free(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path), exclusive_lock(tmp_path.parent):
        pass
    with exclusive_lock(tmp_path):
        pass


def test_a_child_keeps_the_lock(tmp_path: Path) -> None:
    """Also after the parent has released it."""
    with exclusive_lock(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock or 0,))
    with child, pytest.raises(InputError, match="to be unused, but another process"), exclusive_lock(tmp_path, 0):
        pass
    with exclusive_lock(tmp_path, 0):
        pass
