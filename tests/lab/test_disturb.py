"""Links and disturbances of scenarios: what is read and refused, what is skipped, and what is told of them."""

import asyncio
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree as ET

import dpkt
import pytest
from test_wire import frame, ip_packets, pcap, rtp

from pbxguard.errors import BadInput
from pbxguard.lab import scenariofile
from pbxguard.lab.capture import merge
from pbxguard.lab.links import LinkFault
from pbxguard.lab.run import run_scenarios
from pbxguard.lab.scenario import Disturb, Scenario
from pbxguard.lab.wire import Capture
from pbxguard.lab.world import World

FOLDER = Path(__file__).parents[1] / "scenarios"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="links are changed by root only")

SHAKY = """\
title = "shaky"
alone = true
[vars]
loss = 5.0
[actors.gateway]
trunk = "intl"
cli = "+85261234567"
[actors.victim]
phone = "zhang"
[[step]]
title = "one call"
call = { from = "gateway", to = "victim", hang_up_after = 2.0 }
[[step.links]]
actor = "gateway"
loss = "${loss}"
[[step.links]]
actor = "pbx"
peer = "guard"
cut = true
when = "answered"
after = 1.5
restore_after = 2
[[step.disturb]]
what = "handler killed"
when = "ringing"
restore_after = 0.5
[step.expect]
verdict = "block"
reason = "intl_default_off"
sip_status = 487
prompt = "intl_default_off"
prompt_cut = true
"""


def read(folder: Path, text: str) -> Scenario:
    path = folder / "x.toml"
    path.write_text(text)
    (found,) = scenariofile.read(path)
    return found


def test_links_and_disturbances_are_read(tmp_path: Path) -> None:
    """A step has what befalls lines and programs, with the lab's names for the file's actors, and variables."""
    (step,) = read(tmp_path, SHAKY).step

    assert step.links == (
        LinkFault(actor="intl", loss=5.0),
        LinkFault(actor="pbx", peer="guard", cut=True, when="answered", after=1.5, restore_after=2),
    )
    assert [fault.at_once for fault in step.links] == [True, False]
    assert step.disturb == (Disturb(what="handler killed", when="ringing", restore_after=0.5),)


