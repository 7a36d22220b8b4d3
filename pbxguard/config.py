"""Settings: one TOML file -> one frozen value. Errors name file, line and key.

Knows the settings and the lab's own values, which apply where there is no file. Does not open anything that
the settings point to.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from pbxguard.errors import BadConfig
from pbxguard.screening.call import Roaming, Trunk
from pbxguard.screening.rules import near

_Port = Annotated[int, Field(ge=1, le=65535)]
_CliPrefix = Annotated[str, Field(pattern=r"^[0-9*#+]{1,12}$")]
_TrunkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


#: A URL that stands as it is in a SIP header (in angle brackets), in a list of channel variables and in a dialplan:
#: the characters of RFC 3986 section 2 without ``$ ' ( ) * , ;``.
_CONTACT_URL = re.compile(r"https?://[A-Za-z0-9\[][A-Za-z0-9._~:/?#\[\]@!&+=%-]{0,200}", re.IGNORECASE)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GuardSettings(_Section):
    """How long a decision may take, and how many may be under way at once."""

    deadline_ms: Annotated[int, Field(ge=10, le=10_000)] = 300
    workers: Annotated[int, Field(ge=1, le=64)] = 4


class AsteriskSettings(_Section):
    """Where FastAGI listens. Bind it to an address that only the PBX reaches: FastAGI has no password."""

    host: str = "127.0.0.1"
    port: _Port = 4573
    max_connections: Annotated[int, Field(ge=1)] = 512
    request_timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 2000


class FreeswitchSettings(_Section):
    """One FreeSWITCH: where its event socket listens. Its password is its only lock: keep it off other networks."""

    host: str = "127.0.0.1"
    port: _Port = 8021
    password: str = "ClueCon"  # noqa: S105 (what FreeSWITCH ships with)
    timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 2000


class StoreSettings(_Section):
    """Which database; without ``url``, ``pbxguard.db`` in the state folder."""

    url: str | None = None
    keep_decisions_days: Annotated[int, Field(ge=1)] = 180


class LogSettings(_Section):
    """What the log shows of numbers, and how much it says."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    mask_numbers: bool = False


class TrunkSettings(_Section):
    """One trunk; the fields are those of ``screening.call.Trunk``."""

    kind: str
    trusted: bool = False
    allocated: tuple[str, ...] = ()
    outbound: bool = False
    roaming: Roaming = Roaming.NO
    fail: Literal["open", "closed"] = "open"
    prompt: Literal["early", "answer", "none"] = "early"
    hostile_ok: bool = False
    prompts_per_minute: Annotated[int, Field(ge=0)] = 600
    cli_prefixes: tuple[_CliPrefix, ...] = ()


_LAB_DNO = (
    *("110", "119", "120", "122"),
    *("10000", "10001", "10010", "10085", "10086", "10099"),
    *("12381", "95110", "96110"),
)

#: What the CN pack would refuse without a source that confirms it, and the lab wants: the specification's vectors.
LAB_ACCEPTED = (
    "trunk:intl_gateway.national_mobile",
    "trunk:intl_gateway.cli_missing",
    "trunk:sms_intl.national_fixed",
    "trunk:sms_intl.national_mobile",
    "trunk:sms_intl.cli_missing",
    *(f"dno:{number}" for number in _LAB_DNO),
)

_Name = Annotated[str, Field(min_length=1, max_length=80)]


class ScreeningSettings(_Section):
    """What the site chooses of its country pack. An unknown name is an error that lists near ones.

    Attributes:
        pack: Id of a shipped pack (``cn``), or a folder such as ``./packs/cn``.
        accept_unverified: What the pack would refuse without a source that confirms it, and this site wants: a rule
            id, ``class:NAME``, ``dno:NUMBER``, ``trunk:KIND.KEY`` or ``default_off:PROVINCE.CHANNEL``; ``*`` is all.
        shadow_rules: Rule ids that are noted and decide nothing.
        shadow_lists: Names of lists that are noted and decide nothing.
        rules_off: Rule ids that are not asked.
    """

    pack: _Name = "cn"
    accept_unverified: tuple[_Name, ...] = ()
    shadow_rules: tuple[_Name, ...] = ()
    shadow_lists: tuple[_Name, ...] = ()
    rules_off: tuple[_Name, ...] = ()


#: The lab's choice, which applies where there is no settings file at all.
LAB_SCREENING = ScreeningSettings(accept_unverified=LAB_ACCEPTED)


