"""What a scenario may ask beyond verdict and sound, held against calls recorded from a real Asterisk."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pbxguard.lab import expectations
from pbxguard.lab.evidence import Legs, Observed
from pbxguard.lab.scenario import By, Expect
from pbxguard.lab.wire import Capture
from pbxguard.store import DecisionRow

FRAMES = Path(__file__).parent.parent / "frames"
CDR = {"src": "+85261234567", "dst": "13957100002", "disposition": "ANSWERED", "duration": "3", "billsec": "3"}
SEEN = Observed("allow", "default", 200, answered=True, callee_rang=True, prompt="", prompt_score=0.0,
                post_dial_ms=3.0, heard="whole", callee_heard="cut")  # fmt: skip
DECISION = DecisionRow(
    call_id="1", at=datetime(2026, 6, 1, tzinfo=UTC), channel="voice", trunk="intl", cli_raw="+85261234567",
    cli_key="0085261234567", cli_class="intl_hk", callee_raw="13957100002", callee_key="13957100002",
    verdict="allow", reason="intl_origin_notice", labels=("intl_origin_notice", "mvno"), rule="8.origin",
)  # fmt: skip


def call(name: str) -> tuple[Capture, Legs]:
    """A recorded call and its legs."""
    capture = Capture.load(FRAMES / f"call-{name}.pcap")
    legs = list(capture.calls().values())
    return capture, Legs(legs[0], legs[1] if len(legs) > 1 else None)


def asked(**more: object) -> Expect:
    """An expectation of which only this is looked at here."""
    return Expect.model_validate({"verdict": "allow", "reason": "default", "sip_status": 200} | more)


RIGHT: list[tuple[str, dict[str, object]]] = [
    ("connected", {"heard": "whole", "callee_heard": "cut"}),
    ("connected", {"rang": ["li"]}),
    ("connected", {"rang": ["13957100002"]}),
    ("refused", {"rang": []}),
    ("connected", {"by": By(ringing=1, answer=1, final=1, end=4)}),
    ("refused", {"by": By(final=5, end=5)}),
    (
        "connected",
        {"headers": {"INVITE.From": "Wang.*[+]852", "callee:INVITE.From": "@127.0.0.1", "180.Server": True}},
    ),
    ("connected", {"headers": {"li:INVITE.To": "13957100002", "200.Reason": False, "2xx.contact": "sip:"}}),
    ("refused", {"headers": {"4xx.To": "tag=", "183.Content-Type": "^application/sdp$"}}),
    ("connected", {"decision": {"rule": "^8[.]", "labels": "mvno", "sip_status": "^$"}}),
    ("connected", {"cdr": {"disposition": "^ANSWERED$", "billsec": "^[1-9]"}}),
]


@pytest.mark.parametrize(("name", "more"), RIGHT)
def test_what_is_right_is_no_fault(name: str, more: dict[str, object]) -> None:
    """A call that was as asked has no fault."""
    assert expectations.faults(asked(**more), *call(name), SEEN, DECISION, CDR) == ()


WRONG: list[tuple[str, dict[str, object], str]] = [
    ("connected", {"heard": "silence"}, "heard: expected silence, observed whole"),
    ("connected", {"callee_heard": "whole"}, "callee_heard: expected whole, observed cut"),
    ("connected", {"rang": ["zhang", "li"]}, "rang: expected li, zhang, observed li"),
    ("connected", {"rang": []}, "rang: expected none, observed li"),
    ("refused", {"rang": ["zhang"]}, "rang: expected zhang, observed none"),
    ("connected", {"by": By(answer=0.2)}, "by.answer: expected within 0.2 s, observed after 0.305 s"),
    ("refused", {"by": By(answer=2)}, "by.answer: expected within 2.0 s, observed none (100, 183, then 403)"),
    (
        "connected",
        {"headers": {"603.Reason": True}},
        "headers 603.Reason: expected a 603 message, observed INVITE, 100",
    ),
    (
        "connected",
        {"headers": {"200.Reason": True}},
        "headers 200.Reason: expected the header, observed 200 without it",
    ),
    ("connected", {"headers": {"200.Contact": False}}, "expected no such header, observed '<sip:"),
    ("connected", {"headers": {"INVITE.From": "Li"}}, 'headers INVITE.From: expected /Li/, observed \'"Wang" <sip:'),
    ("connected", {"headers": {"INVITE.X-No": "a"}}, "expected /a/, observed no such header"),
    ("connected", {"headers": {"zhang:INVITE.From": "a"}}, "observed no message on that leg"),
    ("connected", {"decision": {"rule": "^7"}}, "decision.rule: expected /^7/, observed '8.origin'"),
    ("connected", {"cdr": {"billsec": "^0$"}}, "cdr.billsec: expected /^0$/, observed '3'"),
    (
        "connected",
        {"cdr": {"cause": "x"}},
        "cdr.cause: expected /x/, observed billsec, disposition, dst, duration, src",
    ),
]


@pytest.mark.parametrize(("name", "more", "said"), WRONG)
def test_what_is_wrong_says_what_was_expected_and_observed(name: str, more: dict[str, object], said: str) -> None:
    """A call that was not as asked has one fault, with what was expected and what was observed."""
    (fault,) = expectations.faults(asked(**more), *call(name), SEEN, DECISION, CDR)

    assert said in fault


def test_no_decision_is_a_fault() -> None:
    """Where the guard recorded nothing, a question about its record is a fault, never an error."""
    wanted = asked(decision={"rule": "8"}, cdr={"billsec": "1"})

    assert expectations.faults(wanted, *call("connected"), SEEN, None, {}) == (
        "decision.rule: expected /8/, observed no decision of the guard",
        "cdr.billsec: expected /1/, observed no CDR of the call",
    )


def test_long_text_of_a_peer_is_cut() -> None:
    """A fault shows no more than the beginning of what a caller wrote, escaped."""
    row = replace(DECISION, detail="\x1b" * 5000)
    (fault,) = expectations.faults(asked(decision={"detail": "x"}), *call("connected"), SEEN, row, {})

    assert "\x1b" not in fault
    assert len(fault) < 1000
