"""Running a comparison: the text once, then each model in its own process, resumable at every point."""

from __future__ import annotations

import datetime
import io
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mixlab.compare.budget import Speed, fit, measuring, overshoot, speed_of
from mixlab.compare.child import Signals, run_job
from mixlab.compare.evaluated import evaluated
from mixlab.compare.fairness import unequal
from mixlab.compare.folder import ComparisonFolder
from mixlab.compare.plan import Entry, Limits, Plan, make_plan
from mixlab.compare.request import Request
from mixlab.compare.terms import agree
from mixlab.compare.timing import judge
from mixlab.compare.workers import Workers, can_fork
from mixlab.config import to_mapping
from mixlab.data.dataset import BY_KEY
from mixlab.data.streams import is_stream
from mixlab.errors import RunFailed
from mixlab.train.files import check_name
from mixlab.train.metrics import Line
from mixlab.train.progress import Progress, Told

SPOOLED = re.compile(r"(stdin|pipe)-[0-9a-f]{12}\.\w.*")
"""A file that the comparison wrote itself, see `ComparisonFolder.spooled`."""


class Stopped(Exception):
    """A comparison was interrupted; its message says what was saved and how to go on."""


def compare(
    request: Request,
    out: Path | str,
    *,
    command: str = "",
    stdin: bytes | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare what `request` names in the folder `out`; returns what comparison.json holds.

    Called again with the same request it resumes: finished results are kept, a half-trained model resumes, a
    failed one is tried again. command: what to record as the way to make this comparison.
    stdin: the text that the source '-' stands for; read from standard input if absent.

    progress: called with the lines of each run's metrics.jsonl as they are written, and with
        {"kind": "plan", "steps", "counted", ...}: what is to come, see `Plan.work`; whether each run is an
            n-gram's
        {"kind": "run", "index", "runs", "model", "seed", "counted", "status"}: a run begins ("begun",
            "resumed") or is over ("kept", "done", "failed" with a "reason")
        {"kind": "prepare", ...}: how far a long text is read and encoded, see `mixlab.data.corpus.Progress`
        {"kind": "note", "message"}: a sentence for a person.

    After an OSError of its own `progress` is called no more. Raises UserError for what cannot be done, before
    anything is trained, and Stopped after SIGINT, SIGTERM or SIGHUP.
    """
    request = request.validate()
    folder = ComparisonFolder(Path(out))
    check_name(folder.path)
    folder.check_usable()
    progress = Told(progress or (lambda line: None))
    with folder.locked():
        data = request.data
        if not any(map(is_stream, (*data.sources, *data.valid))):
            return _Comparison(request, folder, command, progress).run()
        text = None if stdin is None else io.BytesIO(stdin)
        with folder.spooled((*data.sources, *data.valid), text) as files:
            number = len(data.sources)
            request = replace(request, data=replace(data, sources=files[:number], valid=files[number:]))
            return _Comparison(request, folder, command, progress).run()


class _Comparison:
    """One call of `compare`."""

    def __init__(self, request: Request, folder: ComparisonFolder, command: str, progress: Progress) -> None:
        from mixlab.data import prepare
        from mixlab.train import machine, threads

        self.started = time.monotonic()
        self.request, self.folder, self.command, self.progress = request, folder, command, progress
        self.said: set[str] = set()
        self.dataset = prepare(
            request.data, context=request.context, notes=self.note_of_text, progress=progress
        )
        self.terms = agree(folder.saved_plan(), self.note)
        with threads.using(self.terms.here.threads):
            self.environment = machine.environment(machine.measure(self.terms.here.device))
        self.results: dict[str, dict[str, Any]] = {}
        self.speeds: dict[str, Speed] = {}
        self.continued = False  # whether an earlier command did a part of it

    def note(self, message: str) -> None:
        """Tell a person something, once."""
        if message not in self.said:
            self.said.add(message)
            self.progress({"kind": "note", "message": message})

    def note_of_text(self, message: str) -> None:
        """Tell a person of the text; how much of it is scored follows from the plan, and the runs say it."""
        if not message.endswith(BY_KEY):
            self.note(message)

    def run(self) -> dict[str, Any]:
        with Signals() as signals, Workers(forked=can_fork()) as self.workers:
            self.plan = self.make_plan(signals)
            self.folder.begin(self.plan, self.dataset.facts)
            counted = [entry.counted for entry in self.plan.entries]
            self.progress({"kind": "plan", **self.plan.work(self.dataset), "counted": counted})
            for index, entry in enumerate(self.plan.entries, 1):
                self.one(index, entry, signals)
                comparison = self.assemble()
                self.folder.write(comparison)
            self.tell_overshoot()
        return comparison

    def make_plan(self, signals: Signals) -> Plan:
        """The plan; its steps are known, or were settled when the folder was begun, or are probed now."""
        steps = self.request.fixed_steps()
        if steps is not None:
            return self.plan_for(steps)
        budget = (self.folder.saved_plan() or {}).get("budget", {})
        if budget.get("minutes") == self.request.minutes:
            limits = Limits(**{key: budget[key] for key in asdict(Limits())})
            return self.plan_for(budget["steps"], limits)
        return self.probed(self.plan_for(1), signals)

    def plan_for(self, steps: int, limits: Limits | None = None) -> Plan:
        """The plan of so many steps on this text."""
        return make_plan(
            self.request,
            vocab_size=self.dataset.tokenizer.vocab_size,
            steps=steps,
            train_tokens=self.dataset.facts["train_tokens"],
            terms=self.terms,
            limits=limits or Limits(),
        )

    def probed(self, plan: Plan, signals: Signals) -> Plan:
        """The plan with the steps that fit into the minutes, by a few steps of each model."""
        minutes = self.request.minutes
        assert minutes is not None
        by_config: dict[str, Speed] = {}
        self.note(f"measuring each model's speed, to fit {minutes:g} minutes")
        models = len({entry.equally_fast() for entry in plan.entries})
        job = {"kind": "probe", "seconds": measuring(minutes, models)}
        with tempfile.TemporaryDirectory() as nowhere:
            for entry in plan.entries:
                same, started = entry.equally_fast(), time.monotonic()
                if same not in by_config and not entry.problem:
                    last = self.work(entry, signals, job, log=Path(nowhere, "log"))
                    if last["kind"] == "speed":
                        by_config[same] = speed_of(last, time.monotonic() - started)
                if same in by_config:  # one that fails here will fail again, with its reason, when it is run
                    self.speeds[entry.label] = by_config[same]
        facts = self.dataset.facts
        spent = time.monotonic() - self.started
        train, valid = facts["train_tokens"], facts["valid_tokens"]
        found = fit(minutes, spent, plan, self.speeds, train=train, valid=valid)
        plan = self.plan_for(found.steps, found.limits)
        neural = [entry for entry in plan.entries if not entry.counted]
        if neural:
            self.note(f"each neural model gets {plan.tokens:,} tokens ({found.steps:,} steps)")
        self.note(
            f"{spent / 60:.1f} of {minutes:g} minutes are over; the runs take about "
            f"{found.seconds / 60:.1f}, {found.evaluation / 60:.1f} of these for evaluations"
        )
        return plan

    def one(self, index: int, entry: Entry, signals: Signals) -> None:
        """Bring one run to its result, whatever state it is in."""
        facts = {
            "kind": "run",
            "index": index,
            "runs": len(self.plan.entries),
            "model": entry.name,
            "seed": entry.seed,
            "counted": entry.counted,
        }
        result = self.folder.result(entry)
        if result is not None:
            self.results[entry.label] = result | entry.facts()
            self.continued = True
            self.progress({**facts, "status": "kept"})
            return
        reason = entry.problem
        if not reason:
            resume = self.folder.prepare_run(entry)
            self.continued |= resume
            self.progress({**facts, "status": "resumed" if resume else "begun"})
            last = self.work(entry, signals, {"kind": "run", "resume": resume})
            reason = last.get("reason", "")
        result = None if reason else self.folder.result(entry)
        if result is None:
            reason = reason or "it left no result"
            result = {"seed": entry.seed, "status": "failed", "reason": reason}
            result["config"] = to_mapping(entry.config)
        self.results[entry.label] = result | entry.facts()
        self.progress({**facts, "status": result["status"], "reason": result["reason"]})

    def work(self, entry: Entry, signals: Signals, job: Line, log: Path | None = None) -> Line:
        """Have a worker do the job; Stopped if a signal came. log: for its stderr, by default the run's."""
        from mixlab.data.handing import hand
        from mixlab.decode.samples import prompt_of

        request, valid = self.request, self.dataset.valid
        job = {
            **job,
            "config": to_mapping(entry.config),
            "imports": list(request.imports),
            "text": hand(self.dataset),
            "run": str(self.folder.run(entry)),
            "context": request.context,
            "prompt": prompt_of(valid, self.dataset.tokenizer),
            "decode_from": [int(token) for token in valid.tokens[: request.context]],
        }
        log = log or self.folder.log(entry)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            last = run_job(job, log=log, signals=signals, progress=self.pass_on, workers=self.workers)
        except OSError as error:
            raise RunFailed(f"cannot run {entry.label}: {error.strerror or error}") from error
        if signals.requested:
            raise Stopped(
                f"interrupted after {len(self.results)} finished runs; {self.folder.path} holds all that was "
                "done, and the same command goes on from there"
            )
        return last

    def tell_overshoot(self) -> None:
        """Say so if this command did all of it and took longer than it was asked to."""
        minutes, seconds = self.request.minutes, time.monotonic() - self.started
        if minutes is None or self.continued:
            return
        if sentence := overshoot(minutes, seconds, self.speeds, self.results):
            self.note(sentence)

    def pass_on(self, line: Line) -> None:
        """A worker's line; each worker reads the same text and would say the same of it."""
        if line.get("kind") == "note":
            self.note(str(line.get("message")))
        else:
            self.progress(line)

    def assemble(self) -> dict[str, Any]:
        """comparison.json, with the results so far."""
        results = [
            {**self.results[e.label], "run": str(self.folder.run(e).relative_to(self.folder.path))}
            for e in self.plan.entries
            if e.label in self.results
        ]
        models, timing = self.request.models, judge(results)
        axes = {axis.key: axis.values for axis in self.request.axes()}
        swept = {"grid": {"keys": axes}} if axes else {}
        different = unequal(results, self.plan.budget(), self.dataset.facts, timed=bool(timing["trusted"]))
        return {
            "title": f"{models[0] if len(models) == 1 else f'{len(models)} models'} on "
            f"{called(self.request.data.sources)}",
            "folder": str(self.folder.path),
            "imports": list(self.request.imports),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "corpus": self.dataset.facts,
            "environment": self.environment,
            "budget": {**self.plan.budget(), "unequal": different},
            **swept,
            "timing": timing,
            "evaluation": evaluated(results, self.dataset.facts),
            "results": results,
        }


def called(sources: Sequence[str]) -> str:
    """What a text is called in a title: its file's name, or how many files there are."""
    if len(sources) > 1:
        return f"{len(sources)} texts"
    (source,) = sources
    if source.startswith("corpus:"):
        return source
    name = Path(source).absolute().name or source
    spooled = SPOOLED.fullmatch(name)
    return {"stdin": "standard input", "pipe": "a pipe"}[spooled[1]] if spooled else name
