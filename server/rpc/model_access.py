"""The models that a tenant may use."""

from server.domain.context import current
from server.domain.errors import PermissionDenied


def permitted(model: str) -> str:
    """Returns `model`, requested by name or by default, or raises PermissionDenied.

    Call it before the model is looked up, so that a tenant learns nothing about other models.
    """
    caller = current().caller
    if caller.models is not None and model not in caller.models:
        allowed = ", ".join(sorted(caller.models)) or "none"
        raise PermissionDenied(f'tenant "{caller.tenant}" may not use model "{model}"; models allowed: {allowed}')
    return model
