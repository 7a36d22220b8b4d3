"""Why nobody took a call, in words for who placed it by hand. Asks the lab and the call's capture; places no call."""

from pbxguard.errors import BadInput
from pbxguard.lab import evidence
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.expectations import legs_to_phones, phone_of
from pbxguard.lab.topology import GROUPS, PHONES
from pbxguard.lab.wire import Capture, Leg
from pbxguard.lab.world import World

_LISTED = "`pbxguard lab status` lists the telephones"


def remark(world: World, call: Evidence) -> str:
    """One line that names what is the matter and the remedy; "" where the call says it itself.

    Args:
        world: The lab, up, as it is right behind the call.
        call: What was observed.
    """
    seen, number = call.observed, call.call.number
    phone = next((phone for phone in PHONES if phone.number == number), None)
    known = phone is not None or any(group.number == number for group in GROUPS)
    if seen.sip_status is None or seen.sip_status < 400 or seen.verdict == "block":
        return ""
    if said := _of_telephones(call):
        return said
    if seen.callee_rang:
        return ""
    if not seen.recorded and world.handler.pid is None:
        return "the handler does not run; `pbxguard lab up` starts it"
    if not known:
        # The dialplan of a trunk takes what looks like a subscriber of the lab and refuses the rest unasked.
        return f"no telephone of the lab has the number {number}; {_LISTED}"
    if phone is None or number in world.registered():
        return ""
    if phone.is_free:
        return (
            f"nobody is registered as {number} ({phone.name}); `pbxguard lab softphones` shows what to type into "
            "your telephone"
        )
    if phone.behaviour == "absent":
        return f"{number} ({phone.name}) is the telephone that is never registered; {_LISTED}"
    return f"the softphone of {number} ({phone.name}) is not registered; {_LISTED}, `pbxguard lab doctor` looks why"


def _of_telephones(call: Evidence) -> str:
    """What the telephones that were called did, where they did nothing: one that was silent, or rang in vain."""
    if call.folder is None:
        return ""
    try:
        capture = Capture.load(call.folder / "call.pcap")
    except BadInput:
        return ""
    caller = capture.calls().get(call.call_id)
    legs = legs_to_phones(capture, evidence.Legs(caller, None)) if caller is not None else ()
    if rang := [leg for leg in legs if leg.rang and leg.cancelled and not leg.answered]:
        seconds = max(map(_rang_for, rang))
        names = " and ".join(dict.fromkeys(map(phone_of, rang)))
        return f"nobody answered in {seconds:.0f} s at {names}, which rang"
    for leg in legs:
        if leg.final is None and not leg.provisionals:
            number = next((p.number for p in PHONES if p.name == phone_of(leg)), phone_of(leg))
            return (
                f"the telephone at {leg.callee} that is registered as {number} did not answer the INVITE: is it "
                "still running, and does its NAT or firewall let UDP back?"
            )
    return ""


def _rang_for(leg: Leg) -> float:
    begin = next(each.at for each in leg.provisionals if each.status == 180)
    return next(message.at for message in leg.messages if message.method == "CANCEL") - begin
