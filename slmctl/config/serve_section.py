"""The section `serve`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)

from slmctl.config.fields import (
    Bytes,
    Inherited,
    Outside,
    Percent,
    Section,
    SourcePath,
    Text,
    Url,
    WhenSet,
)
from slmctl.network.decisions import CHAT, Api

FLEET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DEFAULT = "default"  # an alias of the first model, for clients that do not choose one
COLLECTED = "collected"
AUTO = "auto"
LLAMA_SEQUENCES = 255  # llama.cpp's limit, without the sequence of the shared prompt


class Prices(Section):
    """Prices of an endpoint's tokens, as its provider asks them of you."""

    input: float = Field(ge=0, description="price of a million prompt tokens at an endpoint")
    output: float = Field(ge=0, description="price of a million answer tokens at an endpoint")
    currency: Text = Field("EUR", description="currency of the prices")

    def of_tokens(self, prompt: int, completion: int) -> float:
        """The price of these numbers of prompt and answer tokens."""
        return (prompt * self.input + completion * self.output) / 1e6


class MachinePrices(Prices):
    """Prices of a machine and of an endpoint, for the break-even."""

    machine_per_hour: float = Field(gt=0, description="price of the machine that measures, an hour")


Redactable = Literal["email", "phone", "card", "iban", "ip"]


API_HELP = (
    "API of the endpoint: chat; or, for classify, one that answers with probabilities: decisions "
    "(OpenAI's "
    "/v1/decisions) or systemone (TypeSafe's /v1/systemone)"
)


class Asking(Section):
    """An OpenAI-compatible endpoint, and the way in which it is asked for many answers."""

    url: Url | None = Field(None, description="OpenAI-compatible endpoint, such as https://host/v1")
    model: Text | None = Field(None, description="name of the model at the endpoint")
    api: Annotated[Api, WhenSet()] = Field(CHAT, description=API_HELP)
    prices: Annotated[Prices | None, Outside()] = Field(
        None,
        description="prices of the endpoint's tokens, without which no cost is known: input, "
        "output, currency",
    )
    key_env: Annotated[Text | None, Outside()] = Field(
        None, description="environment variable that holds the endpoint's key"
    )
    timeout_s: Annotated[float, Outside()] = Field(
        60, gt=0, description="seconds for one answer, before the request is repeated"
    )
    concurrency: Annotated[int, Outside()] = Field(
        8,
        ge=1,
        le=256,
        description="most requests in flight; fewer where the endpoint says it is too many",
    )


class Endpoint(Section):
    """A model behind an OpenAI-compatible endpoint."""

    url: Url = Field(description="OpenAI-compatible endpoint, such as http://host:8000/v1")
    model: Text = Field(description="name of the model at its endpoint")
    key_env: Text | None = Field(
        None, description="environment variable that holds the key of the endpoint"
    )


class GeneralistConfig(Endpoint):
    """The large general model that answers what the policy escalates."""

    url: Url = Field(
        description="OpenAI-compatible endpoint of the generalist, which answers what the policy "
        "does not keep"
    )
    api: Api = Field(CHAT, description=API_HELP)
    timeout_s: float = Field(
        20, gt=0, le=600, description="seconds for a whole answer; after them the local one is sent"
    )
    max_tokens: int = Field(
        1024, ge=1, description="longest answer in tokens, where the request sets no other"
    )
    proxy: Url | None = Field(
        None,
        description="HTTP proxy to the generalist; variables of the environment are not followed",
    )
    redact: list[Redactable] = Field(
        default_factory=list,
        description="kinds of personal data to replace by marks, so that such a question may be "
        "escalated",
    )


class CollectConfig(Section):
    """Keep a share of the answers, with their questions, as files for people to review."""

    to: Path = Field(
        Path(COLLECTED), description="folder of the collected answers, a file a day in UTC"
    )
    kept: Percent = Field(
        0.02,
        description="share of all answers that is collected, drawn by chance; it stands for all "
        "traffic",
    )
    escalated: Percent = Field(1.0, description="share of the answers that the general model gave")
    unsure: Percent = Field(
        1.0, description="share of the local answers that the policy would escalate"
    )
    days: int = Field(
        30,
        ge=1,
        le=3660,
        description="days that a collected answer is kept; older ones are removed",
    )
    sensitive: Literal["drop", "redact"] = Field(
        "drop",
        description="answers with personal data or secrets: left out, or collected with marks in "
        "their place",
    )


class FleetMember(Section):
    """One model of a server that has several."""

    release: Text = Field(
        description="release under this name: dir:REGISTRY#PROJECT for the one in production, "
        "dir:REGISTRY#PROJECT@TAG, or a path"
    )
    policy: Literal["auto"] | bool | Path = Field(
        False,
        description="policy by which answers are kept or escalated; true: the one below runs/ that "
        "was fitted "
        "on the file that answers; auto: that, where there is one",
    )
    pin: bool = Field(False, description="load it when the server starts, and keep it loaded")

    @model_validator(mode="after")
    def _is_one_release(self) -> FleetMember:
        if self.release.startswith("dir:") and not self.release.partition("#")[2]:
            raise ValueError(
                f"'release' is '{self.release}', which names no release: "
                f"{self.release}#PROJECT@production"
            )
        return self


