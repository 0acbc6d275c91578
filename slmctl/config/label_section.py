"""The section `label`: rows without an answer, the models that
label them, and what that may cost.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from slmctl.config.fields import (
    CONFIDENCE,
    Inherited,
    Outside,
    Percent,
    Section,
    SourcePath,
    WhenSet,
)
from slmctl.config.prepare_section import Replace, Source, Splits, TaskConfig
from slmctl.config.serve_section import Asking, Redactable
from slmctl.network.decisions import CHAT


class Teacher(Asking):
    """A model that labels: one behind an OpenAI-compatible
    endpoint, or a release on this machine.
    """

    release: SourcePath | None = Field(
        None,
        description="a release or GGUF artifact of the same task, in place of url; it may read "
        "sensitive rows",
    )
    terms: Annotated[Literal["permitted", "private"] | None, WhenSet()] = Field(
        None,
        description="your word on the teacher's terms: permitted (models trained on its answers "
        "may be published) or "
        "private (they may not)",
    )

    @model_validator(mode="after")
    def _is_one_model(self) -> Teacher:
        if (self.url is None) == (self.release is None):
            raise ValueError("a teacher has either 'url' with 'model', or 'release'")
        if (self.url is None) != (self.model is None):
            raise ValueError("'url' and 'model' come together")
        if self.url is None and (self.key_env or self.prices or self.api != CHAT):
            raise ValueError("'key_env', 'prices' and 'api' belong to 'url'")
        return self

    @property
    def name(self) -> str:
        """The name in reports: of the model, or the last two parts of the release's path."""
        return self.model or "/".join(self.release.parts[-2:] if self.release else ())


class RowReading(Section):
    """The reading of rows, as `prepare` has it: filled from its
    section, so that both see the same texts.
    """

    clean: list[Literal["html", "quoted_mail", "signatures", "whitespace"]] = Field(
        default_factory=list
    )
    replace: list[Replace] = Field(default_factory=list)
    splits: Splits = Field(default_factory=Splits)
    # test rows of these are not used as gold rows
    sources: list[Source] = Field(default_factory=list)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class LabelConfig(Section):
    """Label rows that have no answer, by a larger model, with a price before and a bound after."""

    task: Annotated[TaskConfig, Inherited()] = TaskConfig()
    reading: Annotated[RowReading, Inherited()] = RowReading()
    sources: Annotated[list[Source], Field(min_length=1)] = Field(
        default_factory=list,
        description="the rows to label; their output is not read",
        validate_default=False,
    )
    gold: Annotated[list[Source], BeforeValidator(_as_list)] = Field(
        default_factory=list,
        description="rows that people labelled; the sources of prepare when left out",
    )
    teachers: Annotated[list[Teacher], Field(min_length=1, max_length=4)] = Field(
        default_factory=list, description="the models that label", validate_default=False
    )
    examples: int = Field(
        8, ge=0, le=64, description="nearest gold rows in the prompt of an endpoint"
    )
    votes: int = Field(
        3, ge=1, le=15, description="answers to each row of each endpoint; 1: one, at temperature 0"
    )
    max_tokens: int = Field(256, ge=1, description="longest answer in tokens (extract, generate)")
    max_error: Percent = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="largest share of wrong labels among the accepted ones, such as 5 %",
    )
    confidence: Annotated[float, Inherited()] = CONFIDENCE
    max_rows: Annotated[int | None, WhenSet()] = Field(
        None, ge=1, description="rows to label at most, drawn by chance; all when left out"
    )
    max_cost: Annotated[float | None, Outside()] = Field(
        None, gt=0, description="ceiling of what the answers may cost, over all runs"
    )
    redact: list[Redactable] = Field(
        default_factory=list,
        description="kinds of personal data to replace by marks, so that such a row may be sent to "
        "an endpoint",
    )

    @model_validator(mode="after")
    def _can_be_held(self) -> LabelConfig:
        if self.max_cost is not None and any(
            teacher.url and not teacher.prices for teacher in self.teachers
        ):
            raise ValueError("'max_cost' needs the 'prices' of every teacher that has a 'url'")
        if len({teacher.prices.currency for teacher in self.teachers if teacher.prices}) > 1:
            raise ValueError("the teachers' prices are in several currencies")
        if len({(teacher.url, teacher.name) for teacher in self.teachers}) < len(self.teachers):
            raise ValueError("two teachers are the same")
        return self

    @property
    def currency(self) -> str:
        """The currency of the prices."""
        return next((teacher.prices.currency for teacher in self.teachers if teacher.prices), "EUR")
