"""Place the calls of scenarios in the lab, gather the evidence, and say whether all was as expected.

Several worlds share a run: whichever is free takes the next scenario.
"""

import asyncio
import secrets
import shutil
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from pbxguard import prompts
from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable, PbxguardError
from pbxguard.lab import evidence, expectations, messages
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.capture import capturing, join, merge
from pbxguard.lab.disturb import Moments, Told, disturbed
from pbxguard.lab.evidence import Evidence, Observed
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.links import LinkUnsupported
from pbxguard.lab.messages import Texted, TextObserved
from pbxguard.lab.remark import remark
from pbxguard.lab.room import CALLS, Ticks
from pbxguard.lab.scenario import CallStep, Expect, Given, Scenario, Step
from pbxguard.lab.texts import Texting
from pbxguard.lab.topology import PHONES, members, number_of
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

#: What makes a call a failed one, and not the run: a time-out and a full disk are OSErrors too.
_FAILURES = (PbxguardError, OSError)

_NOTHING = Observed("failed", "not_placed", None, answered=False, callee_rang=False, prompt="", prompt_score=0.0,
                    post_dial_ms=None)  # fmt: skip


@dataclass
class Run:
    """The result of one run.

    Attributes:
        name: Of its folder below ``evidence/``.
        calls: Evidence of each call, in the order of the scenarios.
        skipped: Scenarios of which no call counts, and why.
        dealt: Which world took which scenario.
        seconds: How long it took.
        stolen: Part of the processors' time wanted meanwhile that the machine's host gave to others, 0 to 1.
    """

    name: str
    folder: Path
    pbx: str = "asterisk"
    calls: list[Evidence] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    dealt: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stolen: float = 0.0

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
            "stolen": round(self.stolen, 3),
            "dealt": self.dealt,
            "calls": [call.as_json() for call in self.calls],
        }


class Watch:
    """Is told what goes on while a run does; this one listens to nothing. Worlds are named by their index."""

    def say(self, world: int, what: str) -> None:
        """A world does *what*; "" when it waits for nothing but its calls."""

    def started(self, world: int, scenario: Scenario, step: Step) -> None:
        """A call is placed."""

    def skipped(self, world: int, scenario: Scenario, why: str) -> None:
        """No call of it counts: this machine cannot do what it needs."""

    def ended(self, world: int, result: Evidence) -> None:
        """A call is over and judged."""


def run_name(now: datetime | None = None) -> str:
    """A name that sorts by time and does not repeat."""
    return f"{(now or datetime.now(UTC)):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A call that is over and not judged yet: its tag, its capture, and what went wrong in placing it."""

    tag: str
    pcap: Path
    broken: tuple[str, ...] = ()


