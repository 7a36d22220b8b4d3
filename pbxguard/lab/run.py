"""Place the calls of scenarios in the lab, gather the evidence, and say whether all was as expected."""

import asyncio
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from pbxguard import prompts
from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable, PbxguardError
from pbxguard.lab import evidence
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.capture import capturing
from pbxguard.lab.evidence import Evidence, Observed
from pbxguard.lab.scenario import CallStep, Expect, Given, Scenario, Step
from pbxguard.lab.topology import PHONES
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import Capture
from pbxguard.lab.world import World
from pbxguard.packs import load as load_pack
from pbxguard.screening.lists import NOTES, Action, ListEntry, normalise_pattern
from pbxguard.screening.numbering import home_key
from pbxguard.screening.privacy import Binding
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.screening.treatment import ASTERISK, FREESWITCH, refusal
from pbxguard.store import DecisionRow, Store

#: Called after each call with its evidence.
Report = Callable[[Evidence], None]

_NOTHING = Observed("failed", "not_placed", None, answered=False, callee_rang=False, prompt="", prompt_score=0.0,
                    post_dial_ms=None)  # fmt: skip


@dataclass
class Run:
    """The result of one run.

    Attributes:
        name: Of its folder below ``evidence/``.
        calls: Evidence of each call, in the order of the scenarios.
        seconds: How long it took.
    """

    name: str
    folder: Path
    pbx: str = "asterisk"
    calls: list[Evidence] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> int:
        return sum(call.passed for call in self.calls)

    @property
    def failed(self) -> int:
        return len(self.calls) - self.passed

    def as_json(self) -> dict[str, object]:
        """``report.json`` as DESIGN section 7 has it."""
        return {
            "run": self.name,
            "pbx": self.pbx,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
            "calls": [call.as_json() for call in self.calls],
        }


def run_name(now: datetime | None = None) -> str:
    """A name that sorts by time and does not repeat."""
    return f"{(now or datetime.now(UTC)):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Stage:
    """Places calls in a lab that is up, against the store of a state folder.

    Args:
        world: The lab.
        state: State folder of the handler that is running.
        callers: Open connections to the actors.
    """

    def __init__(self, world: World, state: Path, callers: Callers) -> None:
        self.world = world
        self.settings: Settings = world.settings
        self.state = state
        self.callers = callers
        self.pack = load_pack(self.settings.pack)
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.store_url = self.settings.store.url or str(state / "pbxguard.db")

    async def call(
        self, step: CallStep, folder: Path, *, scenario: str, title: str, expected: Expect | None = None,
        wait_decision: bool = True,
    ) -> Evidence:  # fmt: skip
        """Place one call and leave its evidence in *folder*."""
        tag = secrets.token_hex(8)
        placing = Placing(
            id=tag,
            trunk=step.trunk,
            cli=step.cli,
            callee=step.number,
            display_name=step.display_name,
            hang_up_after=step.hang_up_after,
            offer=step.offer,
            raw=step.raw,
            headers=step.headers,
            session=step.session,
            sdp=step.sdp,
        )
        captures = self.world.root / "captures"
        # A telephone takes one call at a time; a second one would be busy, whatever the verdict.
        line = self._lines[step.number] if expected is None or expected.answered else nullcontext()
        async with line, capturing(self.world.engine, self.world.watcher, captures, tag) as path:
            await self.callers.place(placing)
        pcap = folder / "call.pcap"
        await asyncio.to_thread(_move, path, pcap)
        return await self._gather(tag, pcap, step, scenario, title, expected, wait_decision=wait_decision)

    async def _gather(
        self, tag: str, pcap: Path, step: CallStep, scenario: str, title: str, expected: Expect | None,
        *, wait_decision: bool,
    ) -> Evidence:  # fmt: skip
        capture = await asyncio.to_thread(Capture.load, pcap)
        legs = evidence.legs_of(capture, tag)
        if legs is None:
            lost = ("the INVITE did not reach the PBX",)
            return Evidence(scenario, title, "", step, expected, _NOTHING, lost, pcap.parent)
        call_id = legs.caller.call_id
        # Without a handler there must be no decision: what the call met then is the dialplan's own policy.
        decision = await self._decision(call_id) if wait_decision else self._stored(call_id)
        prompt_dir = prompts.prompt_dir(self.settings.prompts)
        observed = await asyncio.to_thread(evidence.observe, legs, decision, prompt_dir)
        wrong: tuple[str, ...] = ()
        if expected is not None:
            expected = self._declared(expected)
        if expected is not None:
            languages = tuple(decision.extra["languages"]) if decision else ()
            wrong = evidence.faults(expected, observed, wanted_languages=languages)
        result = Evidence(scenario, title, call_id, step, expected, observed, wrong, pcap.parent)
        await asyncio.to_thread(evidence.write, pcap.parent, capture, legs, result, decision)
        return result

    def _declared(self, expected: Expect) -> Expect:
        """What is expected of this PBX: another status only where its capabilities declare one."""
        if self.world.pbx == "asterisk" or expected.sip_status < 300 or expected.reason == "guard_failed":
            return expected
        status, _ = refusal(self.pack.reason_group(expected.reason), FREESWITCH)
        same, _ = refusal(self.pack.reason_group(expected.reason), ASTERISK)
        return expected.model_copy(update={"sip_status": status}) if expected.sip_status == same else expected

    def _stored(self, call_id: str) -> DecisionRow | None:
        with Store.open(self.store_url) as store:
            return store.decision(call_id)

    async def _decision(self, call_id: str) -> DecisionRow | None:
        """The guard's record of the call; it is written a moment behind the call."""
        try:
            await wait_for(lambda: self._stored(call_id) is not None, 3, "the decision record")
        except LabUnavailable:
            return None
        return self._stored(call_id)

    def give(self, given: Given) -> None:
        """Put registry events and list entries of a scenario into the store."""
        now = datetime.now(UTC)
        with Store.open(self.store_url) as store:
            for consent in given.registry:
                store.append(
                    ConsentEvent(
                        number=_number(consent.number),
                        call_class=CallClass(consent.call_class),
                        channel="voice",
                        verb=Verb(consent.verb),
                        effective_at=now,
                        recorded_at=now,
                        actor="scenario",
                        via="cli",
                    )
                )
            for entry in given.lists:
                owner = _number(entry.subscriber) if entry.subscriber else ""
                name = entry.list or ("own" if owner else "system")
                pattern = normalise_pattern(
                    entry.pattern, partial(home_key, pack=self.pack), home="+" + self.pack.cc, tags=self.pack.tags
                )
                if entry.action == "note":
                    for other in NOTES - {name}:  # the notes of an earlier call of this CLI
                        store.remove_entry("", pattern, other)
                store.add_entry(
                    ListEntry(owner, pattern, Action(entry.action), name, source="scenario", retained=entry.retained)
                )
            store.bind(
                Binding(
                    x=home_key(each.x, self.pack),
                    a="",
                    b=_number(each.callee),
                    since=now - timedelta(days=1),
                    until=now if each.expired else None,
                )
                for each in given.bindings
            )

    def disturbed(self, how: str) -> AbstractContextManager[None]:
        """The handler killed or frozen in this block."""
        handler = self.world.handler
        if how == "killed":
            return handler.killed(self.state)
        return handler.frozen() if how == "frozen" else nullcontext()


