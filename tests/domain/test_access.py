"""The rules of access: what any grants allow, and that a refusal tells nothing."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from server.domain.access import Caller, Grants, Quotas, Right, Stored
from server.domain.errors import CollectionExists, CollectionNotFound, CollectionNotGranted, NotFound

TENANTS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["one", "two", "three"])
GRANTEES = st.frozensets(st.sampled_from(["a", "b", "c", "*"]))
ENTRIES = st.dictionaries(NAMES, st.builds(Grants, st.sampled_from(["", "a", "b"]), GRANTEES, GRANTEES))
OWNERS = st.dictionaries(NAMES, st.sampled_from(["", "a", "b", "c"]))
ON_COLLECTIONS = (Right.READ, Right.WRITE, Right.ADD, Right.CREATE, Right.DELETE)


class Refusal(NamedTuple):
    kind: type[Exception]
    message: str
    known: str


def refusal(caller: Caller, right: Right, name: str, owners: dict[str, str]) -> Refusal | None:
    try:
        caller.require(right, name, owners)
    except (NotFound, CollectionExists) as error:
        return Refusal(type(error), error.message, error.metadata.get("known", ""))
    return None


@given(TENANTS, st.sampled_from(ON_COLLECTIONS), NAMES, ENTRIES, OWNERS)
def test_absent_and_forbidden_are_the_same(
    tenant: str, right: Right, name: str, grants: dict[str, Grants], owners: dict[str, str]
) -> None:
    caller = Caller(tenant, grants=grants)
    found = refusal(caller, right, name, owners)
    known = {each for each, owner in owners.items() if caller.may(right, each, owner)}
    if right is Right.CREATE:  # names are global
        assert found is None or (found.kind is CollectionExists and name in grants and name not in owners)
    elif found is None:
        assert name in known or (right is Right.ADD and name not in owners)
    else:
        assert found.kind is CollectionNotGranted
        assert set(found.known.split(", ")) - {"none"} == known
        absent = {each: owner for each, owner in owners.items() if each != name}
        if right is not Right.ADD or name in grants:  # else it would be created
            assert refusal(caller, right, name, absent) == found


@given(TENANTS, NAMES, ENTRIES, st.sampled_from(["", "a", "b", "c"]))
def test_rights_follow_from_each_other(tenant: str, name: str, grants: dict[str, Grants], owner: str) -> None:
    caller = Caller(tenant, grants=grants)
    may = {right: caller.may(right, name, owner) for right in ON_COLLECTIONS}
    assert may[Right.WRITE] == may[Right.ADD]
    assert may[Right.READ] or not may[Right.WRITE]
    assert may[Right.WRITE] or not may[Right.DELETE]
    assert may[Right.DELETE] == (caller.owner(name, owner) == tenant)
    assert caller.shown_owner(name, owner) in {"", tenant}


@given(st.sampled_from(ON_COLLECTIONS), NAMES, ENTRIES, OWNERS)
def test_administrators_and_callers_without_tenants_may_do_everything(
    right: Right, name: str, grants: dict[str, Grants], owners: dict[str, str]
) -> None:
    for caller in (Caller("x", roles=frozenset({"admin"}), grants=grants), Caller("local")):
        found = refusal(caller, right, name, owners)
        if found is not None:
            assert (found.kind, name in owners) == (CollectionNotFound, False)
            assert set(found.known.split(", ")) - {"none"} == set(owners)


AMOUNTS = st.integers(0, 5)


@given(
    st.builds(Quotas, *[st.none() | AMOUNTS] * 3),
    st.builds(Stored, AMOUNTS, AMOUNTS, AMOUNTS),
    st.builds(Stored, AMOUNTS, AMOUNTS, AMOUNTS),
)
def test_a_quota_is_kept_and_never_forbids_what_adds_nothing(quotas: Quotas, stored: Stored, added: Stored) -> None:
    over = {each.limit for each in quotas.excesses("a", stored, added)}
    for name, limit, has, more in zip(
        ("collections", "documents", "bytes"),
        (quotas.collections, quotas.documents, quotas.bytes),
        stored,
        added,
        strict=True,
    ):
        assert (name in over) == (limit is not None and more > 0 and has + more > limit)