def test_a_called_actor_is_its_telephone(tmp_path: Path) -> None:
    """The link of an actor who is called is that of the telephone, also where the file has its number."""
    for phone in ("zhang", "13957100001"):
        text = SHAKY.replace('phone = "zhang"', f'phone = "{phone}"').replace('actor = "gateway"', 'actor = "victim"')
        assert read(tmp_path, text).step[0].links[0].actor == "zhang"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('actor = "gateway"', 'actor = "intel"', "step 1: links: actor 'intel' is nobody.*; did you mean intl?"),
        ('peer = "guard"', 'peer = "gard"', "peer 'gard' is nobody in the lab who has a link; did you mean guard?"),
        ('actor = "gateway"', 'actor = "guard"', "links: actor 'guard' is nobody"),
        ('actor = "gateway"', 'actor = "engineer-zj"', "links: actor 'engineer-zj' is nobody"),
        ('actor = "gateway"', 'actr = "gateway"', "step 1: links.*unknown key 'actr'; did you mean actor?"),
        ("alone = true\n", "", "which other calls would feel too, so the file needs `alone = true`"),
        ('loss = "${loss}"', 'loss = "${loss}"\ncut = true', "say one of: cut, dns_gone, or some of rate_kbit"),
        ('loss = "${loss}"', "loss = 101", "less than or equal to 100, not '101'"),
        ('loss = "${loss}"', 'loss = 1\naddress = "198.18.0.21"', "`address` is another in every world"),
        ('what = "handler killed"', 'what = "handler slain"', "step 1: disturb.*not 'handler slain'"),
        ('what = "handler killed"', 'what = "pbx restart"', "a pbx restart ends when everybody"),
        ('when = "ringing"', 'when = "placed"', "step 1: disturb.*'invite', 'ringing' or 'answered'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A wrong name, key or value of links and disturbances is one line that says where, and what was meant."""
    assert old in SHAKY
    text = SHAKY.replace(old, new, 1)
    with pytest.raises(BadInput, match=said) as error:
        read(tmp_path, text)

    assert "\n" not in str(error.value)


def test_calls_at_once_have_one_set_of_disturbances(tmp_path: Path) -> None:
    """Of steps that are placed together only the first may say what befalls links and programs."""
    step = SHAKY.partition("[[step]]\n")[2]
    text = SHAKY.replace("alone = true\n", "alone = true\ntogether = true\n") + "[[step]]\n" + step

    with pytest.raises(BadInput, match="placed `together`, so what befalls links and programs stands in the first"):
        read(tmp_path, text)


# -- the caller's end ------------------------------------------------------------------------------------------

CALLER, PBX, PHONE = ("198.18.0.22", 16000), ("198.18.0.10", 16002), ("198.18.1.103", 16004)


def summed(packet: bytes, *, open_: bool = False) -> bytes:
    """The packet with its IP and UDP checksums (RFC 791, RFC 768); or that of UDP left to the card."""
    ip = dpkt.ip.IP(packet)
    header = bytearray(packet[:20])
    struct.pack_into("!H", header, 10, dpkt.in_cksum(bytes(header)))
    udp = bytearray(packet[20:])
    pseudo = ip.src + ip.dst + struct.pack("!BBH", 0, 17, len(udp))
    struct.pack_into("!H", udp, 6, 0xFFFF ^ dpkt.in_cksum(pseudo) if open_ else dpkt.in_cksum(pseudo + bytes(udp)))
    return bytes(header + udp)


def stream(
    source: tuple[str, int], destination: tuple[str, int], *, open_: bool = False
) -> list[tuple[float, bytes]]:
    sound = [rtp(n, 160 * n, bytes([n]) * 160) for n in range(10)]
    return [(n / 50, summed(ip_packets(source, destination, data)[0], open_=open_)) for n, data in enumerate(sound)]


def damaged(packet: bytes, at: int) -> bytes:
    whole = bytearray(packet)
    whole[at] ^= 1
    return bytes(whole)


def test_the_callers_packets_are_those_that_reached_it(tmp_path: Path) -> None:
    """What was lost on the caller's link, or damaged so that its kernel drops it, is not in the merged capture."""
    at_pbx, at_caller = tmp_path / "call.pcap", tmp_path / "caller.pcap"
    sent, onward = stream(PBX, CALLER, open_=True), stream(PBX, PHONE)
    at_pbx.write_bytes(pcap(sorted([*sent, *onward], key=lambda each: each[0])))
    arrived = [sent[0], *stream(PBX, CALLER)[1:5], *sent[7:]]
    arrived[1] = (arrived[1][0], damaged(arrived[1][1], 12))  # its source address
    arrived[2] = (arrived[2][0], damaged(arrived[2][1], 60))  # its sound
    at_caller.write_bytes(pcap(arrived))

    merge(at_pbx, at_caller, IPv4Address(CALLER[0]))

    with at_pbx.open("rb") as file:
        kept = [bytes(data) for _, data in dpkt.pcap.Reader(file)]
    assert sorted(kept) == sorted(frame(data, 276) for _, data in [arrived[0], *arrived[3:], *onward])
    assert Capture.load(at_pbx).messages == ()
    assert not at_caller.exists()


def test_an_empty_capture_is_merged(tmp_path: Path) -> None:
    """A caller whose container wrote nothing leaves the PBX's side of the other leg."""
    at_pbx, at_caller = tmp_path / "call.pcap", tmp_path / "caller.pcap"
    at_pbx.write_bytes(pcap(stream(PBX, PHONE)))
    at_caller.write_bytes(b"")
    before = at_pbx.read_bytes()

    merge(at_pbx, at_caller, IPv4Address(CALLER[0]))

    with at_pbx.open("rb") as file:
        assert len(list(dpkt.pcap.Reader(file))) == 10
    assert len(at_pbx.read_bytes()) == len(before)


# -- in the lab ------------------------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.timeout(120)
@needs_root
def test_what_the_machine_cannot_do_is_skipped_and_the_rest_runs(
    world: World, pbxguard: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    """Without TAP interfaces a link to one peer is skipped by name with the reason; a cut line still runs.

    The evidence of that call says what was set, when, and was read back: report, ``lab show``, page.
    """
    if shutil.which("unshare") is None:
        pytest.skip("no unshare (util-linux), to hide /dev/net/tun from one process")
    command = (
        "unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/net/tun && exec "$@"', "sh",
    )  # fmt: skip
    run = pbxguard(
        "lab", "run", "guard-slow-1-in-time", "link-cut", "--scenarios", str(FOLDER), "--evidence", str(tmp_path),
        before=command,
    )  # fmt: skip

    assert run.returncode == 0, run.stdout + run.stderr
    why = "link of pbx: only some of its traffic is meant, and no TAP interface can be made: "
    assert f"asterisk: skipped guard-slow-1-in-time: {why}" in run.stdout
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "report.json").read_text())
    assert [each["scenario"] for each in found["skipped"]] == ["guard-slow-1-in-time"]
    assert found["skipped"][0]["why"].startswith(why)
    skipped = ET.parse(folder / "junit.xml").getroot().find("testcase/skipped")
    assert skipped is not None
    assert skipped.get("message", "").startswith(why)

    (call,) = found["calls"]
    assert (call["scenario"], call["passed"]) == ("link-cut", True)
    (line,) = call["disturbed"]
    assert line.startswith("natl eth0: cut both ways (link down), from 1.")
    assert line in (folder / "report.html").read_text()
    assert f"disturbed: {line}" in pbxguard("lab", "show", "link-cut", "--evidence", str(tmp_path)).stdout


@pytest.mark.lab
@pytest.mark.timeout(120)
@needs_root
def test_a_disturbance_that_never_comes_is_a_fault(world: World, tmp_path: Path) -> None:
    """A refused call is never answered, so what waits for that did not happen, and the call fails with the reason."""
    late = SHAKY.replace('loss = "${loss}"', "delay_ms = 10")
    run = asyncio.run(run_scenarios(world, [read(tmp_path, late)], tmp_path / "evidence"))

    (call,) = run.calls
    missed = [fault for fault in call.faults if "the call's end before" in fault]
    assert missed[0].startswith("links: pbx: expected 1.5 s after answered, observed the call's end before")
    assert missed[1].startswith("disturb: handler killed: expected 0 s after ringing, observed the call's end before")
    assert len(call.faults) == 2
    assert call.disturbed[0].startswith("intl eth0: delay_ms 10 both ways (")
    assert " frames" in call.disturbed[0]