class Stage:
    """Places calls in a lab that is up, against the store of a state folder.

    Args:
        world: The lab.
        state: State folder of the handler that is running.
        callers: Open connections to the actors.
        texting: What sends texts, where that is wanted.
    """

    def __init__(self, world: World, state: Path, callers: Callers, texting: Texting | None = None) -> None:
        self.world = world
        self.settings: Settings = world.settings
        self.state = state
        self.callers = callers
        self.texting = texting
        self.pack = load_pack(self.settings.pack)
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._quiet = asyncio.Condition()
        self._used: Counter[str] = Counter()
        self._changing: set[str] = set()
        #: Gateways of which the last settings did not come to be.
        self._unsettled: set[str] = set()
        self.store_url = self.settings.store.url or str(state / "pbxguard.db")

    async def call(
        self, step: CallStep, folder: Path, *, scenario: str, title: str, expected: Expect | None = None,
        wait_decision: bool = True,
    ) -> Evidence:  # fmt: skip
        """Place one call and leave its evidence in *folder*."""
        placed = await self.place(step, folder, expected)
        return await self.judge(placed, step, scenario, title, expected, Told(), wait_decision=wait_decision)

    async def place(
        self, step: CallStep, folder: Path, expected: Expect | None = None, moments: Moments | None = None,
        *, at_caller: bool = False,
    ) -> _Placed:  # fmt: skip
        """Place one call and leave its capture in *folder*.

        Args:
            step: The call.
            folder: For the evidence.
            expected: What the scenario asks of it.
            moments: Told of the call when it is about to be placed.
            at_caller: The caller's leg is captured at its own end: its link, or the PBX, does not hold.
        """
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
            line=step.line,
            listen=step.listen,
            talk=step.talk,
            dtmf=step.dtmf,
            codecs=step.codecs,
        )
        captures = self.world.root / "captures"
        # A telephone takes one call at a time; a second one would be busy, whatever the verdict.
        lines = members(step.number) if expected is None or expected.answered is not False else ()
        broken: tuple[str, ...] = ()
        net = self.world.net
        near = net.caller(net.into_pbx(step.trunk))
        async with AsyncExitStack() as stack:
            for number in sorted(lines):
                await stack.enter_async_context(self._lines[number])
            capture = partial(capturing, self.world.engine, folder=captures)
            path = await stack.enter_async_context(capture(self.world.watcher, name=tag))
            before = [
                await stack.enter_async_context(capture(self.world.container(actor), name=f"{tag}-{actor}"))
                for actor in net.before_pbx(step.trunk)
            ]
            if at_caller:
                own = await stack.enter_async_context(capture(self.world.container(near.name), name=f"{tag}-caller"))
            if moments is not None:
                moments.begin(path, tag)
            try:
                await self.callers.place(placing)
            except _FAILURES as error:
                # What was on the wire until then says why.
                broken = (_said(error),)
        pcap = folder / "call.pcap"
        if at_caller:
            await asyncio.to_thread(merge, path, own, near.address)
        await asyncio.to_thread(_keep, [path, *before], pcap)
        return _Placed(tag, pcap, broken)

    async def text(self, step: Step, folder: Path, *, scenario: str) -> Evidence:
        """Send one text and leave its evidence in *folder*. The guard is not asked: texts are not screened yet."""
        if step.text is None or self.texting is None:
            raise LabUnavailable("no text to send, or nothing that sends it")
        tag, seen, broken = secrets.token_hex(8), TextObserved(), tuple[str, ...]()
        captures = self.world.root / "captures"
        async with capturing(self.world.engine, self.world.watcher, captures, tag) as path:
            try:
                seen = await self.texting.send(step.text, tag, path)
            except _FAILURES as error:
                broken = (_said(error),)
        pcap = folder / "call.pcap"
        await asyncio.to_thread(_keep, [path], pcap)
        capture = await asyncio.to_thread(Capture.load, pcap)
        wire = messages.messages_of(capture, tag)
        took = (wire[-1].at - wire[0].at) * 1000 if wire else None
        observed = replace(
            _NOTHING, verdict="unscreened", reason="not_screened", sip_status=seen.message, total_ms=took
        )
        text = Texted(tag, step.text, step.expect_text, seen)
        wrong = broken + messages.faults(step.text, step.expect_text, seen)
        call_id = wire[0].call_id if wire else ""
        result = Evidence(scenario, step.title, call_id, step.call, None, observed, wrong, folder, text=text)
        await asyncio.to_thread(evidence.write, folder, capture, None, result, None)
        return result

    async def judge(
        self, placed: _Placed, step: CallStep, scenario: str, title: str, expected: Expect | None, told: Told,
        *, wait_decision: bool,
    ) -> Evidence:  # fmt: skip
        """What was observed of a call that is over, and whether that is as expected; leaves it with the capture."""
        tag, pcap, broken = placed.tag, placed.pcap, (*placed.broken, *told.missed())
        capture = await asyncio.to_thread(Capture.load, pcap)
        legs = evidence.legs_of(capture, tag)
        if legs is None:
            lost = (*broken, "INVITE: expected at the PBX, observed none anywhere")
            return Evidence(scenario, title, "", step, expected, _NOTHING, lost, pcap.parent)
        call_id = legs.caller.call_id
        # Without a handler there must be no decision: what the call met then is the dialplan's own policy.
        wait_decision = wait_decision and legs.reached
        decision = await self._decision(call_id) if wait_decision else self._stored(call_id)
        prompt_dir = prompts.prompt_dir(self.settings.prompts)
        observed = await asyncio.to_thread(evidence.observe, legs, decision, prompt_dir)
        wrong = broken
        late = evidence.late_by(legs.caller, decision)
        if expected is not None:
            expected = self._declared(expected, observed.reason)
            languages = tuple(decision.extra["languages"]) if decision and not late else ()
            cdr = await self._cdr(tag) if expected.cdr else {}
            wrong += evidence.faults(expected, observed, decision, wanted_languages=languages)
            wrong += await asyncio.to_thread(expectations.faults, expected, capture, legs, observed, decision, cdr)
        lines = told.words(legs.caller.invite.at)
        if decision is not None and late:
            said = f"{decision.verdict} ({decision.reason})"
            lines += (f"the guard's verdict, {said}, came {late:.2f} s after the PBX had acted",)
        result = Evidence(scenario, title, call_id, step, expected, observed, wrong, pcap.parent, lines)
        if wrong and expected is not None and (nowhere := await asyncio.to_thread(remark, self.world, result)):
            result = replace(result, faults=(f"the call rang nowhere: {nowhere}", *wrong))
        await asyncio.to_thread(evidence.write, pcap.parent, capture, legs, result, decision)
        return result

    def _declared(self, expected: Expect, reason: str) -> Expect:
        """What is expected of this PBX: another status only where its capabilities declare one."""
        if self.world.pbx == "asterisk" or (expected.sip_status or 0) < 300 or expected.verdict != "block":
            return expected
        group = self.pack.reason_group(expected.reason or reason)
        status, _ = refusal(group, FREESWITCH)
        same, _ = refusal(group, ASTERISK)
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

    @asynccontextmanager
    async def undisturbed(self, scenario: Scenario) -> AsyncIterator[None]:
        """Nobody else calls the numbers whose consents *scenario* changes, nor changes those that it calls."""
        changes = changed_by(scenario)
        calls = {number for step in scenario.step for number in members(step.call.number)} - changes
        async with self._quiet:
            await self._quiet.wait_for(
                lambda: not any(self._used[number] for number in changes) and not calls & self._changing
            )
            self._changing |= changes
            self._used.update([*calls, *changes])
        try:
            yield
        finally:
            async with self._quiet:
                self._changing -= changes
                self._used.subtract([*calls, *changes])
                self._quiet.notify_all()

    async def _cdr(self, tag: str) -> dict[str, str]:
        """The PBX's own record of the call; it is written when the last channel is gone."""
        found: dict[str, str] = {}
        try:
            async with asyncio.timeout(5):
                while not found:
                    found = await asyncio.to_thread(self.world.cdr, tag)
        except TimeoutError:
            return {}
        return found

    def give(self, given: Given) -> None:
        """Put registry events and list entries of a scenario into the store."""
        now = datetime.now(UTC)
        with Store.open(self.store_url) as store:
            for consent in given.registry:
                store.append(
                    ConsentEvent(
                        number=number_of(consent.number),
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
                owner = number_of(entry.subscriber) if entry.subscriber else ""
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
                    b=number_of(each.callee),
                    since=now - timedelta(days=1),
                    until=now if each.expired else None,
                )
                for each in given.bindings
            )

    async def set_up(self, gateways: Mapping[str, GatewayPlan]) -> None:
        """Have the gateways run with these settings, those that are not named as the lab has them.

        Who cancels meanwhile waits until all of them do.
        """
        wanted: dict[str, GatewayPlan] = {}
        for caller in self.world.net.callers:
            plan = caller.gateway
            if plan is not None and caller.name in gateways:
                said = gateways[caller.name].model_dump(exclude_unset=True)
                plan = GatewayPlan.model_validate(plan.model_dump() | said)
            if plan is not None and (plan != self.world.gateways[caller.name] or caller.name in self._unsettled):
                wanted[caller.name] = plan
                self.callers.forget(caller.name)

        def work() -> None:
            for name, plan in wanted.items():
                self._unsettled.add(name)
                self.world.gateway(name, plan)
                self._unsettled.remove(name)

        if wanted:
            await _finished(work)

    def disturbed(self, how: str) -> AbstractContextManager[None]:
        """The handler killed or frozen in this block."""
        handler = self.world.handler
        if how == "killed":
            return handler.killed(self.state)
        return handler.frozen() if how == "frozen" else nullcontext()


