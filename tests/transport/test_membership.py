"""The membership table: a semilattice that converges, and who may be declared dead."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.transport.membership import MAX_INCARNATION, Membership
from gossamer.transport.message import MAX_MEMBERS, Member, Status

# Few distinct values, so that rows of one peer meet with equal and with contradictory fields.
rows = st.builds(
    Member,
    st.sampled_from(["a", "b", "peer-2", "peer-10"]),
    st.integers(1, 5),
    st.sampled_from(["tcp://h:1", "tcp://h:2"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(Status),
    st.integers(0, 1),
)
tables = st.lists(rows, max_size=12)


def member(origin: int, status: Status = Status.TRAINING, peer: str = "") -> Member:
    return Member(peer or f"peer-{origin}", origin, f"tcp://h:{origin}", 0, 0, status)


def table(*rows: Member, own: int = 100) -> Membership:
    membership = Membership(member(own), peer_timeout=10.0)
    membership.merge(rows)
    return membership


@given(tables, tables)
def test_merge_is_commutative(first: list[Member], second: list[Member]) -> None:
    assert table(*first, *second).rows() == table(*second, *first).rows()


@given(tables, tables, tables)
def test_merge_is_associative(a: list[Member], b: list[Member], c: list[Member]) -> None:
    left = table(*table(*a, *b).rows(), *c)
    right = table(*a, *table(*b, *c).rows())
    assert left.rows() == right.rows()


@given(tables)
def test_merge_is_idempotent(some: list[Member]) -> None:
    membership = table(*some)
    before = membership.rows()
    assert membership.merge(some) == []
    assert membership.merge(before) == []
    assert membership.rows() == before


@given(tables, st.randoms(use_true_random=False))
def test_merge_forgets_the_order_of_arrival(some: list[Member], rng: random.Random) -> None:
    shuffled = list(some)
    rng.shuffle(shuffled)
    assert table(*some).rows() == table(*shuffled).rows()


@given(tables, tables)
def test_digest_is_equal_exactly_where_tables_are(a: list[Member], b: list[Member]) -> None:
    first, second = table(*a), table(*b)
    assert (first.digest == second.digest) == (first.rows() == second.rows())


def test_digest_changes_with_every_field() -> None:
    row = member(1)
    changes = {
        "peer": "other",
        "endpoint": "tcp://h:9",
        "incarnation": 1,
        "version": 1,
        "status": Status.DONE,
        "final": 1,
    }
    digests = {table(row).digest}
    for name, value in changes.items():
        digests.add(table(msgspec.structs.replace(row, **{name: value})).digest)
    assert len(digests) == 1 + len(changes)


def test_merge_reports_the_news_only() -> None:
    membership = table(member(1), member(2))
    newer = msgspec.structs.replace(member(2), version=1, status=Status.DONE)
    assert membership.merge([member(1), newer, member(3)]) == [newer, member(3)]


def test_final_states_win_over_later_versions_of_one_incarnation() -> None:
    dead = member(1, Status.DEAD)
    later = msgspec.structs.replace(member(1), version=7)
    assert table(dead, later).get(1) == dead
    again = msgspec.structs.replace(member(1), incarnation=1)
    assert table(dead, again).get(1) == again


def test_own_death_is_refuted_with_a_higher_incarnation() -> None:
    membership = table()
    death = msgspec.structs.replace(membership.own, status=Status.DEAD)
    news = membership.merge([death])
    assert news == [membership.own]
    assert membership.own.alive
    assert membership.own.rank > death.rank
    other = table(death, own=7)
    assert not other.alive(100)
    other.merge(membership.rows())
    assert other.alive(100)


def test_own_death_of_an_older_incarnation_is_ignored() -> None:
    membership = table()
    death = msgspec.structs.replace(membership.own, status=Status.DEAD)
    membership.merge([death])
    refuted = membership.own
    assert membership.merge([death]) == []
    assert membership.own == refuted


def test_own_row_that_others_made_up_is_overruled() -> None:
    membership = table()
    forged = msgspec.structs.replace(membership.own, version=9, endpoint="tcp://elsewhere:1")
    membership.merge([forged])
    assert membership.own.endpoint == "tcp://h:100"
    assert membership.own.rank > forged.rank


def test_refutation_stays_within_the_wire_format() -> None:
    membership = table()
    own = membership.own
    last = msgspec.structs.replace(own, status=Status.DEAD, incarnation=MAX_INCARNATION)
    assert membership.merge([last]) == []
    assert membership.own == own


def test_peer_that_left_does_not_refute() -> None:
    membership = table()
    membership.set_status(Status.LEFT)
    death = msgspec.structs.replace(membership.own, status=Status.DEAD, incarnation=1)
    assert membership.merge([death]) == []
    assert membership.own.status is Status.LEFT


def test_set_status_raises_the_version_only_with_a_change() -> None:
    membership = table()
    assert not membership.set_status(Status.TRAINING)
    assert membership.own.version == 0
    assert membership.set_status(Status.COMPLETE, 5)
    assert not membership.set_status(Status.COMPLETE, 5)
    assert membership.set_status(Status.COMPLETE, 6)
    assert membership.own.version == 2


def test_watch_declares_dead_after_the_timeout_and_once() -> None:
    membership = table(member(1), member(2))
    assert membership.watch([1, 2], 0.0) == []
    membership.heard(2, 5.0)
    assert membership.watch([1, 2], 10.0) == []
    assert [row.origin for row in membership.watch([1, 2], 10.1)] == [1]
    assert membership.get(1) == member(1, Status.DEAD)
    assert membership.watch([1, 2], 10.2) == []
    assert [row.origin for row in membership.watch([1, 2], 15.1)] == [2]


def test_watch_ignores_strangers_and_the_dead() -> None:
    membership = table(member(1, Status.LEFT))
    assert membership.watch([1, 9], 0.0) == []
    assert membership.watch([1, 9], 1000.0) == []


def test_watch_does_not_blame_a_new_neighbour_for_an_old_silence() -> None:
    membership = table(member(1), member(2))
    assert membership.watch([1], 0.0) == []
    membership.heard(1, 1.0)
    assert membership.watch([2], 2.0) == []
    membership.heard(2, 60.0)
    assert membership.watch([2], 61.0) == []
    membership.heard(2, 100.0)
    assert membership.watch([1, 2], 100.0) == []
    assert membership.watch([1, 2], 110.0) == []
    assert [row.origin for row in membership.watch([1], 110.1)] == [1]


def test_watch_gives_a_peer_that_came_back_the_full_time() -> None:
    membership = table(member(1))
    membership.watch([1], 0.0)
    assert membership.watch([1], 11.0) != []
    membership.merge([msgspec.structs.replace(member(1), incarnation=1)])
    assert membership.watch([1], 30.0) == []
    assert membership.watch([1], 39.9) == []
    assert membership.watch([1], 40.1) != []


def test_forgive_shifts_the_blame_for_a_standstill_of_the_own_process() -> None:
    membership = table(member(1))
    membership.watch([1], 0.0)
    membership.forgive(50.0)
    assert membership.watch([1], 55.0) == []
    assert membership.watch([1], 60.1) != []


def test_rows_are_in_natural_order() -> None:
    names = ["peer-10", "peer-2", "b", "peer-1", "a", "7", "10", "peer"]
    rows = [member(i + 1, peer=name) for i, name in enumerate(names)]
    membership = Membership(rows[0], peer_timeout=1.0)
    membership.merge(rows[:0:-1])
    ordered = ["7", "10", "a", "b", "peer", "peer-1", "peer-2", "peer-10"]
    assert [row.peer for row in membership.rows()] == ordered


def test_rows_of_one_name_are_ordered_alike_everywhere() -> None:
    twins = [member(3, peer="x"), member(2, peer="x")]
    assert table(*twins).rows() == table(*twins[::-1]).rows()


@pytest.mark.parametrize("status", Status)
def test_living_are_those_that_neither_left_nor_died(status: Status) -> None:
    membership = table(member(1, status))
    expected = status not in (Status.LEFT, Status.DEAD)
    assert membership.alive(1) is expected
    assert (1 in [row.origin for row in membership.living()]) is expected


def test_table_takes_no_more_than_the_limit() -> None:
    membership = table(*[member(i) for i in range(1, MAX_MEMBERS + 50)], own=1 << 40)
    assert len(membership.rows()) == MAX_MEMBERS
    last = membership.rows()[0]
    gone = msgspec.structs.replace(last, status=Status.DEAD)
    assert membership.merge([gone]) == [gone]
