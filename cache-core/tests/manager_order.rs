//! Who goes first, who waits for whom, and what each is told: the manager's decisions one by one.

mod manager_bench;

use cache_core::form::{Accept, Provenance};
use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyEnd, CopyState, Event, Owner, Ticket};
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use manager_bench::{Bench, dropped, key, keys, links};

#[test]
fn idle_copies_go_leaf_first_and_least_recently_used_first() {
    let mut bench = Bench::new(6, 0);
    let (old, new) = (links(1, 3), links(2, 3));
    let first = bench.run(1, &old);
    let second = bench.run(2, &new);
    bench.on(Event::Release { entries: &first });
    bench.on(Event::Release { entries: &second });
    let actions = bench.room(3, 5);
    let expected: Vec<CopyKey> = [&old[2], &old[1], &old[0], &new[2], &new[1]].map(key).to_vec();
    assert_eq!(dropped(&actions, Tier::Device), expected);
    assert_eq!(
        bench.shard.ghost(&key(&old[0])).map(|ghost| (ghost.tier, ghost.reason)),
        Some((Tier::Device, MissReason::Evicted))
    );
}

#[test]
fn a_shared_prefix_outlives_the_branch_that_was_left_first() {
    let mut bench = Bench::new(4, 0);
    let trunk = links(1, 3);
    let first = bench.run(1, &trunk);
    // Another sequence reads the first two blocks and leaves later.
    bench.on(Event::Acquire { keys: &keys(&trunk[..2]), links: &trunk[..2], below: &[], accept: Accept::Exact });
    bench.on(Event::Release { entries: &first });
    let side = links(2, 1);
    let other = bench.run(2, &side);
    bench.on(Event::Release { entries: &other });
    bench.on(Event::Release { entries: &first[..2] });
    let actions = bench.room(3, 3);
    assert_eq!(dropped(&actions, Tier::Device), [key(&trunk[2]), key(&side[0]), key(&trunk[1])]);
}

#[test]
fn live_copies_are_demoted_deepest_first_and_dropped_only_after_the_lower_write() {
    let mut bench = Bench::new(3, 8);
    let chain = links(1, 3);
    let entries = bench.run(1, &chain);
    let actions = bench.room(2, 2);
    assert_eq!(actions, [2, 1].map(|index| Action::Demote { entry: entries[index], key: key(&chain[index]) }));
    let actions = bench.on(Event::Demoted { entry: entries[2], end: CopyEnd::Done });
    assert_eq!(dropped(&actions, Tier::Device), [key(&chain[2])]);
    let actions = bench.on(Event::Demoted { entry: entries[1], end: CopyEnd::Done });
    assert_eq!(actions.last(), Some(&Action::Granted { ticket: Ticket(2), slots: 2 }));
}

#[test]
fn a_demotion_that_fails_leaves_the_live_block_where_it_is() {
    let mut bench = Bench::new(2, 8);
    let chain = links(1, 2);
    let entries = bench.run(1, &chain);
    let mut actions = bench.room(2, 1);
    for _ in 0..5 {
        assert_eq!(actions, [Action::Demote { entry: entries[1], key: key(&chain[1]) }]);
        actions = bench.on(Event::Demoted { entry: entries[1], end: CopyEnd::Failed });
    }
    assert!(matches!(actions[..], [Action::Refused { .. }]), "{actions:?}");
    assert_eq!(bench.shard.entry(entries[1]).unwrap().copies, [CopyState::Resident, CopyState::None, CopyState::None]);
}

#[test]
fn a_damaged_copy_is_found_on_the_way_and_never_arrives() {
    let mut bench = Bench::new(2, 8);
    let chain = links(1, 2);
    let entries = bench.run(1, &chain);
    bench.room(2, 1);
    let actions = bench.on(Event::Demoted { entry: entries[1], end: CopyEnd::Damaged });
    assert_eq!(actions[0], Action::Discard { key: key(&chain[1]), tier: Tier::Device });
    assert_eq!(bench.shard.entry(entries[1]).unwrap().loss, Some(MissReason::FailedCheck));
    let (hits, miss) = bench.shard.peek(&keys(&chain), &[], Accept::Exact);
    assert_eq!((hits.len(), miss), (1, Some(MissReason::FailedCheck)));
}

