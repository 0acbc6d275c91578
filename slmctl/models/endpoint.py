"""A general model behind an endpoint: the file that names it."""

from __future__ import annotations

from slmctl.models.model import Model


class ModelElsewhere(Model):
    """A model that is not here: `predict` asks it record by record, and pays for each."""

    is_remote = takes_policy = True
    place = 9
