"""One declaration per option: `catalogue` declares, `values` checks one value, `model` holds them all frozen.

This room knows no files, no windows and no texts: an option carries text *keys*. It imports only itself,
pydantic and the error nouns of `zemosaic_core.errors`. `zemosaic_config` puts the values on disk; the forms,
the command line and the options table of the README are drawn from the catalogue.
"""

from zemosaic_settings.catalogue import OPTIONS, OPTIONS_BY_KEY, options_in_group
from zemosaic_settings.model import Settings, canonical_values, conflicting_names
from zemosaic_settings.option import GROUPS, LEVELS, Option

__all__ = [
    "GROUPS",
    "LEVELS",
    "OPTIONS",
    "OPTIONS_BY_KEY",
    "Option",
    "Settings",
    "canonical_values",
    "conflicting_names",
    "options_in_group",
]