class ServeConfig(Section):
    """Serve a model over HTTP."""

    host: Text = Field(
        "127.0.0.1",
        description="IP address to bind; beyond the loopback, only with a key (slmctl keys add)",
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 takes a free one")
    sequences: int = Field(8, ge=1, le=256, description="requests answered at the same time")
    max_waiting_requests: int = Field(
        64, ge=0, le=100_000, description="requests that may wait; further ones get 429 at once"
    )
    context_length: int = Field(
        2048, ge=128, description="longest prompt with its answer, in tokens"
    )
    max_tokens: int = Field(
        512, ge=1, description="ceiling for the length of one answer, in tokens"
    )
    policy: Literal["auto"] | Path | None = Field(
        "auto",
        description="policy artifact of slmctl calibrate, by which answers are kept or escalated. "
        "auto: the "
        "newest below runs/ that was fitted on the file that answers, where there is one; null: "
        "none",
    )
    first_look: bool = Field(
        False,
        description="the linear members answer what the policy keeps of them, and the file is "
        "asked for the rest",
    )
    generalist: GeneralistConfig | None = Field(
        None, description="the generalist; sensitive questions are never sent to it"
    )
    prices: Annotated[MachinePrices | None, Inherited()] = None
    decision_log: Path | None = Field(
        None,
        description="file for a line about each routed request, without its content; the server's "
        "log when left out",
    )
    collect: CollectConfig | None = Field(
        None,
        description="answers that are written down with their questions, for review; none when "
        "left out",
    )
    keys: SourcePath = Field(
        Path("runs/.keys/serve.json"), description="file of the API keys that slmctl keys writes"
    )
    receive_timeout_s: float = Field(
        10, gt=0, description="seconds that a request has to arrive, head and body"
    )
    answer_timeout_s: float = Field(
        120, gt=0, description="seconds that an answer has, waiting included"
    )
    grace_s: float = Field(
        5, ge=0, description="seconds that running answers get when the server stops"
    )
    cors_origins: list[Text] = Field(
        default_factory=list,
        description="origins of web pages that may send requests from a browser (CORS); none when "
        "empty",
    )
    documents: bool = Field(
        False,
        description="a chat may hold a document as OpenAI's file part (base64 of a PDF, DOCX, "
        "mail, HTML or text), in "
        "a body of up to 16 MiB; its text is the question",
    )
    refuse: list[
        Literal[
            "ungrounded",
            "other_language",
            "missing_pattern",
            "forbidden_pattern",
            "repetition",
            "unfinished",
        ]
    ] = Field(
        default_factory=list,
        description="generate: checks of a draft; one that fails any goes to the generalist, or "
        "else is held back",
    )
    log_texts: bool = Field(False, description="write prompts and answers to the log too")
    adapters: dict[Text, SourcePath] = Field(
        default_factory=dict,
        description="LoRA adapters over the model, by the model name that asks for them",
    )
    fleet: dict[Text, FleetMember] = Field(
        default_factory=dict,
        description="models of this server by the name that asks for them, the default one first",
    )
    memory: Bytes | None = Field(
        None,
        description="memory that the models of the fleet may hold together, such as 3GiB; the "
        "machine's when left out",
    )
    engine: Endpoint | None = Field(
        None, description="endpoint that answers in place of the own engine: url, model and key_env"
    )

    @property
    def collected(self) -> Path:
        """The folder of collected answers, also if the config collects none now."""
        return self.collect.to if self.collect is not None else Path(COLLECTED)

    @model_validator(mode="after")
    def _fits_together(self) -> ServeConfig:
        if self.engine is None and self.sequences + len(self.adapters) > LLAMA_SEQUENCES:
            raise ValueError(
                f"'sequences' and 'adapters' are {self.sequences} and {len(self.adapters)}, and "
                "llama.cpp holds "
                f"{LLAMA_SEQUENCES} of both"
            )
        if self.engine is not None and self.adapters:
            raise ValueError(
                "'adapters' belong to the own engine; load adapters at engine.url by its own "
                "options"
            )
        if self.engine is not None and isinstance(self.policy, Path):
            raise ValueError(
                "'policy' belongs to one GGUF file of the own engine, and 'engine' names another "
                "one"
            )
        if self.engine is not None and self.first_look:
            raise ValueError(
                "'first_look' goes before a model of the own engine, and 'engine' names another one"
            )
        policies = (
            [member.policy for member in self.fleet.values()] if self.fleet else [self.policy]
        )
        if self.generalist is not None and (self.engine is not None or not any(policies)):
            raise ValueError("'generalist' needs 'policy', which slmctl calibrate makes")
        return self

    @model_validator(mode="after")
    def _fleet_fits_together(self) -> ServeConfig:
        if not self.fleet:
            return self
        for name in self.fleet:
            if name == DEFAULT or not FLEET_NAME.fullmatch(name):
                raise ValueError(
                    f"'{name}' in 'fleet' is no name of a model: letters, digits, '.', '_', '-', "
                    "at most 64"
                )
        for key, reason in (
            ("policy", "a model of the fleet has its own: fleet.NAME.policy"),
            ("adapters", "an adapter belongs to a server of one model"),
            ("first_look", "a first look is for a server of one model"),
            ("engine", "the fleet's models are loaded here"),
        ):
            if getattr(self, key) not in (None, AUTO, {}, False):
                raise ValueError(f"'{key}' and 'fleet' exclude each other: {reason}")
        return self
