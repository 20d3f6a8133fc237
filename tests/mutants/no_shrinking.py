"""A plugin of pytest: a property that fails has failed. To shorten the example takes minutes."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("mutants")