async def run_scenarios(
    world: World, scenarios: Sequence[Scenario], root: Path, *, calls: int = CALLS, beside: Sequence[World] = (),
    watch: Watch | None = None,
) -> Run:  # fmt: skip
    """Run scenarios against a fresh state, so that nothing of the operator's is read or changed.

    The handler is restarted on a state folder below the run's folder, and on the operator's own afterwards.

    Args:
        world: A lab that is up.
        scenarios: At least one that is for the world's PBX; the others are skipped by name.
        root: Folder for runs, usually ``evidence``.
        calls: How many calls at once in each world; a scenario that disturbs the handler has its world alone.
        beside: More worlds; they are brought up for this run and taken down at its end.
        watch: Told of each call when it begins and when it is done.

    Raises:
        LabUnavailable: No scenario is left to run, or no world to run it in.
    """
    chosen = [scenario for scenario in scenarios if scenario.pbx in (None, world.pbx)]
    names = {scenario.name for scenario in chosen}
    name = run_name()
    run = Run(name, root / name, world.pbx)
    run.skipped = [
        {"scenario": each.name, "why": f"it is for {each.pbx}, and this run is on {world.pbx}"}
        for each in scenarios
        # What a matrix says of the other PBX is no gap where it has the same call for this one.
        if each.name not in names
    ]
    if not chosen:
        others = f": all {len(scenarios)} are for another PBX than {world.pbx}" if scenarios else ""
        raise LabUnavailable(f"no scenario was selected{others}")
    run.folder.mkdir(parents=True)
    started, ticks = time.monotonic(), Ticks.now()
    deal = _Deal(chosen, watch or Watch(), run.folder, calls, worlds=1 + len(beside))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(deal.play(world, alone_first=False))
            for number, other in enumerate(beside, start=1):
                # The last begins with those that want a world for themselves: they take longest.
                group.create_task(deal.play_beside(other, alone_first=number == len(beside)))
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    run.skipped += [deal.skipped[number] for number in sorted(deal.skipped)]
    run.calls = [call for number in range(len(chosen)) for call in deal.done[number]]
    run.dealt = {chosen[number].name: deal.taken[number] for number in range(len(chosen))}
    run.seconds = time.monotonic() - started
    run.stolen = Ticks.now().stolen_since(ticks)
    return run


