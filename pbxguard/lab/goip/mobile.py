"""The mobile network behind a box, in memory: texts that are sent, their reports, texts that arrive, USSD.

Knows no socket: times are seconds of a clock that only goes forward, passed in. Who owns it asks ``due`` for what
has happened meanwhile.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Arrived", "Happened", "MobileNetwork", "Report", "Sent", "Text"]

#: Texts that are kept to be looked at; older ones are forgotten.
KEPT = 1000
#: Texts that one line has under way; who asks for more than ``full`` allows gets an error.
MAX_UNDER_WAY = 100
#: +CMS ERROR 38, network out of order (3GPP TS 27.005 section 3.2.5).
OUT_OF_ORDER = 38


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a line was told to send; *number* is its sms_no, which its report names, *way* is who told it."""

    line: int
    number: int
    sender: str
    to: str
    body: str
    way: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """The network took the text (*error* 0) or not (+CMS ERROR)."""

    text: Text
    error: int


@dataclass(frozen=True, slots=True)
class Report:
    """Delivery report: TP-Status of 3GPP TS 23.040 section 9.2.3.15, 0 for delivered."""

    text: Text
    status: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A text reached the SIM of that number."""

    msisdn: str
    sender: str
    body: str


Happened = Sent | Report | Arrived


@dataclass(slots=True)
class MobileNetwork:
    """What the network does with texts and codes.

    Attributes:
        sending: Seconds that a line needs for one text; the vendor says 2 to 5, one after the other.
        report: Seconds from there to the delivery report; None for a network without reports.
        refuses: +CMS ERROR for texts to a number, 0 to take them.
        status: TP-Status of the delivery report for a number.
        ussd: Answer to each code; another one is an error.
        subscriber: Whether a number is a SIM whose box is told of texts to it.
    """

    sending: float = 2.0
    report: float | None = 3.0
    refuses: Callable[[str], int] = lambda _number: 0
    status: Callable[[str], int] = lambda _number: 0
    ussd: Mapping[str, str] = field(default_factory=lambda: {"*100#": "Your balance is 23.45", "*#06#": "lab"})
    subscriber: Callable[[str], str | None] = lambda _number: None
    up: bool = True
    sent: deque[Text] = field(default_factory=lambda: deque(maxlen=KEPT))
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _order: "itertools.count[int]" = field(default_factory=itertools.count)
    _events: list[tuple[float, int, Happened]] = field(default_factory=list)
    _line_free: dict[int, float] = field(default_factory=dict)
    _under_way: dict[int, int] = field(default_factory=dict)

    def send(self, line: int, sender: str, to: str, body: str, now: float, *, way: str = "") -> Text:
        """Take a text from a line; ``due`` says later what became of it."""
        text = Text(line, next(self._numbers), sender, to, body, way)
        begin = max(now, self._line_free.get(line, now))
        error = self.refuses(to) if self.up else OUT_OF_ORDER
        done = begin + self.sending
        self._line_free[line] = done
        self._under_way[line] = self._under_way.get(line, 0) + 1
        self._at(done, Sent(text, error))
        if error:
            return text
        delivered = self.status(to)
        if self.report is not None:
            self._at(done + self.report, Report(text, delivered))
        if (msisdn := self.subscriber(to)) is not None and not delivered:
            self._at(done + (self.report or 0), Arrived(msisdn, sender, body))
        return text

    def arrive(self, msisdn: str, sender: str, body: str, now: float) -> None:
        """Let a text from outside reach a SIM."""
        self._at(now, Arrived(msisdn, sender, body))

    def busy(self, line: int) -> bool:
        """Whether the line has a text under way."""
        return self._under_way.get(line, 0) > 0

    def full(self, line: int) -> bool:
        """Whether the line has as many texts under way as it can hold."""
        return self._under_way.get(line, 0) >= MAX_UNDER_WAY

    def answer(self, code: str) -> str | None:
        """The network's answer to a USSD code; None when it has none."""
        return self.ussd.get(code) if self.up else None

    def next_due(self) -> float | None:
        return self._events[0][0] if self._events else None

    def due(self, now: float) -> list[Happened]:
        """What has happened up to *now*, in its order, each told once."""
        happened = []
        while self._events and self._events[0][0] <= now:
            what = heapq.heappop(self._events)[2]
            if isinstance(what, Sent):
                self._under_way[what.text.line] = max(self._under_way.get(what.text.line, 1) - 1, 0)
                if not what.error:
                    self.sent.append(what.text)
            happened.append(what)
        return happened

    def _at(self, when: float, what: Happened) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))
