"""What a PBX does with a verdict: connect, or which prompt, SIP status and headers.

One table from reason group to refusal (DESIGN section 3; RFC 3261 603, RFC 5079 433, RFC 8197 607, RFC 8688
608). Knows what an adapter can send (``Capabilities``); does not know how it sends it.
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from pbxguard.screening.call import Block, Failed, Label, Trunk, Verdict
from pbxguard.screening.pack import Pack


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one adapter can put on the wire.

    Attributes:
        adapter: ``asterisk`` or ``freeswitch``.
        call_info: It can add Call-Info to a refusal, which RFC 8688 section 3.1 wants with 608.
        contact_url: Where a refused caller can complain (the jCard URL), where the site has one.
    """

    adapter: str
    call_info: bool = False
    contact_url: str = ""


#: Stock Asterisk sends any status with PJSIPHangup, but no header of its own on a refusal.
ASTERISK = Capabilities("asterisk")

#: FreeSWITCH adds headers to a refusal (sip_rh_*), so 608 goes out for system refusals; see ``REFUSALS``.
FREESWITCH = Capabilities("freeswitch", call_info=True)


@dataclass(frozen=True, slots=True)
class Treatment:
    """What the PBX is told.

    Attributes:
        connect: Let the call go on.
        status: SIP status of the refusal, or None when connecting.
        mode: How the prompt is played: ``early`` (183 with SDP), ``answer`` (billable) or ``none``.
        prompt: Name of the prompt, or "" for a silent refusal.
        languages: In which languages, in order.
        display: Display name for the callee's telephone, or "" to leave the caller's.
        withhold: The callee must see neither the CLI nor the caller's name (label ``cli_anonymised``).
        call_info: URL for Call-Info, or "".
    """

    connect: bool
    status: int | None = None
    mode: str = "none"
    prompt: str = ""
    languages: tuple[str, ...] = ()
    display: str = ""
    call_info: str = ""
    withhold: bool = False


#: Reason group -> (status, prompt). ``system`` may be upgraded to 608, ``not_opted_in`` too (see below).
_REFUSALS = {
    "not_opted_in": (603, "intl_default_off"),
    "own_block": (607, "subscriber_blocklist"),
    "system": (603, "system_blocklist"),
    "withheld": (433, "cli_missing"),
    "failed": (480, "guard_failed"),
}

#: Labels that the callee sees, the weightiest first; the rest are for the log.
_SHOWN = (
    Label.SIMBOX_SUSPECTED,
    Label.ROAMING_UNKNOWN,
    Label.INTL_ORIGIN_NOTICE,
    Label.VERIFIED_GOV,
    Label.VAS_CALL_CENTRE,
    Label.PRIVACY_NUMBER,
)


def treatment_for(
    verdict: Verdict,
    *,
    trunk: Trunk,
    capabilities: Capabilities,
    pack: Pack,
    language: str,
    has_offer: bool = True,
    may_prompt: bool = True,
    display_name: str = "",
) -> Treatment:
    """What to do with a call.

    Args:
        verdict: The guard's answer; on ``Failed`` the trunk's ``fail`` setting chooses.
        trunk: Where the call came from.
        capabilities: What the adapter can send.
        pack: For texts and languages.
        language: The callee's language, for display texts and as the second language of a prompt.
        has_offer: The INVITE had SDP; without one no early media can reach the caller, so none is played.
        display_name: What the caller wrote as a name; one that poses as a label of ours (``poses``) is replaced by
            the number, also where the guard failed and the trunk's policy lets the call go on.
        may_prompt: False when the trunk's prompt budget is used up (RFC 8688 section 6: a prompt is traffic
            that a small INVITE can trigger).
    """
    withhold = Label.CLI_ANONYMISED in verdict.labels
    connects = trunk.fail == "open" if isinstance(verdict, Failed) else not isinstance(verdict, Block)
    if connects and withhold:
        # A name of ours beside no number would be one more thing that a spoofer can choose.
        return Treatment(connect=True, withhold=True)
    if connects:
        return Treatment(connect=True, display=_display(verdict, pack, language, display_name))
    group = pack.reason_group(verdict.reason)
    status, call_info = refusal(group, capabilities, hostile_ok=trunk.hostile_ok)
    prompt = _REFUSALS[group][1]
    if trunk.prompt == "none" or not may_prompt or (trunk.prompt == "early" and not has_offer):
        return Treatment(connect=False, status=status, call_info=call_info)
    return Treatment(
        connect=False,
        status=status,
        mode=trunk.prompt,
        prompt=prompt,
        languages=_languages(verdict, group, pack),
        call_info=call_info,
    )


