import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mentatlab import home
from mentatlab.home import ServerInfo
from mentatlab.protocol.errors import Code, Conflict, Invalid

INFO = ServerInfo(pid=4711, host="127.0.0.1", port=7070, url="http://127.0.0.1:7070")


def test_one_server_per_home(tmp_path: Path):
    with home.locked(tmp_path / "home"):
        with home.announced(tmp_path / "home", INFO):
            with pytest.raises(Conflict) as caught, home.locked(tmp_path / "home"):
                pass
            assert caught.value.code is Code.HOME_IN_USE
            assert "4711" in caught.value.message
            assert "7070" in caught.value.message
            assert home.running_server(tmp_path / "home") == INFO
        with pytest.raises(Conflict), home.locked(tmp_path / "home"):
            pass
    with home.locked(tmp_path / "home"):
        pass


def test_what_a_killed_server_left_is_not_believed(tmp_path: Path):
    script = (
        "import os; from pathlib import Path; from mentatlab import home\n"
        f"p = Path({str(tmp_path)!r})\n"
        "info = home.ServerInfo(pid=os.getpid(), host='h', port=1, url='u')\n"
        "lock = home.locked(p); said = home.announced(p, info)\n"
        "lock.__enter__(); said.__enter__()\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert home.read_server_info(tmp_path) is not None
    assert home.running_server(tmp_path) is None
    with home.locked(tmp_path):
        pass


def test_two_who_ask_at_once_do_not_take_each_other_for_the_server(tmp_path: Path):
    with home.announced(tmp_path, INFO), (tmp_path / "lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # as another command holds it while it looks
        assert home.running_server(tmp_path) is None


def test_no_server(tmp_path: Path):
    assert home.running_server(tmp_path) is None
    assert home.running_server(tmp_path / "absent") is None
    (tmp_path / "server.json").write_text("{half")
    assert home.running_server(tmp_path) is None


def test_the_key_is_made_once_and_private(tmp_path: Path):
    key = home.home_key(tmp_path / "new")
    assert home.home_key(tmp_path / "new") == key
    assert len(key) > 40
    assert stat.S_IMODE((tmp_path / "new" / "key").stat().st_mode) == 0o600
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["key"]


def test_a_home_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid) as caught:
        home.home_key(tmp_path / "file" / "home")
    assert caught.value.code is Code.BAD_SETTING
    assert os.fspath(tmp_path) in caught.value.message