async def run_scenarios(
    world: World, scenarios: Sequence[Scenario], root: Path, *, jobs: int = 12, report: Report = lambda _: None
) -> Run:
    """Run scenarios against a fresh state, so that nothing of the operator's is read or changed.

    The handler is restarted on a state folder below the run's folder, and on the operator's own afterwards.

    Args:
        world: A lab that is up.
        scenarios: At least one.
        root: Folder for runs, usually ``evidence``.
        jobs: How many calls at once; scenarios that disturb the handler run alone, after the others.
        report: Told of each call when it is done.
    """
    if not scenarios:
        raise LabUnavailable("no scenario was selected")
    name = run_name()
    run = Run(name, root / name, world.pbx)
    run.folder.mkdir(parents=True)
    state = (run.folder / "state").resolve()
    state.mkdir()
    started = time.monotonic()
    world.seed(world.settings.store.url or str(state / "pbxguard.db"))
    await asyncio.to_thread(world.handler.start, state)
    try:
        async with Callers.open(world.engine, world.passwords.ami) as callers:
            stage = Stage(world, state, callers)
            gate = asyncio.Semaphore(jobs)

            async def one(scenario: Scenario) -> list[Evidence]:
                async with gate:
                    return await _run_one(stage, scenario, run.folder, report)

            together = [s for s in scenarios if not s.alone]
            done = dict(zip([s.name for s in together], await asyncio.gather(*map(one, together)), strict=True))
            for scenario in scenarios:
                if scenario.alone:
                    done[scenario.name] = await one(scenario)
        run.calls = [call for scenario in scenarios for call in done[scenario.name]]
    finally:
        await asyncio.to_thread(world.handler.start, world.state)
    run.seconds = time.monotonic() - started
    return run


async def _run_one(stage: Stage, scenario: Scenario, root: Path, report: Report) -> list[Evidence]:
    async def place(number: int, step: Step) -> Evidence:
        suffix = f"-{number}" if len(scenario.step) > 1 else ""
        try:
            result = await stage.call(
                step.call,
                root / f"{scenario.name}{suffix}",
                scenario=scenario.name,
                title=step.title,
                expected=step.expect,
                wait_decision=handler == "running",
            )
        except PbxguardError as error:
            result = Evidence(scenario.name, step.title, "", step.call, step.expect, _NOTHING, (str(error),))
        report(result)
        return result

    found: list[Evidence] = []
    steps = list(enumerate(scenario.step, start=1))
    for batch in [steps] if scenario.together else [[step] for step in steps]:
        given = batch[0][1].given
        handler = given.handler
        await asyncio.to_thread(stage.give, given)
        disturbance = stage.disturbed(handler)
        await asyncio.to_thread(disturbance.__enter__)
        try:
            found += await asyncio.gather(*(place(number, step) for number, step in batch))
        finally:
            await asyncio.to_thread(disturbance.__exit__, None, None, None)
    return found


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The lab's state and the evidence may be on different file systems.
    shutil.move(source, target)


def _number(who: str) -> str:
    return next((phone.number for phone in PHONES if phone.name == who), who)