def refusal(group: str, capabilities: Capabilities, *, hostile_ok: bool = False) -> tuple[int, str]:
    """SIP status and Call-Info URL of a reason group: all that may differ from one adapter to another."""
    status = _REFUSALS[group][0]
    contact = capabilities.contact_url if capabilities.call_info else ""
    if (group == "not_opted_in" and contact) or (group == "system" and (capabilities.call_info or hostile_ok)):
        status = 608
    # Whoever gets a 608 is told where to complain (RFC 8688 section 3.1).
    return status, contact if status == 608 else ""


def prompt_of(group: str) -> str:
    """Name of the prompt of a reason group."""
    return _REFUSALS[group][1]


def _languages(verdict: Verdict, group: str, pack: Pack) -> tuple[str, ...]:
    """The caller's language, then the home language; for hostile callers the home language alone, kept short."""
    home = pack.home_language
    cli = verdict.basis.cli
    if group in ("system", "failed") or cli is None:
        return (home,)
    if cli.region is None:
        return (home, "en") if group == "withheld" else (home,)
    spoken = pack.languages(cli.region) if cli.group is not None else (home,)
    return tuple(dict.fromkeys((*spoken[:1], home, *spoken[1:])))[:2]


def _display(verdict: Verdict, pack: Pack, language: str, display_name: str) -> str:
    label = next((label for label in _SHOWN if label in verdict.labels), None)
    cli = verdict.basis.cli
    if label is None:
        posing = bool(display_name) and poses(display_name, pack)
        return (cli.key if cli is not None and cli.key else "-") if posing else ""
    text = pack.display(label, language)
    if label is Label.INTL_ORIGIN_NOTICE and cli is not None and cli.region is not None:
        text = f"{text} {pack.region_name(cli.region, language)}"
    return text


#: As many characters of a name are looked at; adapters hand over no more than 80.
_MOST_NAME = 200

#: Letters by their category that no telephone draws: the Hangul fillers.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")


def poses(display_name: str, pack: Pack) -> bool:
    """Whether a name that the caller wrote has the text of a label in it, as a telephone would draw it.

    Compared are letters and digits alone, without case, accents and compatibility forms (UAX 15, NFKD): full-width or
    styled letters, zero-width and format characters, blanks and punctuation between letters hide nothing. Not caught
    are letters that only look alike (Cyrillic U+0435 for ``e``, ``0`` for ``O``: the confusables of UTS 39) or are
    drawn as emoji, the other way to write a Chinese character (traditional for simplified), a translation, and text
    that reads right in another order only (bidirectional controls). For confusables a kept-up list would be needed:
    the Python packages that have one are no longer kept up, and a table of our own would not hold what it promises.
    """
    name = _bare(display_name[:_MOST_NAME])
    return any(text in name for text in _posed_as(tuple([pack.display(s, x) for s in _SHOWN for x in ("zh", "en")])))


@lru_cache(maxsize=16)  # one for each pack
def _posed_as(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(filter(None, map(_bare, texts)))


def _bare(text: str) -> str:
    """Letters and digits only, folded."""
    # Folded twice: what a compatibility form stands for may have a case of its own.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join([c for c in folded if c.isalnum() and c not in _BLANK_LETTERS])