def changed_by(scenario: Scenario) -> set[str]:
    """Numbers whose registry or own lists are another after this scenario, for callers other than its own too."""
    return {
        number_of(who)
        for step in scenario.step
        for who in (
            *(consent.number for consent in step.given.registry),
            *(entry.subscriber for entry in step.given.lists if not entry.pattern.lstrip("+").isdigit()),
        )
        if who
    }


def _length(scenario: Scenario) -> int:
    """How long it takes, counted in calls: one that rings until the PBX gives up is as long as ten."""
    rings = {phone.number for phone in PHONES if phone.behaviour == "rings"}

    def waits(step: Step) -> bool:
        allowed = step.expect is not None and step.expect.verdict == "allow"
        return allowed and step.call.number in rings and step.call.hang_up_after is None

    each = [10 if waits(step) else 1 for step in scenario.step]
    return max(each) if scenario.together else sum(each)


class _Deal:
    """The scenarios of a run, dealt to whichever world is free.

    Attributes:
        done: Evidence of each scenario, by its number; ``taken`` likewise which world has it.
        skipped: Likewise which are skipped, and why.
    """

    def __init__(
        self, scenarios: Sequence[Scenario], watch: Watch, folder: Path, calls: int, worlds: int = 1
    ) -> None:  # fmt: skip
        # What a scenario has changed of a subscriber stays, so those that do come after those that do not; and the
        # long ones first, so that no world is left with one of them when the others are done.
        ordinary = [(n, s) for n, s in enumerate(scenarios) if not s.alone]
        self._ordinary = deque(sorted(ordinary, key=lambda each: (bool(changed_by(each[1])), -_length(each[1]))))
        self._alone = deque((n, s) for n, s in enumerate(scenarios) if s.alone)
        self._watch = watch
        self._folder = folder
        self._calls = calls
        # The start of a world's twenty programs is heard in the calls of another, so none is placed before every
        # world is up, or known not to come.
        self._settled = asyncio.Barrier(worlds)
        self.done: dict[int, list[Evidence]] = {}
        self.taken: dict[int, int] = {}
        self.skipped: dict[int, dict[str, str]] = {}

    async def play(self, world: World, *, alone_first: bool) -> None:
        """Let a world that is up take scenarios until none is left."""
        async with self._stage(world) as stage:
            if self._settled.parties > 1:
                self._watch.say(world.net.index, "waiting for the other worlds")
            await self._settled.wait()
            self._watch.say(world.net.index, "")
            order = [(self._alone, 1), (self._ordinary, self._calls)]
            for left, at_once in order if alone_first else reversed(order):
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(at_once, len(left))):
                            group.create_task(self._take(stage, left))
                finally:
                    await _put_back(world, "the gateways' settings", stage.set_up({}))
            self._watch.say(world.net.index, "done")

    async def play_beside(self, world: World, *, alone_first: bool) -> None:
        """Bring a world up for this, and take it down afterwards; the others go on when it cannot be had."""
        try:
            self._watch.say(world.net.index, "coming up")
            try:
                await _finished(world.up, world.give_up.set)
            except PbxguardError as error:
                self._watch.say(world.net.index, f"did not come up: {error}")
            else:
                await self.play(world, alone_first=alone_first)
                return
        finally:
            await _finished(world.down)
        await self._settled.wait()  # gone, so that the others may begin

    @asynccontextmanager
    async def _stage(self, world: World) -> AsyncIterator[Stage]:
        """The world's handler on a fresh state for the time of this block, and the operator's own after it."""
        index = world.net.index
        state = (self._folder / (f"state-{index}" if index else "state")).resolve()
        state.mkdir()
        self._watch.say(index, "starting the handler")
        world.seed(world.settings.store.url or str(state / "pbxguard.db"))
        try:
            await _finished(partial(world.handler.start, state))
            async with (
                Callers.open(world.engine, world.passwords.ami, world.net, world.gateways) as callers,
                Texting.open(world, callers) as texting,
            ):
                yield Stage(world, state, callers, texting)
        finally:
            work = partial(world.handler.start, world.state) if index == 0 else world.handler.stop
            await _put_back(world, "the handler", _finished(work))

    async def _take(self, stage: Stage, left: deque[tuple[int, Scenario]]) -> None:
        while left:
            number, scenario = left.popleft()
            self.taken[number] = stage.world.net.index
            async with stage.undisturbed(scenario):
                try:
                    self.done[number] = await _Playing(stage, scenario, self._folder, self._watch).evidence()
                except LinkUnsupported as error:
                    # Without that fault its calls would show something else than they say.
                    self.done[number] = []
                    self.skipped[number] = {"scenario": scenario.name, "why": str(error)}
                    self._watch.skipped(stage.world.net.index, scenario, str(error))


