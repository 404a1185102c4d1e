"""Following what others change: pointers on disk, and the aliases of a registry."""

import asyncio
import logging
import time

from server.domain.errors import QuintetError
from server.models.manager import ModelManager
from server.models.store import Mark

log = logging.getLogger(__name__)

_POINTER_SECONDS = 1.0  # a look is one stat() a model
_REGISTRY_SECONDS = 10.0


async def follow(pool: ModelManager, marks: dict[str, Mark | None]) -> None:
    """Serve what the aliases mean, until cancelled: pointers within 2 s, a registry's aliases within some more.

    `marks` are those from before anything was loaded, so that no change is missed.
    """
    registry_seen = time.monotonic()
    while True:
        await asyncio.sleep(_POINTER_SECONDS)
        if time.monotonic() - registry_seen >= _REGISTRY_SECONDS:
            await sync(pool)
            registry_seen = time.monotonic()
        seen = await asyncio.to_thread(pool.store.marks, marks)
        changed = [name for name in marks if seen[name] != marks[name]]
        marks = seen
        pool.follow_soon(changed)


async def sync(pool: ModelManager) -> None:
    """Bring the store up to date with the registry; if that cannot be reached, the store stays as it is."""
    for name, plan in pool.plans.items():
        try:
            if plan.has_artefact:
                await asyncio.to_thread(pool.registry.sync, name)
        except QuintetError as error:
            log.warning("%s", error.message)
            return
        except Exception:  # whatever a registry's client raises, what is here is served and followed
            log.exception("the registry's model %s could not be mirrored", name)
