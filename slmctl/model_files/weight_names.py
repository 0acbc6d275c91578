"""Names of stored tensors and names of the model that transformers builds: some architectures differ in them.

transformers renames tensors on load where an architecture's modules have changed since its weights were published, or
where a text model lies inside a multimodal one. LoRA knows the modules, and `merge` the files.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def loaded(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Names of a model's tensors by the names under which a file stores them.

    Several stored tensors have the same name if transformers joins them, as it does with experts. The model may be
    without weights.
    """
    own = model.state_dict()
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    return {
        name: name if name in own else rename_source_key(name, renamings, converters, model.base_model_prefix, own)[0]
        for name in stored
    }
