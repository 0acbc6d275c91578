"""The stage calibrate in the graph of stages: the policy that keeps or escalates answers."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from slmctl import console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import CalibrateConfig
from slmctl.errors import DataError, GateError, IntegrityError, UsageError
from slmctl.network.decisions import CHAT
from slmctl.pipeline import predictions, runner
from slmctl.pipeline.estimates import KnownSizes, StageEstimate
from slmctl.pipeline.graph import ENGINE, PREPARED, Get, Inputs, Project, Role, Stage, StageRequest
from slmctl.pipeline.predictions import EndpointModel
from slmctl.pipeline.runner import Outcome

LIKELY = 0.5  # least chance to pass of a policy that is printed without a note
OF_ENCODER = "  the encoder alone (slmctl serve encoder)"
MORE_ROWS = "prepare.splits.calibration: 0.15"


class Calibrate(Stage[CalibrateConfig]):
    """Fit the policy that keeps or escalates answers, on calibration rows."""

    name = "calibrate"
    takes = (
        Role("predictions", ("predictions",)),
        Role("outside", ("predictions",), optional=True),
        Role("prepared", ("prepared",), optional=True),  # where rows have groups, to count these
    )
    waits_for = ("base", "adapter", "gguf", "encoder")
    uses = ("numpy",)
    version = 5
    on_page = True

    @property
    def settings(self) -> CalibrateConfig:
        section = super().settings
        asks = section.costs is not None and self.project.config.serve.generalist is not None
        return section.model_copy(update={"has_generalist": asks})

    def inputs(self, section: CalibrateConfig, get: Get, filled: Inputs) -> Inputs:
        if filled:
            return filled
        if "predictions" in (named := self.project.named):
            own = {role.name: named[role.name] for role in self.takes[1::-1] if role.name in named}
            return own | predictions.grouped_rows(self.project, named["predictions"])
        return predictions.calibration_inputs(
            self.project, get, "encoder" if self._is_of_encoder else "gguf"
        )

    @property
    def _is_of_encoder(self) -> bool:
        """True before there is a base: the encoder is then all that answers."""
        project = self.project
        named = "predictions" in project.named or project.config.publish.linear
        return not named and project.config.encode is not None and not project.has_base()

    def current(self) -> Iterator[StageRequest]:
        """The policy of the file that is served, and where there is an encoder that of it too."""
        for model in ("gguf", *(["encoder"] if self.project.config.encode is not None else [])):
            with contextlib.suppress(IntegrityError, UsageError):
                yield predictions.policy_request(self.project, model)

    def packages(self) -> Sequence[str]:
        return () if self.project.config.publish.linear else ENGINE

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        if (model := sizes.model) is None:
            return StageEstimate(disk_bytes=0)
        rows = sizes.rows
        seen = round(rows.rows * sizes.settings.prepare.splits.calibration) if rows else None
        return StageEstimate(0, model.answering, sizes.answering_seconds(seen))

    def took(self, made: Artifact, whole: Sequence[Artifact]) -> None:
        """No time: it would be that of its predictions, which
        for an encoder's policy are others.
        """

    def before(self) -> None:
        """Refuse a data set without calibration rows, and fit the
        encoder's policy, where there is an encoder.
        """
        if "predictions" in self.project.named:
            return
        if self.project.config.encode is not None and not self._is_of_encoder:
            try:
                of_encoder = calibrate(self.project, "encoder").artifact
            except (GateError, IntegrityError) as error:
                console.say(f"  no policy for the encoder: {error.message} ({error.hint})")
            else:
                console.say(OF_ENCODER)
                show(of_encoder)
        _require_rows(self.project, 1)

    def after(self, made: Artifact, *, current: bool) -> None:
        if self._is_of_encoder:
            console.say(OF_ENCODER)
        show(made)


STAGE = Calibrate


def calibrate(
    project: Project, model: str = "gguf", *, against: EndpointModel | None = None
) -> Outcome:
    """Answer the calibration rows with the encoder, the file that is served or an endpoint, then
    fit its policy.

    Raises:
        DataError: The data set has too few calibration rows.
        And what `runner.run` raises.
    """
    begun, request = time.monotonic(), None
    if against is None:
        _require_rows(project, 1)
    else:
        from slmctl.metrics import error_threshold

        # before any of them is paid for
        _require_rows(project, error_threshold.MIN_ROWS, sent=True)
        against.require_answers(project)
        logprobs = against.asking.api == CHAT
        request = functools.partial(against.request, project, 0, logprobs=logprobs)
    inputs = predictions.calibration_inputs(project, runner.maker(project), model, request)
    outcome = runner.run(project, Calibrate(project).request(inputs))
    return replace(outcome, seconds=time.monotonic() - begun)


def _require_rows(project: Project, least: int, *, sent: bool = False) -> None:
    """Refuse too few calibration rows; of those that are sent to an
    endpoint, sensitive ones do not count.
    """
    prepared = project.artifact(PREPARED)
    rows = prepared.metrics["calibration"]
    if sent:
        from slmctl.task.records import read_records

        rows = sum(
            not record.sensitive for record in read_records(prepared.file("calibration.jsonl"))
        )
    if rows < least:
        needs = f", and {least} are needed for a bound" if rows else ""
        raise DataError(f"the data set has {rows or 'no'} calibration rows{needs}", hint=MORE_ROWS)


def show(policy: Artifact) -> None:
    """Say what a policy keeps, and how many of these answers are wrong."""
    fit, percent = policy.metrics, console.percent
    for name, figures in (("", fit), (" with --first-look", fit.get("first_look", {}))):
        if "cost" in figures:
            cost, *interval = figures["cost"]
            low, high = interval
            many = f"{fit['currency']} a thousand questions{name} ({low:,.2f} to {high:,.2f})"
            console.say(f"  costs {cost:,.2f} {many}")
    kept = f"{percent(fit['kept'])} of {fit['tested_on']} answers"
    bound = f"{percent(fit['error_bound'])} of the {percent(fit['max_error'])}"
    sure = f"{percent(fit['confidence'], 0)} confidence (right: {fit['correct']})"
    console.say(
        f"  keeps {kept}, {percent(fit['error'])} of them wrong; passed at {bound} that max_error "
        f"allows, with {sure}"
    )
    if (chance := fit.get("chance_to_pass", 1.0)) < LIKELY:
        console.say(
            f"  note: by their scores, only {percent(chance, 0)} of such data sets pass, so this "
            "policy may be over "
            "max_error more often than its confidence says; more calibration rows tell"
        )
    if fit.get("groups"):
        console.say(
            f"  the {fit['rows']} rows are of {console.count(fit['groups'], 'group')}, each right "
            "or wrong as a whole: "
            f"{fit['design_effect']:.1f} of the kept ones count as one in the bound"
        )
    _say_labels(fit)
    money = (
        f" and save {fit['saved_by_more']:,.2f} {fit['currency']} a thousand questions"
        if "cost" in fit
        else ""
    )
    console.say(
        f"  100 more calibration rows should keep {percent(fit.get('kept_by_more', 0.0))} "
        f"more{money}"
    )
    if (look := fit.get("first_look")) is not None:
        members = "words" if look.get("words_alone") else "the linear members"
        console.say(
            f"  with --first-look: keeps {percent(look['kept'])}, {percent(look['first_kept'])} by "
            f"{members} "
            f"alone; of all of them {percent(look['error'])} wrong, passed at "
            f"{percent(look['error_bound'])}"
        )
        if fit.get("ms") and look.get("ms"):
            console.say(f"  a question takes {look['ms']:,.1f} ms in place of {fit['ms']:,.1f}")
    if "least_confidence" in fit:
        console.say(
            f"  act on what {fit['model']} answers with a probability of "
            f"{fit['least_confidence']:.4f} and more"
        )
    if "out_of_scope_kept" in fit:
        console.say(
            f"  sends {percent(1 - fit['out_of_scope_kept'])} of {fit['out_of_scope_rows']} "
            "out-of-scope questions away"
        )


def _say_labels(fit: Mapping[str, Any]) -> None:
    """Say how often a wrong answer is kept to the questions of
    each label with a cost of its own.
    """
    for label, (wrong, rows) in fit.get("labels", {}).items():
        bound = fit["label_bounds"].get(label)
        least = (
            "too few rows for a bound"
            if bound is None
            else f"at most {console.percent(bound)} of them"
        )
        console.say(f"  {label}: {wrong} of {rows} have a wrong answer that is kept, {least}")
