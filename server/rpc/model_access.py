"""Which models a caller may ask for."""

from server.domain.context import current
from server.domain.errors import PermissionDenied


def permitted(model: str) -> str:
    """The name of a model that was asked for, by name or by default. Raises PermissionDenied.

    Asked before the model is looked up, so a caller learns nothing of models that are not for it.
    """
    caller = current().caller
    if caller.models is not None and model not in caller.models:
        allowed = ", ".join(sorted(caller.models)) or "none"
        raise PermissionDenied(f'tenant "{caller.tenant}" may not use model "{model}"; models allowed: {allowed}')
    return model
