"""How a gateway is set up: lines, configuration mode, accounts, caller ID, limits. Values and their checks only."""

from datetime import timedelta
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pbxguard.lab.goip import profiles
from pbxguard.lab.goip.box import Box, Clock, LinePlan, Mode
from pbxguard.lab.goip.callerid import CidPrefix
from pbxguard.lab.goip.profiles import CallerId, Dtmf, Profile
from pbxguard.lab.goip.sims import Limits, Period, Rotation, RotationKind, SimTable

__all__ = ["MAX_LINES", "GatewayPlan"]

#: Lines of one gateway, as of the largest that the vendor makes (GoIP-32); the PBX has an account for each.
MAX_LINES = 32
#: Groups that the PBX has an account for.
GROUPS = "abcd"

Prefix = Annotated[str, Field(pattern=r"^\+?[0-9]{1,20}$")]


Seconds = Annotated[float, Field(ge=0, le=86400 * 31)]


class SimLimits(BaseModel):
    """What one SIM of a gateway may do; what is left out is no limit.

    Attributes:
        talk: Seconds of connected outgoing calls in a period; without any left the line takes no call.
        period: When the talk time begins anew: ``never``, ``day`` or ``month``.
        call: Seconds of one outgoing call; the gateway ends it then.
        interval: Seconds from the end of an outgoing call to the next.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    talk: Seconds | None = None
    period: Period = Period.NEVER
    call: Seconds | None = None
    interval: Seconds = 0

    def limits(self) -> Limits:
        """The same as the box has it."""
        talk, call = (None if each is None else timedelta(seconds=each) for each in (self.talk, self.call))
        return Limits(talk, self.period, call, timedelta(seconds=self.interval))


class GatewayPlan(BaseModel):
    """A gateway's settings, named as on the vendor's pages.

    Attributes:
        lines: How many lines, each with a SIM.
        mode: Configuration mode: which accounts there are, and which line a call from SIP gets.
        registers: In trunk mode: whether it registers; in the other modes it always does.
        prefixes: Routing prefixes of each line, in order; a line beyond them has none. None: every line takes every
            number (by line, where a prefix is mandatory, each line has all ten digits).
        groups: The group of each line, in order, ``a`` to ``d``; for group mode.
        sources: Trunk mode: addresses whose INVITEs are taken.
        caller_id: What the SIP side gets of a GSM caller: ``account`` (nothing), ``rpid``, ``pai`` or ``from``. None:
            the profile's.
        cid_prefix: Rewriting of the GSM caller's number, ``9:-9+852``.
        forward: A GSM call goes to the number that its line forwards to. False: the gateway answers it and plays a
            dial tone, and the caller dials on (two-stage dialling).
        profile: Wire image.
        dtmf: ``inband``, ``rfc4733`` or ``info``. None: the profile's.
        busy_status: What a busy GSM subscriber becomes: 480, 486 or 603. None: the profile's.
        rtp_timeout_s: BYE after this time without RTP; 0 for never. None: the profile's.
        register_s: Re-register period. None: the profile's.
        sims: SIMs in the box; as many as lines unless said.
        rotation: When a line gets another SIM.
        every: Calls or minutes of ``rotation``.
        limits: Talk time, length of a call, interval between calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: Annotated[int, Field(ge=1, le=MAX_LINES)] = 4
    mode: Mode = Mode.SINGLE
    registers: bool = True
    prefixes: tuple[tuple[Prefix, ...], ...] | None = None
    groups: tuple[Annotated[str, Field(pattern=f"^[{GROUPS}]$")], ...] = ()
    sources: Annotated[tuple[str, ...], Field(max_length=3)] = ()
    caller_id: CallerId | None = None
    cid_prefix: str = ""
    forward: bool = True
    profile: str = "dbl"
    dtmf: Dtmf | None = None
    busy_status: int | None = None
    rtp_timeout_s: Annotated[int, Field(ge=0, le=3600)] | None = None
    register_s: Annotated[int, Field(ge=5, le=3600)] | None = None
    sims: Annotated[int, Field(ge=1, le=128)] | None = None
    rotation: RotationKind = RotationKind.NEVER
    every: Annotated[int, Field(ge=1)] = 1
    limits: SimLimits = SimLimits()

    @field_validator("cid_prefix")
    @classmethod
    def _rules(cls, text: str) -> str:
        CidPrefix.parse(text)
        return text

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, given in (("prefixes", self.prefixes), ("groups", self.groups)):
            if given is not None and len(given) > self.lines:
                raise ValueError(f"{name}: {len(given)} given for {self.lines} lines")
        if self.mode is Mode.GROUP and not self.groups:
            raise ValueError('groups: group mode needs the group of each line, as in groups = ["a", "b"]')
        profiles.load(self.profile)
        return self

    @property
    def image(self) -> Profile:
        return profiles.load(self.profile)

    def accounts(self, name: str) -> dict[str, tuple[int, ...]]:
        """SIP accounts of the gateway *name*, each with its lines; in trunk mode without registration none."""
        every = tuple(range(1, self.lines + 1))
        match self.mode:
            case Mode.LINE:
                return {f"{name}-{line}": (line,) for line in every}
            case Mode.GROUP:
                members = {
                    group: tuple(n for n in every if self._group(n) == group) for group in sorted(set(self.groups))
                }
                return {f"{name}-{group}": lines for group, lines in members.items()}
            case Mode.SINGLE:
                return {name: every}
            case Mode.TRUNK:
                return {name: every} if self.registers else {}

    def box(self, clock: Clock, bank: int = 0) -> Box:
        """The box with these settings; *bank* tells its SIMs from those of other gateways."""
        image = self.image
        return Box(
            [self._line(line) for line in range(1, self.lines + 1)],
            SimTable.fictional(max(self.sims or self.lines, self.lines), bank),
            clock=clock,
            mode=self.mode,
            rotation=Rotation(self.rotation, self.every),
            limits=self.limits.limits(),
            sources=self.sources,
            busy_status=self.busy_status or image.busy_status.value,
        )

    def _group(self, line: int) -> str:
        return self.groups[line - 1] if line <= len(self.groups) else ""

    def _line(self, line: int) -> LinePlan:
        if self.prefixes is None:
            return LinePlan(tuple("0123456789") if self.mode is Mode.LINE else (), self._group(line))
        return LinePlan(self.prefixes[line - 1] if line <= len(self.prefixes) else (), self._group(line))


def account_names(name: str) -> tuple[str, ...]:
    """Every account that a gateway of that name may have in one mode or another."""
    return (name, *(f"{name}-{line}" for line in range(1, MAX_LINES + 1)), *(f"{name}-{group}" for group in GROUPS))
