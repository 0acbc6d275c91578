"""`slmctl.yaml`: its sections, strict YAML, recipes and the JSON Schema."""

from slmctl.config.fields import STDIN, Section, is_remote, mask, moment
from slmctl.config.json_schema import schema, table
from slmctl.config.loader import load, parse, settled_products
from slmctl.config.prepare_section import (
    Duplicates,
    PrepareConfig,
    Sensitive,
    Source,
    SourceLimits,
    Splits,
    Sql,
    TaskConfig,
)
from slmctl.config.recipes import contents, recipe, restored
from slmctl.config.sections import (
    FILENAME,
    PSEUDONYM_KEY,
    CalibrateConfig,
    Choose,
    Config,
    EvaluateConfig,
    FinetuneConfig,
    Gate,
    MergeConfig,
    PredictConfig,
    PublishConfig,
    PullConfig,
    QuantizeConfig,
    stage_config,
)
from slmctl.config.serve_section import GeneralistConfig, Prices, ServeConfig

__all__ = [
    "FILENAME",
    "PSEUDONYM_KEY",
    "STDIN",
    "CalibrateConfig",
    "Choose",
    "Config",
    "Duplicates",
    "EvaluateConfig",
    "FinetuneConfig",
    "Gate",
    "GeneralistConfig",
    "MergeConfig",
    "PredictConfig",
    "PrepareConfig",
    "Prices",
    "PublishConfig",
    "PullConfig",
    "QuantizeConfig",
    "Section",
    "Sensitive",
    "ServeConfig",
    "Source",
    "SourceLimits",
    "Splits",
    "Sql",
    "TaskConfig",
    "contents",
    "is_remote",
    "load",
    "mask",
    "moment",
    "parse",
    "recipe",
    "restored",
    "schema",
    "settled_products",
    "stage_config",
    "table",
]
