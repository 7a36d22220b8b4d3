"""Health files: what a process says of itself, and whether it is still that process."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pbxguard.errors import ServiceUnavailable
from pbxguard.pbx.health import Health, Teller, heard, told


def the_one(folder: Path) -> Health:
    (found,) = heard(folder)
    return found


def ends(folder: Path, with_: BaseException) -> None:
    """Serve, and end on that error."""
    with told(folder, "asterisk") as teller:
        teller.say("starting", ready=False)
        raise with_


def test_own_process(tmp_path: Path) -> None:
    """What this process says is heard as alive, and is gone when the block ends."""
    with told(tmp_path, "asterisk") as teller:
        teller.say("here", ready=True)
        one = the_one(tmp_path)
        assert (one.kind, one.pid, one.ready, one.detail, one.alive) == ("asterisk", os.getpid(), True, "here", True)
    assert heard(tmp_path) == []


def test_pid_that_was_used_again(tmp_path: Path) -> None:
    """A process with the pid of the one that spoke, but started at another time, is another one."""
    with told(tmp_path, "asterisk") as teller:
        teller.say("here", ready=True)
        one = the_one(tmp_path)
        fields = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()
        assert one.started == int(fields[22 - 3])  # proc(5): starttime is field 22, state is field 3
        for other in (replace(one, started=one.started - 1), replace(one, started=0)):
            assert not other.alive


def test_file_of_an_older_release(tmp_path: Path) -> None:
    """A file without the time of start is not taken for a running process."""
    old = {"kind": "asterisk", "pid": os.getpid(), "ready": True, "detail": ""}
    (tmp_path / "serve-asterisk.json").write_text(json.dumps(old))
    assert not the_one(tmp_path).alive


def test_process_that_nobody_has_waited_for(tmp_path: Path) -> None:
    """A process that has ended is not alive while its parent has not looked, and not afterwards."""
    script = "import os; from pbxguard.pbx.health import _started; print(_started(os.getpid()))"
    running = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert running.stdout is not None
    one = Health("asterisk", running.pid, ready=True, detail="", started=int(running.stdout.readline()))
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{running.pid}").exists()
    assert not one.alive
    running.communicate()
    assert not one.alive


def test_name_of_a_program_with_brackets(tmp_path: Path) -> None:
    """A program whose name looks like fields of its stat line is read by the right ones."""
    name = tmp_path / ") Z 1 (x"
    name.symlink_to("/bin/sleep")
    with subprocess.Popen([str(name), "60"]) as running:
        try:
            ticks = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[19]
            assert Health("asterisk", running.pid, ready=True, detail="", started=int(ticks)).alive
        finally:
            running.kill()


def test_error_stays(tmp_path: Path) -> None:
    """Why a process ended is left for the next look; any other end leaves nothing."""
    with pytest.raises(ServiceUnavailable):
        ends(tmp_path, ServiceUnavailable("the port is taken"))
    assert (the_one(tmp_path).ready, the_one(tmp_path).detail) == (False, "the port is taken")
    with pytest.raises(KeyboardInterrupt):
        ends(tmp_path, KeyboardInterrupt())
    assert heard(tmp_path) == []


def test_process_that_serves_is_left_alone(tmp_path: Path) -> None:
    """A second process that cannot start takes no word away from the one that serves, in whatever way it ends."""
    with subprocess.Popen(["/bin/sleep", "60"]) as other:
        try:
            ticks = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
            first = Health("asterisk", other.pid, ready=True, detail="first", started=int(ticks))
            (tmp_path / "serve-asterisk.json").write_text(json.dumps(asdict(first)))
            with pytest.raises(ServiceUnavailable):
                ends(tmp_path, ServiceUnavailable("the port is taken"))
            assert the_one(tmp_path) == first
        finally:
            other.kill()
    with told(tmp_path, "asterisk") as teller:
        teller.say("starting", ready=False)
        assert the_one(tmp_path).detail == "starting"


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is not there costs the file and nothing else."""
    teller = Teller(tmp_path / "none" / "serve-asterisk.json", "asterisk")
    teller.say("here", ready=True)
    teller.take_back()
    assert teller.last() is None
