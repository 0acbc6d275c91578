"""The gates of `slmctl.yaml`: conditions on a report that a release must meet."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from slmctl.config.fields import Section, Text

WIN_RATE = "win_rate"  # in a gate: the share of judged pairs that a model wins
# the same over all rows, by an admitted judge whom people's pairs correct
CORRECTED_WIN_RATE = "corrected_win_rate"
PRODUCTION = "production"  # in a gate: the release with this tag in the registry of publish.to


class Gate(Section):
    """One condition that a release must meet."""

    metric: Text = Field(
        description="a metric of the report, such as accuracy or macro_f1; win_rate is people's "
        "alone, "
        "corrected_win_rate that of an admitted judge with them"
    )
    model: Text = Field(
        description="release (what slmctl serve answers by: a file, with linear models where they "
        "help), a GGUF type "
        "such as Q4_K_M (the file alone), adapter, merged, base, lora-Q4_K_M (the adapter's own "
        "GGUF on the base's of "
        "this type), or chosen (the file of evaluate.choose, alone)"
    )
    min: float | None = Field(
        None,
        description="smallest value that passes; of win_rate, which comes with 'against', of its "
        "bound",
    )
    max: float | None = Field(
        None, description="largest value that passes, for an error such as ece"
    )
    against: Text | None = Field(
        None,
        description="model or baseline to compare with; production (the release of that tag in "
        "publish.to) or "
        "dir:REGISTRY#TAG, whose own file answers the same rows",
    )
    rows: Literal["old", "new"] | None = Field(
        None,
        description="against a release: only the rows that were in its data set (old) or that were "
        "not (new); all rows "
        "when left out",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="largest loss against the other model; the bound of the interval must meet it",
    )
    min_gain: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="least gain over the other model or baseline, such as tfidf_logistic; as "
        "max_drop",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="one-sided confidence of the bound for max_drop, min_gain and win_rate",
    )

    @model_validator(mode="after")
    def _one_condition(self) -> Gate:
        if (
            sum(value is not None for value in (self.min, self.max, self.max_drop, self.min_gain))
            != 1
        ):
            raise ValueError(
                "a gate has either 'min', or 'max', or 'max_drop' or 'min_gain' with 'against'"
            )
        if self.metric in (WIN_RATE, CORRECTED_WIN_RATE):
            if self.against is None or self.min is None or self.rows is not None:
                raise ValueError(
                    f"a gate on {self.metric} has 'against' and 'min', such as 0.5, and no 'rows'"
                )
        elif (self.against is None) != (self.max_drop is None and self.min_gain is None):
            raise ValueError("'against' comes with 'max_drop' or 'min_gain'")
        if self.rows is not None and self.release is None:
            raise ValueError("'rows' belongs to a gate against a release: against: production")
        return self

    @property
    def release(self) -> str | None:
        """The release that the gate compares with: `production`, or the
        address of a tag; None for a model.
        """
        against = self.against or ""
        return against if against == PRODUCTION or against.startswith("dir:") else None

    @property
    def allowed_drop(self) -> float:
        """The largest loss against the other model, as a share; `min_gain` is a negative loss."""
        return -(self.min_gain or 0.0) if self.max_drop is None else self.max_drop
