"""Why a call rang at no telephone, in words for who placed it by hand. Asks the lab; places no call."""

from pbxguard.lab.evidence import Evidence
from pbxguard.lab.topology import GROUPS, PHONES
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
    if seen.sip_status is None or seen.sip_status < 400 or seen.verdict == "block" or seen.callee_rang:
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
