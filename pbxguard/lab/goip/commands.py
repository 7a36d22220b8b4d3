"""What a server may ask of a line with one datagram: get, set, do, USSD, forwarding (sections 5 to 10).

Knows line, box and network; does not know who asks, what is on the wire before or after, or the time.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from pbxguard.lab.goip.box import Box, Line
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.protocol import Command, listed, reply

__all__ = ["ONCE", "Answer", "Phone", "known", "minutes", "password_of", "run", "same"]

MAX_MINUTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Phone:
    """What a command acts on."""

    box: Box
    line: Line
    network: MobileNetwork


@dataclass(frozen=True, slots=True)
class Answer:
    """Datagrams to who asked, and notices (verb, fields) to the server that follow from it."""

    data: tuple[bytes, ...]
    notices: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = field(default=())


def known(command: Command) -> bool:
    return command.verb in _COMMANDS


def password_of(command: Command) -> str:
    """The word of a command that is its password: the last one, but the first of USSD, CF and CW."""
    if not command.arguments:
        return ""
    return command.arguments[0 if command.verb in ("USSD", "CF", "CW") else -1]


def same(given: str, password: str) -> bool:
    """Whether two passwords are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), password.encode())


def run(phone: Phone, command: Command, password: str) -> Answer:
    """Do what a known command says; one with another password or a bad value gets its error."""
    shape = _COMMANDS[command.verb]
    if len(command.arguments) not in shape.arguments:
        return _failed(command, "wrong number of arguments")
    if not same(password_of(command), password):
        return _failed(command, "password error")
    return shape.run(phone, command)