class _Playing:
    """One scenario in one world."""

    def __init__(self, stage: Stage, scenario: Scenario, root: Path, watch: Watch) -> None:
        self._stage = stage
        self._scenario = scenario
        self._root = root
        self._watch = watch

    async def evidence(self) -> list[Evidence]:
        """Place its calls, and judge them; what cannot be set up for some is a fault of those.

        Raises:
            LinkUnsupported: A link cannot be made as it says.
        """
        found: list[Evidence] = []
        gateways: dict[str, GatewayPlan] = {}
        steps = list(enumerate(self._scenario.step, start=1))
        for batch in [steps] if self._scenario.together else [[step] for step in steps]:
            given, results = batch[0][1].given, list[Evidence]()
            gateways.update((str(name), plan) for name, plan in given.gateway.items())
            try:
                async with self._prepared(given, gateways):
                    results = await self._batch(batch)
            except LinkUnsupported:
                raise
            except _FAILURES as error:
                placed = [replace(each, faults=(*each.faults, _said(error))) for each in results]
                with suppress(OSError):
                    for each in placed:
                        await asyncio.to_thread(evidence.write_result, each)
                results = placed or [self._failed(step, _said(error)) for _, step in batch]
            for result in results:
                self._watch.ended(self._stage.world.net.index, result)
            found += results
        return found

    @asynccontextmanager
    async def _prepared(self, given: Given, gateways: Mapping[str, GatewayPlan]) -> AsyncIterator[None]:
        """What is given before calls is there in this block; the handler is as before after it."""
        if self._scenario.alone:
            await self._stage.set_up(gateways)
        await asyncio.to_thread(self._stage.give, given)
        disturbance = self._stage.disturbed(given.handler)
        await asyncio.to_thread(disturbance.__enter__)
        try:
            yield
        finally:
            await asyncio.to_thread(disturbance.__exit__, None, None, None)

    async def _batch(self, batch: Sequence[tuple[int, Step]]) -> list[Evidence]:
        """Steps that are placed at once, under what befalls links and programs in the first."""
        first = batch[0][1]
        ill = bool(first.links or first.disturb)
        told, moments = Told(), Moments()
        faults: tuple[str, ...] = ()
        placed: list[_Placed | Evidence] = []
        try:
            async with disturbed(self._stage.world, self._stage.state, moments, first.links, first.disturb) as told:
                placed = await asyncio.gather(
                    *(self._place(n, step, moments if step is first else None, at_caller=ill) for n, step in batch)
                )
        except LinkUnsupported:
            raise
        except _FAILURES as error:
            faults = (_said(error),)
        outcomes = placed or [self._failed(step) for _, step in batch]
        waits = first.given.handler == "running"
        return await asyncio.gather(
            *(
                self._judge(step, each, told, faults, wait_decision=waits)
                for (_, step), each in zip(batch, outcomes, strict=True)
            )
        )

    async def _place(
        self, number: int, step: Step, moments: Moments | None, *, at_caller: bool
    ) -> _Placed | Evidence:
        suffix = f"-{number}" if len(self._scenario.step) > 1 else ""
        self._watch.started(self._stage.world.net.index, self._scenario, step)
        folder = self._root / f"{self._scenario.name}{suffix}"
        try:
            if step.text is not None:
                return await self._stage.text(step, folder, scenario=self._scenario.name)
            return await self._stage.place(step.call, folder, step.expect, moments, at_caller=at_caller)
        except _FAILURES as error:
            return self._failed(step, _said(error))

    async def _judge(
        self, step: Step, placed: _Placed | Evidence, told: Told, faults: tuple[str, ...], *, wait_decision: bool
    ) -> Evidence:
        if isinstance(placed, Evidence):
            return replace(placed, faults=(*placed.faults, *faults))
        placed = replace(placed, broken=(*placed.broken, *faults))
        asked = (step.call, self._scenario.name, step.title, step.expect)
        try:
            return await self._stage.judge(placed, *asked, told, wait_decision=wait_decision)
        except _FAILURES as error:
            return self._failed(step, _said(error))

    def _failed(self, step: Step, *why: str) -> Evidence:
        return Evidence(self._scenario.name, step.title, "", step.call, step.expect, _NOTHING, why)


async def _finished(work: Callable[[], object], hurry: Callable[[], None] = lambda: None) -> None:
    """Do *work* in a thread and wait for its end, whoever cancels meanwhile (Ctrl-C, then the end of the loop).

    Only then comes the cancellation: nobody takes down what another thread still brings up.

    Args:
        work: What is done.
        hurry: Called when there is a cancellation.
    """
    done = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is None:
        done.result()
    else:
        done.exception()
        raise cancelled


async def _put_back(world: World, what: str, work: Awaitable[None]) -> None:
    """Await *work*, which puts *what* back to how the lab has it; a failure is said.

    It hides neither what went wrong before, nor the calls that were placed.
    """
    try:
        await work
    except _FAILURES as error:
        world.say(f"{what} could not be put back: {_said(error)}; `pbxguard lab up` does it")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _first(error: BaseException) -> BaseException:
    """The first of what went wrong in several tasks; the others were cancelled for it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _keep(captures: Sequence[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(captures) > 1:
        join(captures, target)
        for path in captures:
            path.unlink()
        return
    # The lab's state and the evidence may be on different file systems.
    shutil.move(captures[0], target)
