"""A string on the wire -> Number: its form, its class in the country pack, and the key that lists know it by.

Knows how a number may be written and refuses every other string; never strips, guesses or repairs, because
each repair is a way to spoof (libphonenumber turns ``1230613800138000`` and ``abc13800138000`` into valid
mobiles). Does not know what a rule makes of a class (``policy``).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata

from pbxguard.errors import BadNumber
from pbxguard.screening.pack import BAD_LENGTH, NationalForm, Pack


class Form(StrEnum):
    """How the number was written; the same digits mean different things in different forms."""

    PLUS = "plus"
    IDD00 = "idd00"
    NATIONAL0 = "national0"
    BARE = "bare"
    E164_BARE = "e164_bare"
    WITHHELD = "withheld"
    MISSING = "missing"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Number:
    """A number as heard and as read.

    Attributes:
        raw: As on the wire, cut to 200 characters; written by the caller.
        form: How it was written.
        number_class: Class name of the pack (``mobile_cm``, ``fixed``, ``svc95_vas`` ...), ``intl_<region>``
            for a foreign number (``intl_hk``), ``intl_bad_cc``, ``<class>_bad_length``, ``withheld``,
            ``missing`` or ``invalid``.
        key: The home form under which lists and registry know it: as a subscriber at home would dial it
            (``13800138000``, ``057186554321``, ``95588``), or ``+85261234567``; None where there is none.
        e164: ``+`` and at most 15 digits where the number is one (E.164), else None.
        region: ISO 3166 alpha-2 in lower case (``cn``, ``hk``, ``us``), or None.
        group: ``intl`` or ``hmt`` for a foreign number, else None.
        written: What was read: ``raw`` without parameters and gateway prefix, ``+`` and digits only; "" for what
            is no number.
    """

    raw: str
    form: Form
    number_class: str
    key: str | None = None
    e164: str | None = None
    region: str | None = None
    group: str | None = None
    written: str = ""


_MOST_RAW = 200  # characters of the wire that are kept
_WITHHELD = frozenset({"anonymous", "unavailable", "restricted", "unknown", "private", "withheld"})
# ASCII only: [0-9] does not match full-width or Arabic digits, and fullmatch allows no line end.
_WRITTEN = re.compile(r"\+?[0-9]{1,24}")


def read_cli(
    raw: str,
    pack: Pack,
    wire_format: Collection[str] = (),
    *,
    cli_prefixes: Collection[str] = (),
    at: datetime | None = None,
) -> Number:
    """Read the user part of From or P-Asserted-Identity. Never raises; bounded in time and memory.

    URI parameters are cut (RFC 3966 section 3); after that only ``+`` and 1 to 24 ASCII digits are a number.
    A word for a withheld identity (RFC 3323 section 4.1, ``anonymous``, and what gateways write) is
    ``WITHHELD``: the network knows the caller. Nothing at all is ``MISSING``: nobody does.

    Args:
        raw: As on the wire, percent signs not decoded.
        pack: The country pack of home.
        wire_format: Of the trunk (``TrunkRules.wire_format``). ``e164_bare`` in it means that the carrier
            sends country code and number without a prefix; without it such a number is never guessed.
        cli_prefixes: What this trunk's gateway writes before each CLI (GOIP "CID prefix"). The longest that is
            there is cut, once; what remains must be a number like any other.
        at: Time of the call, aware; None is the time after every date of the pack.
    """
    raw = raw[:_MOST_RAW]
    text = raw.partition(";")[0]
    if not text:
        return Number(raw, Form.MISSING, "missing")
    if cli_prefixes:
        text = text[max((len(prefix) for prefix in cli_prefixes if text.startswith(prefix)), default=0) :]
    if _WRITTEN.fullmatch(text) is not None:
        return _Reading(raw, text, pack, at).read(e164_bare="e164_bare" in wire_format)
    if _is_withheld(text):
        return Number(raw, Form.WITHHELD, "withheld")
    return Number(raw, Form.INVALID, "invalid")


def read_callee(raw: str, pack: Pack, *, at: datetime | None = None) -> Number:
    """Read the called number as the PBX received it. Never raises; the same bounds as ``read_cli``.

    No word means a number here, and parameters are not cut: the PBX dials the whole string, so
    ``110;13957100001`` is no emergency call. Digits of no class that begin with the home country code are E.164
    without its plus, as carriers write the Request-URI; a caller gains nothing by it, unlike with a CLI.
    """
    raw = raw[:_MOST_RAW]
    if not raw:
        return Number(raw, Form.MISSING, "missing")
    if _WRITTEN.fullmatch(raw) is None:
        return Number(raw, Form.INVALID, "invalid")
    reading = _Reading(raw, raw, pack, at)
    number = reading.read()
    # Where numbers have no trunk prefix, a bare number may open with the country code and be too long for home.
    if number.form is Form.BARE and number.key is None and raw.startswith(pack.cc):
        at_home = reading.significant(Form.E164_BARE, raw[len(pack.cc) :])
        if at_home.key is not None:
            return at_home
    return number


def home_key(text: str, pack: Pack) -> str:
    """The home form of a number that an operator typed: ``Number.key`` of the CLI that it will match.

    Accepts what is dialled at home (``13800138000``, ``057186554321``, ``95588``) and ``+`` or the international
    prefix before a country code; white space around it is ignored.

    Raises:
        BadNumber: With the remedy, for everything that no valid CLI can be.
    """
    text = text.strip()
    shown = ascii(text if len(text) <= 40 else text[:40] + "...")
    if _WRITTEN.fullmatch(text) is None:
        raise BadNumber(f"{shown} is not a number: write digits only, with + first for another country")
    number = _Reading(text, text, pack, None).read()
    if number.key is None:
        raise BadNumber(
            f"{shown} is no number that can call here: {_why_none(number.number_class)}; write it as dialled at "
            f"home ({', '.join(pack.examples)}), or + and country code (+85261234567)"
        )
    return number.key


def _why_none(number_class: str) -> str:
    """Why a number of that class is none, in plain words."""
    kind = number_class.removesuffix(BAD_LENGTH)
    if number_class == "intl" + BAD_LENGTH:
        return "it has too few or too many digits for its country"
    if number_class == "intl_bad_cc":
        return "it begins with the code of no country"
    if kind != number_class:
        return f"it begins like one of the class {kind} and has too few or too many digits"
    return f"it is of the class {number_class}"


def _is_withheld(text: str) -> bool:
    """A token, alone or as user or host of a URI: anonymous@anonymous.invalid (RFC 3323 section 4.1.1.3)."""
    text = text.lower().removeprefix("sips:").removeprefix("sip:")
    user, _, host = text.partition("@")
    if host:
        return host == "anonymous.invalid" or user in _WITHHELD
    return user in _WITHHELD or user == "anonymous.invalid"


# What an international number can reach; short codes and text ports have no E.164 form.
_SUBSCRIBER_CLASSES = ("mobile_", "fixed", "nongeo", "satellite", "iot", "reserved")


@dataclass(slots=True)  # not frozen: one is made for each number of each call
class _Reading:
    """One string that is ``+`` and digits, or digits, on its way to a Number."""

    raw: str
    text: str
    pack: Pack
    at: datetime | None

    def read(self, *, e164_bare: bool = False) -> Number:
        text, pack = self.text, self.pack
        if text[0] == "+":
            return self._international(Form.PLUS, text[1:])
        for prefix in pack.idd:
            if text.startswith(prefix):
                return self._international(Form.IDD00, text[len(prefix) :])
        if pack.trunk_prefix and text.startswith(pack.trunk_prefix):
            return self._long_distance(text[len(pack.trunk_prefix) :])
        if e164_bare:
            number = self._international(Form.E164_BARE, text)
            if number.key is not None:
                return number
        return self._national(Form.BARE, pack.national_class(text, "bare", self.at) or "invalid", text)

    def significant(self, form: Form, digits: str) -> Number:
        """Read what follows the home country code: fixed first, then mobile and services, then area + service.

        +861065551234 is a fixed number in Beijing; the bare digits 1065551234 are a text port.
        """
        return self._fixed(form, digits) or self._classed(form, digits, "nsn")

    def _long_distance(self, digits: str) -> Number:
        """Read what follows the trunk prefix: area + local, a mobile in the old form, or area + service."""
        return self._fixed(Form.NATIONAL0, digits) or self._classed(Form.NATIONAL0, digits, "trunk0")

    def _fixed(self, form: Form, digits: str) -> Number | None:
        area = self.pack.area(digits)
        if area is not None and len(digits) - len(area.code) in area.local_lengths:
            return self._national(form, "fixed", digits)
        return None

    def _classed(self, form: Form, digits: str, where: NationalForm) -> Number:
        """Read digits by class, else area + service (057196110), else say what is wrong with them."""
        number_class = self.pack.national_class(digits, where, self.at)
        if number_class is not None and not number_class.endswith(BAD_LENGTH):
            return self._national(form, number_class, digits)
        area = self.pack.area(digits)
        if area is not None:
            service = self.pack.national_class(digits[len(area.code) :], "area", self.at)
            if service is not None and not service.endswith(BAD_LENGTH):
                return self._number(form, service, self.pack.trunk_prefix + digits)
            number_class = number_class or "fixed" + BAD_LENGTH
        return self._national(form, number_class or "invalid", digits)

    def _national(self, form: Form, number_class: str, digits: str) -> Number:
        """A number of home; one that is not valid has no key, but it claims to be from here all the same."""
        if number_class == "invalid" or number_class.endswith(BAD_LENGTH):
            if form is Form.BARE and number_class == "invalid":
                return Number(self.raw, form, number_class, written=self.text)
            return Number(self.raw, form, number_class, region=self.pack.country.lower(), written=self.text)
        return self._number(form, number_class, self.pack.home_form(number_class, digits))

    def _number(self, form: Form, number_class: str, key: str) -> Number:
        pack, e164 = self.pack, None
        if number_class.startswith(_SUBSCRIBER_CLASSES):
            digits = pack.cc + key.removeprefix(pack.trunk_prefix)
            if len(digits) <= pack.e164_max:
                e164 = "+" + digits
        return Number(self.raw, form, number_class, key, e164, pack.country.lower(), written=self.text)

    def _international(self, form: Form, digits: str) -> Number:
        pack = self.pack
        if digits.startswith(pack.cc):
            return self.significant(form, digits[len(pack.cc) :])
        cc = _country_code(digits)
        if cc is None:
            return Number(self.raw, form, "intl_bad_cc", written=self.text)
        region = pack.foreign_region(digits)
        # A country that is newer than the pack is foreign all the same.
        code = region.code if region is not None else COUNTRY_CODE_TO_REGION_CODE[cc][0].lower()
        group = region.group if region is not None else "intl"
        key = None
        number_class = "intl" + BAD_LENGTH
        if len(digits) <= pack.e164_max and len(digits) - len(str(cc)) in _lengths(cc):
            key, number_class = "+" + digits, "intl_" + code
        return Number(self.raw, form, number_class, key, key, code, group, self.text)


def _country_code(digits: str) -> int | None:
    """The country code that opens the digits; no code opens another one (ITU-T E.164)."""
    for end in (1, 2, 3):
        cc = int(digits[:end] or 0)
        if cc in COUNTRY_CODE_TO_REGION_CODE and digits[0] != "0":
            return cc
    return None


@lru_cache(maxsize=1000)  # there are three digits of country code at most
def _lengths(cc: int) -> frozenset[int]:
    """Lengths of a national significant number in any region of a country code, by phonenumberslite."""
    lengths: set[int] = set()
    for region in COUNTRY_CODE_TO_REGION_CODE[cc]:
        known = PhoneMetadata.metadata_for_region_or_calling_code(cc, region)
        if known is not None and known.general_desc is not None:
            lengths.update(known.general_desc.possible_length)
    return frozenset(lengths)