#: The trunks of the lab, which apply where a site declares none.
LAB_TRUNKS: dict[str, TrunkSettings] = {
    "intl": TrunkSettings(kind="intl_gateway"),
    "natl": TrunkSettings(kind="national", trusted=True),
    "ent": TrunkSettings(kind="enterprise", fail="closed", allocated=("0571865543*", "95201*")),
    # One's own gateway: what it asserts of a GSM caller (Remote-Party-ID) is believed.
    "goip1": TrunkSettings(kind="sim_gateway", trusted=True),
}


class Settings(_Section):
    """All settings of a site. ``pack`` is ``screening.pack``, by its older name."""

    pack: str = "cn"
    screening: ScreeningSettings = LAB_SCREENING
    state: Path | None = None
    prompts: Path | None = None
    guard: GuardSettings = GuardSettings()
    contact_url: str = ""
    asterisk: AsteriskSettings = AsteriskSettings()
    freeswitch: dict[_TrunkName, FreeswitchSettings] = {}
    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()
    trunks: dict[_TrunkName, TrunkSettings] = LAB_TRUNKS

    @model_validator(mode="before")
    @classmethod
    def _one_pack(cls, given: object) -> object:
        """Let the two names of the pack say the same; what the lab accepts is of its own pack only."""
        if not isinstance(given, dict):
            return given
        screening = given.get("screening")
        if isinstance(screening, ScreeningSettings):
            return {**given, "pack": screening.pack}
        if screening is None and given.get("pack", "cn") != "cn":
            return {**given, "screening": {"pack": given["pack"]}}
        if isinstance(screening, dict):
            name = screening.get("pack", given.get("pack", "cn"))
            return {**given, "pack": name, "screening": {**screening, "pack": name}}
        return given

    @field_validator("contact_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if url and not _CONTACT_URL.fullmatch(url):
            # A message of our own: pydantic sets one of a ValueError behind words of its own.
            raise PydanticCustomError(
                "contact_url",
                "must be an http or https URL of at most 200 characters, without blanks, quotes and any of "
                "; , | < > $ ( ) *: write them with % (a comma is %2C)",
            )
        return url

    @property
    def state_dir(self) -> Path:
        """``state``, else the user's state folder."""
        if self.state is not None:
            return self.state
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(base) / "pbxguard"

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL or path of the database."""
        return self.store.url or str(self.state_dir / "pbxguard.db")

    def trunk(self, name: str) -> Trunk | None:
        """The trunk of that name, or None."""
        found = self.trunks.get(name)
        return None if found is None else Trunk(name=name, **dict(found))


def file_of(path: Path | None) -> Path | None:
    """The settings file that ``load`` reads; None where there is none."""
    if path is not None:
        return path
    if given := os.environ.get("PBXGUARD_CONFIG"):
        return Path(given)
    return Path("pbxguard.toml") if Path("pbxguard.toml").is_file() else None


def place(path: Path | None, *keys: str) -> str:
    """Where a setting stands, for the beginning of an error: ``FILE:LINE: a.b``, and ``a.b`` without a file."""
    shown, file = ".".join(keys), file_of(path)
    if file is None:
        return shown
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return f"{file}: {shown}"  # it could be read when the settings were
    return f"{file}:{_line_of(text, list(keys))}: {shown}"


def load(path: Path | None = None) -> Settings:
    """The settings of *path*, else of the file that ``PBXGUARD_CONFIG`` names, else of ``./pbxguard.toml``.

    ``PBXGUARD_STATE`` outranks the file's ``state``.

    Raises:
        BadConfig: The file is not there, is no TOML, or has an unknown or wrong key.
    """
    path = file_of(path)
    settings = Settings() if path is None else _read(path)
    if state := os.environ.get("PBXGUARD_STATE"):
        settings = settings.model_copy(update={"state": Path(state)})
    return settings


def _read(path: Path) -> Settings:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadConfig(
            f"{path}: cannot read the settings: {error.strerror}; give another file with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    try:
        # What the lab accepts without a source is for the lab: a site says itself what it accepts.
        settings = Settings.model_validate({"screening": {}} | tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise BadConfig(
            f"{path}: not valid TOML: nested too deep; no setting needs more than three levels"
        ) from error
    except ValidationError as error:
        raise BadConfig(_explain(path, text, error)) from error
    _check_times(path, text, settings)
    _check_pack(path, text)
    return settings


def _check_pack(path: Path, text: str) -> None:
    """Refuse two packs under the two names of the setting."""
    given = tomllib.loads(text)
    older, newer = given.get("pack"), given.get("screening", {}).get("pack")
    if older is not None and newer is not None and older != newer:
        line = _line_of(text, ["screening", "pack"])
        raise BadConfig(f"{path}:{line}: screening.pack: {newer!r}, but pack is {older!r}; leave one of them out")


def _check_times(path: Path, text: str, settings: Settings) -> None:
    """Refuse a connection limit that ends a call before its deadline, and with it the failure policy's answer."""
    limit, deadline = settings.asterisk.request_timeout_ms, settings.guard.deadline_ms
    if limit >= deadline:
        return
    given = "request_timeout_ms" in settings.asterisk.model_fields_set
    line = _line_of(text, ["asterisk", "request_timeout_ms"] if given else ["guard", "deadline_ms"])
    raise BadConfig(
        f"{path}:{line}: asterisk.request_timeout_ms: {limit} ms is below guard.deadline_ms ({deadline} ms), so a "
        "late call would get no answer; raise the one or lower the other"
    )


def _explain(path: Path, text: str, error: ValidationError) -> str:
    """One line: file, line and key of the first wrong setting, and what is wrong with it."""
    errors = error.errors(include_url=False)
    # A key that is mistyped is often why another one is missing.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    keys = [str(part) for part in first["loc"] if part != "[key]"]
    shown = ".".join(key if key.isprintable() else ascii(key) for key in keys)
    where = f"{path}:{_line_of(text, keys)}: {shown}"
    return f"{where}: {_said(first, keys)}"


#: What a text of a certain pattern is, for people.
_PATTERNS = {
    r"^[A-Za-z0-9_-]{1,32}$": "a trunk or PBX is named by 1 to 32 letters, digits, hyphens and underscores",
    r"^[0-9*#+]{1,12}$": "write 1 to 12 digits, or the signs * # +",
}

#: What is expected, by the kind of error.
_EXPECTED = (
    ("int_", "is no whole number; write digits without quotes, such as 300"),
    ("bool_", "is neither true nor false; write one of them, without quotes"),
    ("string_type", 'is no text; write it in quotes: "..."'),
    ("path_type", 'is no path; write it in quotes: "/var/lib/pbxguard"'),
    ("tuple_type", 'is no list; write brackets around it: ["..."]'),
)


def _said(error: ErrorDetails, keys: list[str]) -> str:
    """What is wrong with a setting, what is expected, and what to write, in plain words."""
    kind, given, limit = error["type"], _short(error["input"]), error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _names(keys[:-1])
        table = ".".join(keys[:-1])
        what = f"[{table}] has" if table else "there are"
        return f"no setting has this name; {what} {', '.join(known)}{near(keys[-1], known)}"
    if kind == "missing":
        # No other setting must be there.
        example = ' = "intl_gateway"' if keys[-1] == "kind" else ""
        return f"is missing; add it under [{'.'.join(keys[:-1])}], such as {keys[-1]}{example} (the README has all)"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        of_many = ".NAME" if keys in (["trunks"], ["freeswitch"]) else ""
        return f"{given} is no table; write [{'.'.join(keys)}{of_many}], and its settings in the lines below"
    if kind in ("literal_error", "enum"):
        words = re.findall(r"'([^']*)'", str(limit["expected"]))
        return f"{given} is none of {', '.join(words)}{near(str(error['input']).lower(), words)}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not fit: {_PATTERNS.get(str(limit['pattern']), limit['pattern'])}"
    if kind == "greater_than_equal":
        return f"{given} is too little; {limit['ge']} is the least"
    if kind == "less_than_equal":
        return f"{given} is too much; {limit['le']} is the most"
    if kind == "string_too_short":
        return "is empty; write a name, or leave it out"
    if kind == "string_too_long":
        return f"is too long; {limit['max_length']} characters are the most"
    expected = next((words for start, words in _EXPECTED if kind.startswith(start)), None)
    return str(error["msg"]) if expected is None else f"{given} {expected}"


def _names(keys: list[str]) -> tuple[str, ...]:
    """The settings that a table may have."""
    model: Any = Settings
    for key in keys:
        # Below ``trunks`` and ``freeswitch`` stands a name of the site's own.
        model = model.model_fields[key].annotation if hasattr(model, "model_fields") else get_args(model)[1]
    return tuple(model.model_fields)


def _short(value: object) -> str:
    """A value as it was given, of a length that a line has room for."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _line_of(text: str, keys: list[str]) -> int:
    """The line (from 1) where *keys* stand in TOML *text*; the nearest table or key that is found."""
    best, at_depth = 1, 0
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?([^\]]+)\]", line)
        if header:
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            here = table
        else:
            key = re.match(r"\s*([\w.\"'-]+)\s*=", line)
            if key is None:
                continue
            here = [*table, *(part.strip("\"'") for part in key[1].split("."))]
        if here == keys[: len(here)] and len(here) > at_depth:
            best, at_depth = number, len(here)
    return best