def minutes(time: timedelta | None, *, unlimited: int = -1) -> int:
    """A limit or what is left of one, in the protocol's minutes."""
    return unlimited if time is None else int(time.total_seconds() // 60)


def _failed(command: Command, why: str) -> Answer:
    match command.verb:
        case "CF" | "CW":
            return Answer((reply(f"{command.verb}ERROR", command.sid),))
        case "USSD" | "USSDEXIT":
            return Answer((reply("USSDERROR", command.sid, why),))
    return Answer((reply("ERROR", command.sid, why),))


# -- get --------------------------------------------------------------------------------------------------


def _talk(phone: Phone) -> timedelta | None:
    return phone.box.limits(phone.line.number).talk


def _interval(phone: Phone) -> int:
    return int(phone.box.limits(phone.line.number).interval.total_seconds())


_GETS: Mapping[str, Callable[[Phone], str | int]] = {
    "get_gsm_num": lambda phone: phone.line.shown_number,
    "get_gsm_number": lambda phone: phone.line.shown_number,  # what NiceLabs' agent sends
    "get_exp_time": lambda phone: minutes(_talk(phone)),
    "get_remain_time": lambda phone: minutes(phone.box.remains(phone.line.number)),
    "get_gsm_state": lambda phone: str(phone.line),
    "get_imei": lambda phone: phone.line.shown_imei,
    "get_out_call_interval": _interval,
    "CURCELL": lambda phone: phone.line.shown_cell,
}


def _get(phone: Phone, command: Command) -> Answer:
    return Answer((reply(command.verb, command.sid, _GETS[command.verb](phone)),))


def _gsm(phone: Phone, command: Command) -> Answer:
    """``GSM``: all at once, in the form of a notice (as in NiceLabs' captures; the specification lacks it)."""
    fields = {
        "GSM": command.sid,
        "get_gsm_num": phone.line.shown_number,
        "get_exp_time": minutes(_talk(phone), unlimited=0),
        "get_remain_time": minutes(phone.box.remains(phone.line.number), unlimited=0),
        "get_gsm_state": str(phone.line),
        "imei": phone.line.shown_imei,
        "out_call_interval": _interval(phone),
        "module_down": int(not phone.line.enabled),
    }
    return Answer((";".join(f"{name}:{value}" for name, value in fields.items()).encode(),))


# -- set --------------------------------------------------------------------------------------------------


def _set_talk(phone: Phone, value: str) -> None:
    talk = timedelta(minutes=int(value)) if int(value) >= 0 else None
    phone.box.set_limits(phone.line.number, replace(phone.box.limits(phone.line.number), talk=talk))


def _set_interval(phone: Phone, value: str) -> None:
    interval = timedelta(seconds=int(value))
    phone.box.set_limits(phone.line.number, replace(phone.box.limits(phone.line.number), interval=interval))


def _switch_all(phone: Phone, value: str) -> None:
    for line, digit in zip(phone.box.lines, value, strict=True):
        if digit != "2":
            phone.box.enable(line.number, digit == "1")


def _is_number(_phone: Phone, value: str) -> bool:
    return value.removeprefix("+").isdecimal() and len(value) <= 20


def _is_count(_phone: Phone, value: str) -> bool:
    return value.isdecimal() and len(value) <= 7 and int(value) <= MAX_MINUTES


@dataclass(frozen=True, slots=True)
class _Setting:
    fits: Callable[[Phone, str], bool]
    apply: Callable[[Phone, str], None]


_SETS: Mapping[str, _Setting] = {
    "set_gsm_num": _Setting(_is_number, lambda phone, value: setattr(phone.line, "number_set", value)),
    "set_gsm_number": _Setting(_is_number, lambda phone, value: setattr(phone.line, "number_set", value)),
    "set_exp_time": _Setting(lambda phone, value: value == "-1" or _is_count(phone, value), _set_talk),
    "set_out_call_interval": _Setting(_is_count, _set_interval),
    "set_imei": _Setting(
        lambda _phone, value: value.isdecimal() and len(value) == 15,
        lambda phone, value: setattr(phone.line, "imei_set", value),
    ),
    "set_base_cell": _Setting(
        lambda _phone, value: len(value) <= 8 and all(c in "0123456789abcdefABCDEF" for c in value),
        lambda phone, value: setattr(phone.line, "cell_set", value.upper()),
    ),
    "module_ctl_i": _Setting(
        lambda _phone, value: value in ("1", "2"),
        lambda phone, value: phone.box.enable(phone.line.number, value == "1"),
    ),
    "module_ctl": _Setting(
        lambda phone, value: len(value) == len(phone.box.lines) and set(value) <= set("012"), _switch_all
    ),
}


def _set(phone: Phone, command: Command) -> Answer:
    value, setting = command.arguments[0], _SETS[command.verb]
    if not setting.fits(phone, value):
        return _failed(command, "bad value")
    setting.apply(phone, value)
    words = ("ok",) if command.verb.startswith("module_ctl") else (value, "ok")
    told = (("EXPIRY", (("exp", value),)),) if command.verb == "set_exp_time" else ()
    return Answer((reply(command.verb, command.sid, *words),), told)


# -- do ---------------------------------------------------------------------------------------------------


def _reboot_all(phone: Phone) -> None:
    for line in phone.box.lines:
        phone.box.reboot(line.number)


_DOES: Mapping[str, Callable[[Phone], object]] = {
    "reset_remain_time": lambda phone: phone.box.reset_talk(phone.line.number),
    "svr_drop_call": lambda phone: phone.box.drop(phone.line.number, "the SMS server asked for it"),
    "svr_reboot_module": lambda phone: phone.box.reboot(phone.line.number),
    "svr_reboot_dev": _reboot_all,
}

#: Commands that are done once even if they come twice.
ONCE = frozenset({*_DOES, "USSD"})


def _do(phone: Phone, command: Command) -> Answer:
    _DOES[command.verb](phone)
    return Answer((reply(command.verb, command.sid, "ok"),))


def _cells(phone: Phone, command: Command) -> Answer:
    """The cells in sight, as radio channel numbers (0 to 1023) of which captures have five or six."""
    cells = [phone.line.shown_cell, *(sim.cell.cell_id for sim in phone.box.sims)]
    channels = list(dict.fromkeys(str(int(cell, 16) % 1024) for cell in cells))
    told = (("CELLS", (("lists", listed(channels[:6])),)),)
    return Answer((reply(command.verb, command.sid, "ok"),), told)


# -- USSD and supplementary services ----------------------------------------------------------------------


def _ussd(phone: Phone, command: Command) -> Answer:
    if command.verb == "USSDEXIT":
        return Answer((reply("USSDEXIT", command.sid),))
    text = phone.network.answer(command.arguments[1]) if phone.line.gsm_up else None
    if text is None:
        return _failed(command, "no answer from the network")
    return Answer((reply("USSD", command.sid, text),))


def _service(_phone: Phone, command: Command) -> Answer:
    """``CF`` reason mode [number [seconds]] and ``CW`` mode: taken when the numbers are among those there are."""
    most = (5, 4) if command.verb == "CF" else (2,)
    given = command.arguments[1 : 1 + len(most)]
    if not all(len(digit) == 1 and digit in "012345"[: top + 1] for digit, top in zip(given, most, strict=True)):
        return _failed(command, "")
    return Answer((reply(f"{command.verb}OK", command.sid),))


@dataclass(frozen=True, slots=True)
class _Shape:
    """How many words follow the session id, the password among them, and what the command does."""

    arguments: tuple[int, ...]
    run: Callable[[Phone, Command], Answer]


_COMMANDS: Mapping[str, _Shape] = {
    **dict.fromkeys(_GETS, _Shape((1,), _get)),
    **dict.fromkeys(_SETS, _Shape((2,), _set)),
    **dict.fromkeys(_DOES, _Shape((1,), _do)),
    "get_cells_list": _Shape((1,), _cells),
    "GSM": _Shape((1,), _gsm),
    "USSD": _Shape((2,), _ussd),
    "USSDEXIT": _Shape((1,), _ussd),
    "CF": _Shape((3, 4, 5), _service),
    "CW": _Shape((2,), _service),
}
