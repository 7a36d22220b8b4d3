"""Tests of the page, junit.xml and ``lab show``: what a person sees, in a real browser, whatever a caller wrote."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from rich.console import Console
from test_wire import ip_packets, packets_of, pcap, sdp, sip

from pbxguard import prompts
from pbxguard.cli.context import App
from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab import cli, evidence, heard, report, show
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Run
from pbxguard.lab.scenario import CallStep, Expect
from pbxguard.lab.wire import Capture

CALLER, PBX = ("198.18.0.21", 5060), ("198.18.0.10", 5060)
CALLER_RTP, PBX_RTP = ("198.18.0.21", 20000), ("198.18.0.10", 16000)
TO = "<sip:1@y>;tag=to1"
PROMPT = heard.load_wav(prompts.path("system_blocklist", "zh"))

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script></pre></style>{{7*7}}"
STEPS = [["1.emergency", "passes", "callee class mobile_cm", 5000], ["5.system_list", "decides", ATTACK, 12300]]


def refusal(call_id, display, sound):
    """A refused call with a prompt as early media, as the capture of it."""
    who = {"call_id": call_id, "sender": f'"{display}" <sip:+85261234567@x>;tag=from1'}
    tag = "X-Pbxguard-Call: 0123456789abcdef\r\n"
    media = packets_of(sound)
    end = 100.02 + media[-1][0]
    records = [
        (100.0, CALLER, PBX, sip("INVITE sip:13957100001@y SIP/2.0", body=sdp(CALLER_RTP), more=tag, **who)),
        (100.001, PBX, CALLER, sip("SIP/2.0 100 Trying", **who)),
        (100.01, PBX, CALLER, sip("SIP/2.0 183 Session Progress", to=TO, body=sdp(PBX_RTP), **who)),
        *[(100.0 + at, PBX_RTP, CALLER_RTP, data) for at, data in media],
        (end, PBX, CALLER, sip("SIP/2.0 603 Decline", to=TO, more="Reason: Q.850;cause=21\r\n", **who)),
        (end + 0.01, CALLER, PBX, sip("ACK sip:1@y SIP/2.0", to=TO, cseq="1 ACK", **who)),
    ]
    return pcap([(at, ip_packets(source, target, data)[0]) for at, source, target, data in records])


def bundle(root, name, *, call_id, display="A", sound=PROMPT, cli="+85261234567", trunk="intl", detail="listed"):
    """One call's evidence in a folder, made as a run makes it."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "call.pcap").write_bytes(refusal(call_id, display, sound))
    capture = Capture.load(folder / "call.pcap")
    legs = evidence.legs_of(capture, "0123456789abcdef")
    decision = SimpleNamespace(
        verdict="block", reason="system_blocklist", labels=(), cli_class="intl_hk", cli_raw=cli,
        prompt="system_blocklist", extra={"languages": ["zh"], "steps": STEPS},
        at=datetime.fromtimestamp(100.002, UTC), elapsed_us=321,
    )  # fmt: skip
    observed = evidence.observe(legs, decision, prompts.PROMPT_DIR)
    expected = Expect(verdict="block", reason="system_blocklist", sip_status=603, prompt="system_blocklist")
    faults = evidence.faults(expected, observed, wanted_languages=("zh",))
    step = CallStep(cli=cli, callee="13957100001", trunk=trunk)
    call = Evidence(name.partition(".")[0], f"{name} {display}", call_id, step, expected, observed, faults, folder)
    evidence.write(folder, capture, legs, call, None)
    (folder / "decision.json").write_text(
        json.dumps(vars(decision) | {"rule": "5.system_list", "detail": detail, "pack": "cn"}, default=str)
    )
    return call


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
    """Three calls: a good one, a hostile one, and one whose prompt was cut off."""
    folder = tmp_path_factory.mktemp("evidence") / "20261122-000000-abcd"
    run = Run(folder.name, folder, "asterisk", skipped=[{"scenario": "other", "why": "not for this PBX \x00"}])
    run.calls = [
        bundle(folder, "good", call_id="good-call-id@x"),
        bundle(folder, "hostile", call_id=f"evil{ATTACK}", display=f"x' {ATTACK} \u202e\x1b[2J", cli=ATTACK,
               trunk="natl", detail=ATTACK),
        bundle(folder, "broken", call_id="broken-call-id@x", sound=PROMPT[: len(PROMPT) // 2]),
    ]  # fmt: skip
    report.write(run, "cn")
    return run


def test_cut_prompt_is_the_fault_and_says_how_much_was_heard(run):
    """Half a prompt fails the call, with the part that was heard."""
    good, hostile, broken = run.calls
    assert good.faults == hostile.faults == ()
    assert broken.observed.heard == "cut"
    assert any("system_blocklist" in fault for fault in broken.faults)
    assert broken.observed.pieces[0].part[1] == pytest.approx(len(PROMPT) / 16000, abs=0.3)


def test_a_gap_and_a_short_cut_fail_a_call_whose_score_is_high(tmp_path):
    """A prompt that lacks its last 0.9 s, 0.5 s in its middle or 40 ms of each 100 is a fault, if above the limit."""
    gap = PROMPT.copy()
    gap[20000:24000] = 0
    many = PROMPT.copy()
    many[: len(many) // 800 * 800].reshape(-1, 800)[:, :320] = 0
    heard_as = (
        ("short", PROMPT[:-8000], "cut, 0."),
        ("gap", gap, "gaps, not heard at 2."),
        ("many", many, "% of it there"),
    )
    for name, sound, words in heard_as:
        call = bundle(tmp_path, name, call_id=f"{name}-id", sound=sound)
        assert call.observed.prompt_score >= evidence.HEARD
        assert len(call.faults) == 1
        assert "expected system_blocklist whole" in call.faults[0]
        assert words in call.faults[0]

    found = show.read(tmp_path / "many")
    assert re.search(r"gaps \(0\.\d+\), 6\d% of it there", "\n".join(show.timeline(found)))
    del found.result["observed"]["pieces"][0]["share"]  # as evidence of before has it
    assert "there" not in "\n".join(show.timeline(found))


def test_a_pause_is_no_fault_and_is_told(tmp_path):
    """A PBX that stood still in mid-prompt and played on has played it; the evidence says how long it was silent."""
    late = np.concatenate([PROMPT[:16000], np.zeros(2640, np.int16), PROMPT[16000:]])
    call = bundle(tmp_path, "late", call_id="late-id", sound=late)

    assert call.faults == ()
    (piece,) = call.observed.pieces
    assert evidence.heard_words(piece) == "system_blocklist (zh) whole, with 0.33 s of pause in it"


def test_report_json_keeps_its_contract(run):
    """The fields of DESIGN section 7 are there, the new ones beside them."""
    found = json.loads((run.folder / "report.json").read_text())
    assert (found["passed"], found["failed"]) == (2, 1)
    seen = found["calls"][0]["observed"]
    assert {"verdict", "reason", "sip_status", "answered", "callee_rang", "prompt", "prompt_score",
            "post_dial_ms"} <= set(seen)  # fmt: skip
    assert seen["heard"] == "whole"
    assert seen["pieces"][0]["span"] == seen["span"]


def test_junit_has_the_shape_that_ci_reads(run):
    """Only elements and attributes of the Jenkins schema, counts agree, and a failure has its cause and the link."""
    suite = ET.parse(run.folder / "junit.xml").getroot()
    assert suite.tag == "testsuite"
    assert set(suite.attrib) <= {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}
    cases = list(suite)
    assert {case.tag for case in cases} == {"testcase"}
    assert all(set(case.attrib) == {"classname", "name", "time"} and float(case.get("time")) >= 0 for case in cases)
    results = [child for case in cases for child in case]
    assert {child.tag for child in results} <= {"failure", "skipped"}
    counted = {tag: len([child for child in results if child.tag == tag]) for tag in ("failure", "skipped")}
    told = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    assert told == {"tests": len(cases), "failures": counted["failure"], "errors": 0, "skipped": counted["skipped"]}
    (failure,) = (child for child in results if child.tag == "failure")
    assert set(failure.attrib) == {"message", "type"}
    assert "expected system_blocklist" in failure.get("message")
    assert "observed" in failure.get("message")
    assert re.search(r"elapsed: \d+\.\d+ s", failure.text)
    folder = re.search(r"evidence: file://(\S+)/", failure.text).group(1)
    assert (Path(folder) / "call.pcap").is_file()
    assert "report.html#broken" in failure.text


def test_page_has_no_text_of_a_caller_as_markup(run):
    """The only script and style are the page's own, no handler is an attribute, nothing is loaded from anywhere."""
    page = (run.folder / "report.html").read_text()
    assert page.lower().count("<script") == 1
    assert page.lower().count("<style") == 1
    assert "<img" not in page.lower()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_forty_calls_stay_small(run):
    """A page of forty calls like these is less than 15 MB."""
    forty = Run("big", run.folder, "asterisk", calls=[run.calls[0]] * 40)
    assert len(report._html(forty, "cn").encode()) < 6_000_000


# in a browser


@pytest.fixture(name="browser", scope="module")
def _browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here; `apt-get install chromium` (any of chromium, chromium-browser, google-chrome)")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(name="page", params=["desktop-light", "phone-dark"])
def _page(browser, run, request):
    """The report, opened from its file; a test fails on anything that the browser complains about."""
    size = {"width": 1280, "height": 900} if request.param == "desktop-light" else {"width": 390, "height": 844}
    context = browser.new_context(viewport=size, color_scheme=request.param.split("-")[1], offline=True)
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto((run.folder / "report.html").as_uri())
    yield page
    context.close()
    assert said == []


def colours(png):
    """How many different bytes the picture's rows have: a blank one has next to none."""
    data, at = b"", 8
    while at < len(png):
        length, kind = struct.unpack_from("!I4s", png, at)
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return len(set(zlib.decompress(data)))


def open_call(page, name):
    """Open the call's details."""
    page.locator(f"#{name} .open").click()
    return page.locator(f"#{name} .detail")


def test_page_shows_a_call(page):
    """It loads and is no blank picture; a call opens to ladder, waveform, steps and files, within the screen."""
    detail = open_call(page, "good")
    assert detail.locator(".ladder .arrow").count() == 6
    assert "INVITE" in detail.locator(".ladder").text_content()
    assert detail.locator(".wave .mark.whole").count() == 1
    detail.locator("summary").click()
    assert "12.3" in detail.locator(".steps").inner_text()
    assert detail.get_by_role("link", name="call.pcap").get_attribute("href") == "good/call.pcap"
    assert colours(page.screenshot()) > 60
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_message_is_read_by_mouse_and_keyboard(page):
    """A click, or Enter, on a message shows its text, and again hides it."""
    detail = open_call(page, "good")
    arrow = detail.locator(".arrow[data-text]").first
    arrow.click()
    assert detail.locator("pre:visible").inner_text().startswith("INVITE sip:13957100001@y")
    arrow.press("Enter")
    assert detail.locator("pre:visible").count() == 0
    detail.locator(".arrow[data-text]").last.press("Enter")
    assert detail.locator("pre:visible").inner_text().startswith("ACK ")


def test_audio_plays(page):
    """Nothing is decoded until asked; the play button plays the prompt, and the sound is as long as it was."""
    detail = open_call(page, "good")
    state = "document.querySelector('#good audio').{}"
    assert page.evaluate(state.format("readyState")) == 0
    detail.locator(".play").click()
    page.evaluate(
        "new Promise((ok) => document.querySelector('#good audio').addEventListener('timeupdate', "
        "(event) => event.target.currentTime > 0.1 && ok()))"
    )
    assert page.evaluate(state.format("duration")) == pytest.approx(len(PROMPT) / 8000, abs=0.1)
    assert float(detail.locator(".head").get_attribute("x1")) > 0
    detail.locator(".play").click()
    assert page.evaluate(state.format("paused"))


def test_filter_chooses_calls(page):
    """By failure, verdict, trunk and words, and back to all."""
    shown = lambda: [call.get_attribute("id") for call in page.locator("tbody.call:visible").all()]  # noqa: E731
    assert shown() == ["good", "hostile", "broken"]
    page.get_by_label("only what failed").check()
    assert shown() == ["broken"]
    page.get_by_label("only what failed").uncheck()
    page.get_by_label("Trunk").select_option("natl")
    assert shown() == ["hostile"]
    page.get_by_label("Trunk").select_option("")
    page.get_by_label("Words").fill("GOOD")
    assert shown() == ["good"]
    page.get_by_role("button", name="All").click()
    page.get_by_label("Verdict").select_option("block")
    assert shown() == ["good", "hostile", "broken"]
    assert page.locator("#shown").inner_text() == "3 of 3 calls"


def test_hostile_text_stays_text(page):
    """Display name, Call-ID, CLI and decision hold markup and scripts: they are shown, and nothing of them ran."""
    detail = open_call(page, "hostile")
    assert "<script>alert(2)</script>" in page.locator("#hostile .sum").inner_text()
    assert "<img src=x onerror=alert(1)>" in detail.inner_text()
    assert "49" not in page.locator("#hostile .from").inner_text()
    detail.locator(".arrow[data-text]").first.click()
    text = detail.locator("pre:visible").inner_text()
    assert "Call-ID: evil<img src=x" in text
    assert "\\x1b[2J" in text
    assert page.evaluate("document.scripts.length + document.images.length") == 1


def test_link_opens_its_call(browser, run):
    """The link of junit.xml opens the page with that call unfolded."""
    page = browser.new_page()
    page.goto((run.folder / "report.html").as_uri() + "#broken")
    assert page.locator("#broken .detail").is_visible()
    assert "system_blocklist" in page.locator("#broken .faults").inner_text()
    page.close()


# in a terminal


def shown(*words):
    """What ``pbxguard lab show`` prints."""
    return subprocess.run(
        [sys.executable, "-m", "pbxguard", "lab", "show", *words],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"COLUMNS": "160"},
    )  # fmt: skip


def test_show_prints_the_evidence_of_a_call(run):
    """Ladder, what was heard with its timeline, steps, expected and observed, for a scenario's name."""
    found = shown("broken", "--evidence", str(run.folder.parent))
    assert found.returncode == 0, found.stderr
    assert "──INVITE (SDP)──" in found.stdout
    assert "the caller heard: cut" in found.stdout
    assert re.search(
        r"█{10,}.* 0\.\d\d to .*system_blocklist zh, cut \(0\.\d+\), 0\.\d+ to 2\.\d+ of its 4\.47 s", found.stdout
    )
    assert "5.system_list" in found.stdout
    assert re.search(r"sip_status\W+603\W+603\W+✓", found.stdout)
    assert "prompt: expected system_blocklist" in found.stdout


def test_show_prints_nothing_that_a_terminal_acts_on(run):
    """The hostile call's text reaches the terminal escaped."""
    found = shown("hostile", "--evidence", str(run.folder.parent))
    assert found.returncode == 0, found.stderr
    assert "\x1b" not in found.stdout
    assert "\u202e" not in found.stdout


def test_show_as_json(run):
    """Scripts get the result with the decision and the folder."""
    found = json.loads(shown("good", "--json", "--evidence", str(run.folder.parent)).stdout)
    assert found["observed"]["heard"] == "whole"
    assert found["decision"]["rule"] == "5.system_list"
    assert found["evidence"].endswith("good")


def test_show_finds_by_call_id_folder_and_newest_run(run, tmp_path):
    """The beginning of a Call-ID and a path find a call, and the newest run with it counts."""
    root = run.folder.parent
    assert show.find(root, "broken-call") == run.folder / "broken"
    assert show.find(root, "broken-call"[: show.CALL_ID]) == run.folder / "broken"
    with pytest.raises(UnknownName):
        show.find(root, "broken-call"[: show.CALL_ID - 1])
    assert show.find(tmp_path, str(run.folder / "good")) == run.folder / "good"
    for name in ("20261122-000000-aaaa", "20261122-000001-0000"):
        bundle(tmp_path / name, "good", call_id="good-call-id@x", sound=PROMPT[:8000])
    assert show.find(tmp_path, "good").parent.name == "20261122-000001-0000"


def test_show_says_what_there_is(run, tmp_path):
    """An unknown call, one that is not told from others, an empty folder and a broken file are one line each."""
    with pytest.raises(UnknownName, match="the newest run has broken, good, hostile"):
        show.find(run.folder.parent, "nobody")
    with pytest.raises(UnknownName, match="no evidence here"):
        show.find(tmp_path / "none", "good")
    for number in (1, 2):
        bundle(tmp_path / "20261122-000000-aaaa", f"twice.{number}", call_id=f"twice-{number}", sound=PROMPT[:8000])
    with pytest.raises(UnknownName, match=r"fits several calls of .*: twice\.1, twice\.2"):
        show.find(tmp_path, "twice")
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(BadInput, match=r"result\.json"):
        show.read(tmp_path)


def test_page_without_capture_still_tells_the_result(run, tmp_path):
    """A call whose INVITE never came has a row, its fault, and no drawing."""
    lost = replace(run.calls[0], folder=None, call_id="", faults=("the INVITE did not reach the PBX",))
    alone = Run("lost", tmp_path, "asterisk", calls=[lost])
    report.write(alone, "cn")
    page = (tmp_path / "report.html").read_text()
    assert "the INVITE did not reach the PBX" in page
    assert 'class="ladder"' not in page


def test_everything_asked_stands_beside_what_was_observed():
    """The table of a call has a row for all that its scenario asks, wire and records too, and marks what differs."""
    asked = Expect.model_validate(
        {
            "verdict": "block", "reason": "system_blocklist", "sip_status": 603, "rang": ["zhang"],
            "two_way_audio": True, "headers": {"caller:603.Reason": "Q.850; x", "callee:INVITE.From": True},
            "by": {"final": 2.0}, "decision": {"rule": "^5"}, "cdr": {"src": "852"}, "max_post_dial_ms": 100.0,
        }
    )  # fmt: skip
    faults = [
        "verdict: expected block, observed allow by rule 10.allow (no rule speaks against it)",
        "rang: expected zhang, observed none",
        "headers caller:603.Reason: expected /Q.850; x/, observed no such header",
        "by.final: expected within 2.0 s, observed after 3.1 s",
    ]
    observed = {"verdict": "allow", "reason": "system_blocklist", "sip_status": 603, "answered": False}
    rows = show.compared({"expected": asked.model_dump(exclude_none=True), "observed": observed, "faults": faults})
    told = {name: (want, seen, same) for name, want, seen, same in rows}
    assert told == {
        "answered": ("no", "no", True),
        "verdict": ("block", "allow by rule 10.allow (no rule speaks against it)", False),
        "reason": ("system_blocklist", "system_blocklist", True),
        "sip_status": ("603", "603", True),
        "two_way_audio": ("yes", "as expected", True),
        "rang": ("zhang", "none", False),
        "headers caller:603.Reason": ("/Q.850; x/", "no such header", False),
        "headers callee:INVITE.From": ("there", "as expected", True),
        "by.final": ("within 2.0 s", "after 3.1 s", False),
        "decision.rule": ("/^5/", "as expected", True),
        "cdr.src": ("/852/", "as expected", True),
        "post-dial delay": ("at most 100.0 ms", "as expected", True),
    }


def test_what_follows_from_another_verdict_is_one_line():
    """In a terminal the cause stands first, and what only follows from it does not hide it."""
    cause, more = (
        "verdict: expected block, observed allow",
        ["answered: expected no, observed yes", "rang: x", "by: y"],
    )
    assert show.fault_lines(["INVITE: x", cause, *more]) == ("INVITE: x", cause, f"and so: {'; '.join(more)}")
    assert show.fault_lines([cause, more[0]]) == (cause, more[0])
    assert show.fault_lines(more) == tuple(more)


@pytest.mark.parametrize("width", [80, 100])
def test_a_run_reads_well_in_a_narrow_terminal(run, monkeypatch, width):
    """At 80 columns a run is lines that break between words: no number, name or reason is cut in two."""
    monkeypatch.setenv("COLUMNS", str(width))
    console = Console(file=io.StringIO(), width=width, soft_wrap=True, highlight=False)
    monkeypatch.setattr(cli, "out", console)
    cli._show(run, App(None))
    said = console.file.getvalue()
    assert "✓ block: +85261234567 on intl to 13957100001 (zhang, zhejiang)\n" in said
    assert "(system_blocklist)" in said
    calls = said[: said.index("✗ asterisk: ")].splitlines()
    assert max(map(len, calls)) <= width
    assert "\x1b" not in said


def test_why_names_the_opt_in_that_let_a_call_through(run):
    """Of an allowed call that would have been refused but for an opt-in, why is the opt-in and not a label."""
    call = run.calls[0]
    opted_in = "the callee opted in to hmt since 2026-11-22 17:04:28+08:00 (registry open), else hmt calls are off"
    seen = replace(call.observed, verdict="allow", reason="intl_origin_notice", opted_in=opted_in)
    said = "The callee opted in to hmt since 2026-11-22 17:04:28+08:00 (registry open)."
    assert report.why_words(replace(call, observed=seen), "cn") == said
    seen = replace(seen, opted_in="")
    assert report.why_words(replace(call, observed=seen), "cn") == "The call comes from abroad."