#[test]
fn a_failed_promotion_gives_each_waiter_its_own_miss() {
    let mut bench = Bench::new(2, 8);
    let chain = links(1, 2);
    let entries = bench.run(1, &chain);
    bench.on(Event::Release { entries: &entries });
    let other = bench.run(2, &links(2, 2));
    bench.on(Event::Release { entries: &other });
    for _ in 0..2 {
        bench.on(Event::Acquire { keys: &keys(&chain), links: &chain, below: &[], accept: Accept::Exact });
    }
    // The victims are idle and have no host copy yet: they are demoted first, the promotion follows.
    let promote = bench.on(Event::Promote { ticket: Ticket(10), entries: &entries[..1] });
    assert!(matches!(promote[..], [Action::Demote { .. }]), "{promote:?}");
    let Action::Demote { entry, .. } = promote[0] else { unreachable!() };
    let started = bench.on(Event::Demoted { entry, end: CopyEnd::Done });
    assert_eq!(started[1], Action::Promote { entry: entries[0], key: key(&chain[0]) });
    assert!(bench.on(Event::Promote { ticket: Ticket(11), entries: &entries[..1] }).is_empty(), "one copy serves both");
    let misses = bench.shard.counters().misses.iter().sum::<u64>();
    let ended = bench.on(Event::Onboarded { entry: entries[0], end: CopyEnd::Damaged });
    let answers: Vec<_> =
        ended.iter().filter(|action| matches!(action, Action::Promoted { arrived: 0, missed: 1, .. })).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!(bench.shard.counters().misses.iter().sum::<u64>(), misses + 2);
}

/// Two requests for one block wait for room of their own: who gets it first starts the copy, and both wait for its end.
#[test]
fn a_promotion_that_another_has_started_meanwhile_is_joined() {
    let mut bench = Bench::new(2, 8);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    let other = bench.run(2, &links(2, 2));
    bench.on(Event::Release { entries: &other });
    let mut demoted = Vec::new();
    for ticket in [10, 11] {
        let actions = bench.on(Event::Promote { ticket: Ticket(ticket), entries: &entries });
        let [Action::Demote { entry, .. }] = actions[..] else { panic!("{actions:?}") };
        demoted.push(entry);
    }
    let promote = Action::Promote { entry: entries[0], key: key(&chain[0]) };
    let actions = bench.on(Event::Demoted { entry: demoted[0], end: CopyEnd::Done });
    assert_eq!(actions.last(), Some(&promote));
    let actions = bench.on(Event::Demoted { entry: demoted[1], end: CopyEnd::Done });
    assert!(matches!(actions[..], [Action::Drop { .. }]), "one copy serves both: {actions:?}");
    let answer = |ticket| Action::Promoted { ticket: Ticket(ticket), arrived: 1, loaded: 0, missed: 0 };
    assert_eq!(bench.on(Event::Onboarded { entry: entries[0], end: CopyEnd::Done }), [answer(10), answer(11)]);
}

#[test]
fn a_promotion_never_moves_a_live_block_out() {
    let mut bench = Bench::new(2, 8);
    let chain = links(1, 4);
    let entries = bench.run(1, &chain);
    assert_eq!(
        bench.on(Event::Promote { ticket: Ticket(9), entries: &entries }),
        [Action::Promoted { ticket: Ticket(9), arrived: 0, loaded: 0, missed: 0 }]
    );
}

#[test]
fn a_tainted_copy_is_no_hit_and_names_its_reason() {
    let mut bench = Bench::new(2, 0);
    let link = links(1, 1)[0];
    bench.room(1, 1);
    let tainted = CopyKey { provenance: Provenance(5), ..key(&link) };
    bench.on(Event::Commit { owner: Owner(1), opened_for: None, key: tainted, link, held: false });
    assert_eq!(bench.shard.peek(&keys(&[link]), &[], Accept::Exact).1, Some(MissReason::Provenance));
    bench.room(1, 1);
    bench.commit(1, &link);
    assert_eq!(bench.shard.peek(&keys(&[link]), &[], Accept::Exact).0.len(), 1);
    assert_eq!(bench.shard.entries(), 2);
}

#[test]
fn lost_blocks_that_are_still_read_fill_the_index_until_they_are_computed_again() {
    let mut bench = Bench::new(2, 0);
    let chain = links(1, 2);
    let entries = bench.run(1, &chain);
    for entry in &entries {
        bench.on(Event::Lost { entry: *entry, tier: Tier::Device, reason: MissReason::FailedCheck });
    }
    assert!(matches!(bench.room(2, 1)[..], [Action::Refused { .. }]), "both entries are taken");
    let again = Event::Room { ticket: Ticket(3), owner: Owner(1), keys: &[Some(key(&chain[0]))], held: 1 };
    assert!(matches!(bench.on(again)[..], [Action::Granted { slots: 1, .. }]));
    let event = Event::Commit {
        owner: Owner(1),
        opened_for: Some(key(&chain[0])),
        key: key(&chain[0]),
        link: chain[0],
        held: true,
    };
    assert_eq!(bench.on(event), [Action::Committed { entry: entries[0], inserted: true }]);
    assert_eq!(bench.shard.entry(entries[0]).unwrap().live, 1);
}
