"""What follows from a configuration, computed without torch.

The package can be called: ``gptfit.plan(recipe, "rtx4090")`` is ``gptfit.plan.plan.plan``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from gptfit.plan.plan import plan

        return plan(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
