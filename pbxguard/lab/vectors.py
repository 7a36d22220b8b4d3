"""The voice vectors of a country pack as scenarios: each becomes a call that is really placed.

The pack's ``vectors.csv`` is the one source; ``callees.csv`` beside it says who is called. Knows how a row reads as
what is given and what is expected. Places no call.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from pbxguard import packs
from pbxguard.config import Settings
from pbxguard.errors import BadInput
from pbxguard.lab.scenario import BindingGiven, CallStep, ConsentGiven, EntryGiven, Expect, Given, Scenario, Step
from pbxguard.screening.lists import ROAMING, SIMBOX
from pbxguard.screening.treatment import prompt_of

_NOTES = {f"roaming={answer}": f"{ROAMING}{answer}" for answer in ("yes", "no", "unknown")}
_NOTES["detector=simbox"] = SIMBOX

#: What a row may say of its trunk that the lab's trunk is anyway: the call shows whether it is.
_OF_THE_TRUNK = frozenset({"allocated=yes", "allocated=no", "outbound=no"})


def scenarios(settings: Settings) -> list[Scenario]:
    """Every voice vector of the pack as a call; those with the same CLI one after the other.

    Raises:
        BadInput: The lab has no trunk of a row's kind, or a row says what the lab cannot do.
    """
    callees = {row["name"]: row for row in packs.table(settings.pack, "callees.csv")}
    trunks = {trunk.kind: name for name, trunk in reversed(settings.trunks.items())}
    rows = [row for row in packs.table(settings.pack, "vectors.csv") if row["channel"] == "voice"]
    if not rows:
        raise BadInput(f"pack {settings.pack}: vectors.csv has no row of channel voice")
    # What is noted of a CLI is there for every call of it, so rows of one CLI take turns.
    rows.sort(key=lambda row: row["cli"])
    found = []
    for _, same in groupby(rows, key=lambda row: row["cli"]):
        steps = tuple(_step(row, callees, trunks, settings) for row in same)
        number = steps[0].title.split(":")[0].removeprefix("vector ")
        found.append(Scenario(name=f"vector-{number}", title=steps[0].title, step=steps))
    return found


def _step(
    row: Mapping[str, str], callees: Mapping[str, Mapping[str, str]], trunks: Mapping[str, str], settings: Settings
) -> Step:
    where = f"pack {settings.pack}: vectors.csv: vector {row['n']}"
    if row["trunk"] not in trunks:
        raise BadInput(f"{where}: the lab has no trunk of kind {row['trunk']}")
    callee = callees[row["callee"]]
    status = int(row["sip_status"])
    connects = status == 200
    group = packs.load(settings.pack).reason_group(row["reason"])
    return Step(
        title=f"vector {row['n']}: {row['cli']} to {row['callee']} on {row['trunk']}",
        given=Given(
            registry=tuple(_consents(callee)),
            lists=tuple(_entries(row, callee, where)),
            bindings=tuple(_bindings(row, callee)),
        ),
        call=CallStep(cli=row["cli"], callee=callee["number"], trunk=trunks[row["trunk"]]),
        expect=Expect(
            verdict="block" if row["verdict"] == "block" else "allow",
            reason=row["reason"],
            sip_status=status,
            answered=connects,
            callee_rang=connects,
            prompt="" if connects else prompt_of(group),
            cli_class=row["class"],
            two_way_audio=True if connects else None,
        ),
    )


def _words(row: Mapping[str, str]) -> Sequence[str]:
    return row["setting"].split()


def _consents(callee: Mapping[str, str]) -> Iterator[ConsentGiven]:
    for word in callee["consents"].split():
        verb, channel, call_class = word.split(":")
        if channel == "voice":
            yield ConsentGiven.model_validate({"verb": verb, "number": callee["number"], "class": call_class})


def _entries(row: Mapping[str, str], callee: Mapping[str, str], where: str) -> Iterator[EntryGiven]:
    for pattern in callee["allow"].split():
        yield EntryGiven(pattern=pattern, action="allow", subscriber=callee["number"])
    for word in _words(row):
        key, _, value = word.partition("=")
        if word in _NOTES:
            yield EntryGiven(pattern=row["cli"], action="note", list=_NOTES[word])
        elif key == "list":
            yield EntryGiven(pattern=row["cli"], list=value)
        elif key != "binding" and word not in _OF_THE_TRUNK:
            raise BadInput(f"{where}: the lab cannot do {word!r}")


def _bindings(row: Mapping[str, str], callee: Mapping[str, str]) -> Iterator[BindingGiven]:
    for word in _words(row):
        key, _, value = word.partition("=")
        if key == "binding":
            yield BindingGiven(x=row["cli"], callee=callee["number"], expired=value == "expired")
