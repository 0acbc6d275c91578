"""`slmctl.yaml`: its sections, strict YAML, recipes and the JSON Schema."""

from slmctl.config.fields import Section, is_remote, moment
from slmctl.config.gate import CORRECTED_WIN_RATE, PRODUCTION, WIN_RATE, Gate
from slmctl.config.json_schema import description, reference, schema, table
from slmctl.config.label_section import LabelConfig, RowReading, Teacher
from slmctl.config.loader import below, load, parse, resolve_matmul_dtype
from slmctl.config.prepare_section import (
    OWN_KEYS,
    AnswerTable,
    DocumentReading,
    Duplicates,
    KindName,
    PrepareConfig,
    ReadingOptions,
    Sensitive,
    Source,
    SourceLimits,
    Splits,
    Sql,
    TaskConfig,
    kinds_with,
)
from slmctl.config.recipes import changed_keys, contents, recipe, require_path, restored
from slmctl.config.sections import (
    FILENAME,
    PSEUDONYM_KEY,
    CalibrateConfig,
    Choose,
    Config,
    Costs,
    EncodeConfig,
    EvaluateConfig,
    FinetuneConfig,
    Lora,
    MergeConfig,
    PredictConfig,
    PublishConfig,
    PullConfig,
    QuantizeConfig,
    SumConfig,
    inherited_keys,
    stage_config,
)
from slmctl.config.serve_section import (
    Asking,
    CollectConfig,
    Endpoint,
    GeneralistConfig,
    MachinePrices,
    Prices,
    ServeConfig,
)
