//! The disk as the third tier: what is written there, what must stay there, and the way back, decision by decision.

mod manager_bench;

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::manager::{Action, Actions, Below, CopyEnd, CopyState, EntryId, Event, Owner, Ticket};
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use manager_bench::{Bench, dropped, key, keys, links};

const NONE: CopyState = CopyState::None;
const RESIDENT: CopyState = CopyState::Resident;

impl Bench {
    fn acquire(&mut self, links: &[Link], below: &[Below]) -> Actions {
        self.on(Event::Acquire { keys: &keys(links), links, below, accept: Accept::Exact })
    }

    /// Makes blocks live that only the disk has.
    fn live_on_disk(&mut self, links: &[Link]) -> Vec<EntryId> {
        let actions = self.acquire(links, &vec![Ok(()); links.len()]);
        match actions.last() {
            Some(Action::Acquired { hits, miss: None }) => hits.iter().map(|(entry, _)| *entry).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// A write-behind ends.
    fn stored(&mut self, link: &Link, end: CopyEnd) -> Actions {
        self.on(Event::Stored { key: key(link), spill: false, end })
    }

    fn loaded(&mut self, entry: EntryId, end: CopyEnd) -> Actions {
        self.on(Event::Loaded { entry, end })
    }

    fn onboarded(&mut self, entry: EntryId, end: CopyEnd) -> Actions {
        self.on(Event::Onboarded { entry, end })
    }

    fn spilled(&mut self, link: &Link, end: CopyEnd) -> Actions {
        self.on(Event::Stored { key: key(link), spill: true, end })
    }

    fn copies(&self, entry: EntryId) -> [CopyState; 3] {
        self.shard.entry(entry).unwrap().copies
    }

    fn misses(&self, reason: MissReason) -> u64 {
        self.shard.counters().misses[reason as usize]
    }
}

fn acquired(actions: &Actions) -> (Vec<Tier>, Option<MissReason>) {
    match actions.last() {
        Some(Action::Acquired { hits, miss }) => (hits.iter().map(|(_, tier)| *tier).collect(), *miss),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_published_block_is_written_behind_once_and_pinned_when_it_is_there() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let link = links(1, 1)[0];
    bench.room(1, 1);
    let commit = Event::Commit { owner: Owner(1), opened_for: None, key: key(&link), link, held: false };
    let actions = bench.on(commit);
    let [Action::Committed { entry, inserted: true }, ref store] = actions[..] else { panic!("{actions:?}") };
    assert_eq!(*store, Action::Store { entry, key: key(&link), spill: false });
    assert_eq!(bench.stored(&link, CopyEnd::Done), [Action::Pin { entry, key: key(&link) }]);
    assert_eq!(bench.stored(&link, CopyEnd::Full), [], "another write of the block changes nothing");
    assert_eq!(bench.copies(entry), [RESIDENT, NONE, RESIDENT]);
    assert_eq!(bench.on(Event::Release { entries: &[entry] }), [Action::Unpin { key: key(&link) }]);
}

#[test]
fn a_write_behind_that_is_turned_down_is_not_asked_for_again() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    assert_eq!(bench.stored(&chain[0], CopyEnd::Full), []);
    bench.on(Event::Release { entries: &entries });
    assert_eq!(bench.acquire(&chain, &[Err(MissReason::NeverStored)]).len(), 1);
    assert_eq!(bench.copies(entries[0]), [RESIDENT, NONE, NONE]);
}

#[test]
fn a_computed_block_that_is_known_to_be_on_disk_is_not_written_again() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 1);
    let entries = bench.live_on_disk(&chain);
    bench.room(2, 1);
    let link = chain[0];
    let commit = Event::Commit { owner: Owner(2), opened_for: None, key: key(&link), link, held: false };
    // It was on the disk only: the copy in the owner's slot is worth keeping.
    assert_eq!(bench.on(commit), [Action::Committed { entry: entries[0], inserted: true }]);
    assert_eq!(bench.copies(entries[0]), [RESIDENT, NONE, RESIDENT]);
}

#[test]
fn an_idle_copy_with_a_record_takes_a_free_host_slot_and_nobodys() {
    let mut bench = Bench::with_disk(2, 1, 4);
    let chain = links(1, 2);
    let entries = bench.run(1, &chain);
    chain.iter().for_each(|link| drop(bench.stored(link, CopyEnd::Done)));
    bench.on(Event::Release { entries: &entries });
    let actions = bench.room(2, 2);
    let demoted = Action::Demote { entry: entries[1], key: key(&chain[1]) };
    // The parent is the last copy in a slot while its child has one: it must wait until the child's is gone, or move.
    assert_eq!(actions[0], demoted);
    let seen = bench.settle(actions);
    assert!(matches!(seen.last(), Some(Action::Granted { slots: 2, .. })), "{seen:?}");

    let mut bench = Bench::with_disk(1, 1, 4);
    let (first, second) = (links(1, 1), links(2, 1));
    let one = bench.run(1, &first);
    bench.stored(&first[0], CopyEnd::Done);
    bench.on(Event::Release { entries: &one });
    // The first moves into the free host slot, the second goes: the disk has it.
    let two = bench.run(2, &second);
    bench.stored(&second[0], CopyEnd::Done);
    bench.on(Event::Release { entries: &two });
    let actions = bench.room(3, 1);
    assert_eq!(actions[0], Action::Drop { entry: two[0], key: key(&second[0]), tier: Tier::Device });
    assert_eq!(actions.len(), 2);
    assert_eq!((bench.shard.entries(), bench.shard.ghost(&key(&second[0]))), (1, None), "nothing was lost");
}

#[test]
fn live_copies_are_demoted_then_left_to_the_disk_then_spilled() {
    let mut bench = Bench::with_disk(3, 1, 4);
    let chain = links(1, 3);
    let entries = bench.run(1, &chain);
    bench.stored(&chain[1], CopyEnd::Done);
    for link in [&chain[0], &chain[2]] {
        bench.stored(link, CopyEnd::Full);
    }
    let actions = bench.room(2, 3);
    let store = Action::Store { entry: entries[0], key: key(&chain[0]), spill: true };
    let expected = [
        Action::Demote { entry: entries[2], key: key(&chain[2]) },
        Action::Drop { entry: entries[1], key: key(&chain[1]), tier: Tier::Device },
        store,
    ];
    assert_eq!(actions, expected);
    assert_eq!(bench.shard.below(), 2);
    // The spilled copy stays readable until its record is there; then it is pinned before it is dropped.
    assert_eq!(bench.shard.peek(&keys(&chain[..1]), &[], Accept::Exact).0, [Tier::Device]);
    let actions = bench.spilled(&chain[0], CopyEnd::Done);
    let gone = Action::Drop { entry: entries[0], key: key(&chain[0]), tier: Tier::Device };
    assert_eq!(actions, [Action::Pin { entry: entries[0], key: key(&chain[0]) }, gone]);
    let actions = bench.on(Event::Demoted { entry: entries[2], end: CopyEnd::Done });
    assert_eq!(actions.last(), Some(&Action::Granted { ticket: Ticket(2), slots: 3 }));
    assert_eq!(bench.copies(entries[0]), [NONE, NONE, RESIDENT]);
}

/// The disk is full of live blocks: the deepest block is in device memory only and stays there, its parent's record makes room.
#[test]
fn when_the_disk_takes_no_more_a_shallower_block_that_has_a_record_goes() {
    let mut bench = Bench::with_disk(3, 0, 4);
    let chain = links(1, 3);
    let entries = bench.run(1, &chain);
    for (link, end) in chain.iter().zip([CopyEnd::Done, CopyEnd::Done, CopyEnd::Full]) {
        bench.stored(link, end);
    }
    let store = Action::Store { entry: entries[2], key: key(&chain[2]), spill: true };
    assert_eq!(bench.room(2, 1), [store], "the deepest first");
    let gone = Action::Drop { entry: entries[1], key: key(&chain[1]), tier: Tier::Device };
    assert_eq!(bench.spilled(&chain[2], CopyEnd::Full), [gone, Action::Granted { ticket: Ticket(2), slots: 1 }]);
    assert_eq!(bench.copies(entries[2]), [RESIDENT, NONE, NONE]);
    assert_eq!(bench.copies(entries[1]), [NONE, NONE, RESIDENT]);
}

#[test]
fn a_spill_joins_a_write_behind_and_goes_on_alone_when_that_is_turned_down() {
    let mut bench = Bench::with_disk(1, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    assert_eq!(bench.room(2, 1), [], "the write is under way");
    let store = Action::Store { entry: entries[0], key: key(&chain[0]), spill: true };
    assert_eq!(bench.stored(&chain[0], CopyEnd::Full), [store]);
    assert_eq!(bench.stored(&chain[0], CopyEnd::Full), [], "an earlier write of the block is not the one it waits for");
    // The disk has no room for a live block either: the request ends with the figures, the block stays.
    let actions = bench.spilled(&chain[0], CopyEnd::Full);
    let [Action::Refused { shortage, .. }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!((shortage.device_live_slots, shortage.below_entries, shortage.below_live), (1, 4, 0));
    assert_eq!(bench.copies(entries[0]), [RESIDENT, NONE, NONE]);
}

#[test]
fn a_spill_whose_source_is_lost_frees_its_slot_and_its_write_may_still_bring_the_block_back() {
    let mut bench = Bench::with_disk(1, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    bench.room(2, 1);
    let lost = Event::Lost { entry: entries[0], tier: Tier::Device, reason: MissReason::FailedCheck };
    let actions = bench.on(lost);
    assert_eq!(actions[0], Action::Discard { key: key(&chain[0]), tier: Tier::Device });
    assert_eq!(actions[1], Action::Granted { ticket: Ticket(2), slots: 1 });
    assert_eq!(bench.shard.entry(entries[0]).unwrap().loss, Some(MissReason::FailedCheck));
    assert_eq!(bench.stored(&chain[0], CopyEnd::Done), [Action::Pin { entry: entries[0], key: key(&chain[0]) }]);
    assert_eq!(bench.shard.entry(entries[0]).unwrap().loss, None);
}

#[test]
fn a_damaged_source_is_found_by_the_write() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    let actions = bench.stored(&chain[0], CopyEnd::Damaged);
    assert_eq!(actions, [Action::Discard { key: key(&chain[0]), tier: Tier::Device }]);
    assert_eq!(bench.shard.entry(entries[0]).unwrap().loss, Some(MissReason::FailedCheck));
}

#[test]
fn a_write_that_ends_after_its_entry_has_gone_leaves_no_ghost() {
    let mut bench = Bench::with_disk(1, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    bench.on(Event::Release { entries: &entries });
    bench.room(2, 1);
    assert_eq!(bench.shard.entries(), 0);
    assert_eq!(bench.shard.ghost(&key(&chain[0])).map(|ghost| ghost.reason), Some(MissReason::Evicted));
    assert_eq!(bench.stored(&chain[0], CopyEnd::Done), []);
    assert_eq!(bench.shard.ghost(&key(&chain[0])), None);
    assert_eq!(bench.shard.entries(), 0);
}

#[test]
fn blocks_on_the_disk_are_hits_as_far_as_there_are_entries_for_them() {
    let mut bench = Bench::with_disk(2, 2, 3);
    let chain = links(1, 5);
    let peeked = bench.shard.peek(&keys(&chain), &[Ok(()); 5], Accept::Exact);
    let actions = bench.acquire(&chain, &[Ok(()); 5]);
    assert_eq!(acquired(&actions), (vec![Tier::Disk; 3], Some(MissReason::Quota)));
    assert_eq!(peeked, acquired(&actions));
    let pins = actions.iter().filter(|action| matches!(action, Action::Pin { .. })).count();
    assert_eq!((pins, bench.shard.below(), bench.misses(MissReason::Quota)), (3, 3, 1));
    let Some(Action::Acquired { hits, .. }) = actions.last() else { panic!("{actions:?}") };
    let entries: Vec<EntryId> = hits.iter().map(|(entry, _)| *entry).collect();
    // A second reader takes no more entries; after both nothing is left.
    bench.acquire(&chain[..2], &[Ok(()); 2]);
    bench.on(Event::Release { entries: &entries[..2] });
    assert_eq!(bench.shard.pinned().len(), 3);
    let actions = bench.on(Event::Release { entries: &entries });
    assert_eq!(actions, [2, 1, 0].map(|index| Action::Unpin { key: key(&chain[index]) }));
    assert_eq!((bench.shard.entries(), bench.shard.ghost(&key(&chain[0]))), (0, None));
}

#[test]
fn what_the_disk_has_not_is_a_miss_with_the_disks_reason() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 2);
    for reason in [MissReason::Recovering, MissReason::TierOffline, MissReason::NeverStored] {
        assert_eq!(acquired(&bench.acquire(&chain, &[Ok(()), Err(reason)])), (vec![Tier::Disk], Some(reason)));
    }
    assert_eq!(acquired(&bench.acquire(&chain[1..], &[])), (vec![], Some(MissReason::NeverStored)));
}

#[test]
fn a_record_that_went_while_nobody_read_the_block_is_forgotten() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    bench.stored(&chain[0], CopyEnd::Done);
    bench.on(Event::Release { entries: &entries });
    let actions = bench.acquire(&chain, &[Err(MissReason::NeverStored)]);
    assert_eq!(acquired(&actions), (vec![Tier::Device], None));
    assert_eq!(actions.len(), 1, "there is nothing to pin");
    assert_eq!(bench.copies(entries[0]), [RESIDENT, NONE, NONE]);
}

#[test]
fn a_record_that_cannot_be_pinned_is_a_loss_only_if_it_was_the_last_copy() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 1);
    let entries = bench.run(1, &chain);
    bench.stored(&chain[0], CopyEnd::Done);
    let evicted = |entry| Event::Lost { entry, tier: Tier::Disk, reason: MissReason::Evicted };
    assert_eq!(bench.on(evicted(entries[0])), [Action::Unpin { key: key(&chain[0]) }]);
    assert_eq!((bench.misses(MissReason::Evicted), bench.shard.counters().lost_blocks), (0, [0; 3]));

    let other = links(2, 1);
    let entries = bench.live_on_disk(&other);
    assert_eq!(bench.on(evicted(entries[0])), [Action::Unpin { key: key(&other[0]) }]);
    assert_eq!((bench.misses(MissReason::Evicted), bench.shard.counters().lost_blocks), (1, [0, 0, 1]));
    assert_eq!(bench.shard.entry(entries[0]).unwrap().loss, Some(MissReason::Evicted));
    assert_eq!(bench.shard.ghost(&key(&other[0])).map(|ghost| ghost.tier), Some(Tier::Disk));
}

#[test]
fn a_live_block_whose_record_is_damaged_is_computed_again_and_written_again() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let link = links(1, 1)[0];
    let entry = bench.live_on_disk(&[link])[0];
    let actions = bench.on(Event::Lost { entry, tier: Tier::Disk, reason: MissReason::FailedCheck });
    let discard = Action::Discard { key: key(&link), tier: Tier::Disk };
    assert_eq!(actions, [Action::Unpin { key: key(&link) }, discard]);
    let again = Event::Room { ticket: Ticket(3), owner: Owner(1), keys: &[Some(key(&link))], held: 1 };
    assert!(matches!(bench.on(again)[..], [Action::Granted { slots: 1, .. }]));
    let opened_for = Some(key(&link));
    let actions = bench.on(Event::Commit { owner: Owner(1), opened_for, key: key(&link), link, held: true });
    let store = Action::Store { entry, key: key(&link), spill: false };
    assert_eq!(actions, [Action::Committed { entry, inserted: true }, store]);
}

#[test]
fn an_offline_disk_takes_nothing_away_for_good() {
    let mut bench = Bench::with_disk(2, 0, 4);
    let chain = links(1, 1);
    let entry = bench.live_on_disk(&chain)[0];
    // Nobody new gets what cannot be read just now; who holds it keeps it.
    let offline = [Err(MissReason::TierOffline)];
    assert_eq!(acquired(&bench.acquire(&chain, &offline)), (vec![], Some(MissReason::TierOffline)));
    assert_eq!(bench.copies(entry), [NONE, NONE, RESIDENT]);
    // Its reader tries and finds out; the record is not discarded, and the next who looks brings it back for both.
    let actions = bench.on(Event::Lost { entry, tier: Tier::Disk, reason: MissReason::TierOffline });
    assert_eq!(actions, [Action::Unpin { key: key(&chain[0]) }]);
    assert_eq!(bench.shard.entry(entry).unwrap().loss, Some(MissReason::TierOffline));
    let actions = bench.acquire(&chain, &[Ok(())]);
    assert_eq!(actions[0], Action::Pin { entry, key: key(&chain[0]) });
    assert_eq!(acquired(&actions), (vec![Tier::Disk], None));
    let view = bench.shard.entry(entry).unwrap();
    assert_eq!((view.live, view.loss), (2, None));
}

#[test]
fn a_promotion_loads_in_chain_order_into_slots_that_no_live_block_needs() {
    let mut bench = Bench::with_disk(3, 3, 8);
    // One live block that only the host has, one idle one.
    let idle = bench.run(1, &links(1, 1));
    bench.on(Event::Release { entries: &idle });
    let live = bench.run(2, &links(2, 1));
    for link in [links(1, 1)[0], links(2, 1)[0]] {
        bench.stored(&link, CopyEnd::Full);
    }
    let actions = bench.room(3, 3);
    bench.settle(actions);
    bench.on(Event::Abandon { owner: Owner(3), keys: &[None; 3], held: 0 });
    assert_eq!((bench.copies(idle[0]), bench.copies(live[0])), ([NONE, RESIDENT, NONE], [NONE, RESIDENT, NONE]));

    let chain = links(3, 4);
    let entries = bench.live_on_disk(&chain);
    let actions = bench.on(Event::Promote { ticket: Ticket(9), entries: &entries });
    let load = |index: usize| Action::Load { entry: entries[index], key: key(&chain[index]) };
    let drop = Action::Drop { entry: idle[0], key: key(&links(1, 1)[0]), tier: Tier::Host };
    assert_eq!(actions, [load(0), drop, load(1)], "a free slot, then an idle one");
    let seen = bench.settle(actions);
    let promoted = Action::Promoted { ticket: Ticket(9), arrived: 2, loaded: 2, missed: 0 };
    assert_eq!(seen.last(), Some(&promoted));
    assert_eq!(bench.copies(entries[1]), [RESIDENT; 3]);
    assert_eq!(bench.copies(entries[2]), [NONE, NONE, RESIDENT]);
}

#[test]
fn a_block_goes_on_to_device_memory_while_the_next_is_loaded() {
    let mut bench = Bench::with_disk(2, 2, 4);
    let chain = links(1, 2);
    let entries = bench.live_on_disk(&chain);
    let promote = |index: usize| Action::Promote { entry: entries[index], key: key(&chain[index]) };
    assert_eq!(bench.on(Event::Promote { ticket: Ticket(9), entries: &entries }).len(), 2, "two loads");
    assert_eq!(bench.loaded(entries[0], CopyEnd::Done), [promote(0)]);
    assert_eq!(bench.onboarded(entries[0], CopyEnd::Done), [], "the answer waits for the second");
    assert_eq!(bench.loaded(entries[1], CopyEnd::Done), [promote(1)]);
    let promoted = Action::Promoted { ticket: Ticket(9), arrived: 2, loaded: 2, missed: 0 };
    assert_eq!(bench.onboarded(entries[1], CopyEnd::Done), [promoted]);
}

/// Both orders of the ends: the block that could be loaded goes on, the request's answer has both.
#[test]
fn a_load_that_fails_takes_nothing_from_the_others() {
    for (fails, comes) in [(0, 1), (1, 0)] {
        for fails_first in [true, false] {
            let mut bench = Bench::with_disk(2, 2, 4);
            let chain = links(1, 2);
            let entries = bench.live_on_disk(&chain);
            bench.on(Event::Promote { ticket: Ticket(9), entries: &entries });
            let promote = Action::Promote { entry: entries[comes], key: key(&chain[comes]) };
            let lost = [
                Action::Unpin { key: key(&chain[fails]) },
                Action::Discard { key: key(&chain[fails]), tier: Tier::Disk },
            ];
            if fails_first {
                assert_eq!(bench.loaded(entries[fails], CopyEnd::Damaged), lost);
                assert_eq!(bench.loaded(entries[comes], CopyEnd::Done), [promote]);
            } else {
                assert_eq!(bench.loaded(entries[comes], CopyEnd::Done), [promote]);
                assert_eq!(bench.loaded(entries[fails], CopyEnd::Damaged), lost);
            }
            let promoted = Action::Promoted { ticket: Ticket(9), arrived: 1, loaded: 1, missed: 1 };
            assert_eq!(bench.onboarded(entries[comes], CopyEnd::Done), [promoted]);
            assert_eq!(bench.misses(MissReason::FailedCheck), 1);
        }
    }
}

/// One device slot for two blocks: it is the first block's, whichever load ends first, unless that one's fails.
#[test]
fn the_room_in_device_memory_is_the_front_of_the_chains() {
    for end in [CopyEnd::Done, CopyEnd::Failed] {
        let mut bench = Bench::with_disk(1, 2, 4);
        let chain = links(1, 2);
        let entries = bench.live_on_disk(&chain);
        bench.on(Event::Promote { ticket: Ticket(9), entries: &entries });
        assert_eq!(bench.loaded(entries[1], CopyEnd::Done), [], "the slot is not for this one yet");
        let goes = usize::from(end == CopyEnd::Failed);
        let promote = Action::Promote { entry: entries[goes], key: key(&chain[goes]) };
        assert_eq!(bench.loaded(entries[0], end), [promote]);
        let actions = bench.onboarded(entries[goes], CopyEnd::Done);
        assert!(matches!(actions[..], [Action::Promoted { arrived: 1, .. }]), "{actions:?}");
    }
}

#[test]
fn two_requests_share_the_copies_on_both_legs() {
    let mut bench = Bench::with_disk(2, 2, 4);
    let chain = links(1, 2);
    let entries = bench.live_on_disk(&chain);
    bench.on(Event::Promote { ticket: Ticket(8), entries: &entries });
    let promote = |index: usize| Action::Promote { entry: entries[index], key: key(&chain[index]) };
    assert_eq!(bench.loaded(entries[0], CopyEnd::Done), [promote(0)]);
    // One joins while the first block is on its second leg, and the second block on its first.
    assert_eq!(bench.on(Event::Promote { ticket: Ticket(9), entries: &entries }), []);
    assert_eq!(bench.loaded(entries[1], CopyEnd::Done), [promote(1)], "one copy serves both");
    assert_eq!(bench.onboarded(entries[1], CopyEnd::Done), []);
    let actions = bench.onboarded(entries[0], CopyEnd::Damaged);
    let answers = [
        Action::Promoted { ticket: Ticket(8), arrived: 1, loaded: 2, missed: 1 },
        Action::Promoted { ticket: Ticket(9), arrived: 1, loaded: 1, missed: 1 },
    ];
    assert_eq!(actions[actions.len() - 2..], answers);
    assert_eq!(bench.misses(MissReason::FailedCheck), 2);
}

#[test]
fn a_load_that_finds_the_host_full_is_no_miss() {
    let mut bench = Bench::with_disk(2, 1, 4);
    let chain = links(1, 1);
    let entry = bench.live_on_disk(&chain)[0];
    let misses = bench.shard.counters().misses;
    bench.on(Event::Promote { ticket: Ticket(9), entries: &[entry] });
    let actions = bench.on(Event::Loaded { entry, end: CopyEnd::Full });
    assert_eq!(actions, [Action::Promoted { ticket: Ticket(9), arrived: 0, loaded: 0, missed: 0 }]);
    assert_eq!((bench.copies(entry), bench.shard.counters().misses), ([NONE, NONE, RESIDENT], misses));
}

#[test]
fn a_load_serves_everybody_and_its_failure_is_everybodys_own_miss() {
    let mut bench = Bench::with_disk(2, 1, 4);
    let chain = links(1, 1);
    let entry = bench.live_on_disk(&chain)[0];
    bench.on(Event::Promote { ticket: Ticket(8), entries: &[entry] });
    assert_eq!(bench.on(Event::Promote { ticket: Ticket(9), entries: &[entry] }), [], "one copy serves both");
    let actions = bench.on(Event::Loaded { entry, end: CopyEnd::Damaged });
    let answer = |ticket| Action::Promoted { ticket: Ticket(ticket), arrived: 0, loaded: 0, missed: 1 };
    let discard = Action::Discard { key: key(&chain[0]), tier: Tier::Disk };
    assert_eq!(actions, [Action::Unpin { key: key(&chain[0]) }, discard, answer(8), answer(9)]);
    assert_eq!(bench.misses(MissReason::FailedCheck), 2);
    assert_eq!(bench.shard.entry(entry).unwrap().loss, Some(MissReason::FailedCheck));
}

#[test]
fn a_load_outlives_its_reader_and_a_lost_record() {
    let mut bench = Bench::with_disk(2, 2, 4);
    let chain = links(1, 2);
    let entries = bench.live_on_disk(&chain);
    bench.on(Event::Promote { ticket: Ticket(9), entries: &entries });
    bench.on(Event::Lost { entry: entries[0], tier: Tier::Disk, reason: MissReason::Evicted });
    bench.on(Event::Loaded { entry: entries[0], end: CopyEnd::Done });
    assert_eq!(bench.copies(entries[0]), [CopyState::Arriving, RESIDENT, NONE]);
    assert_eq!(bench.on(Event::Release { entries: &entries }), [Action::Unpin { key: key(&chain[1]) }]);
    // Nobody reads them any more: what comes now stays in the host, and the copy that is under way ends there.
    assert_eq!(bench.on(Event::Loaded { entry: entries[1], end: CopyEnd::Done }), []);
    let actions = bench.on(Event::Onboarded { entry: entries[0], end: CopyEnd::Done });
    assert_eq!(actions, [Action::Promoted { ticket: Ticket(9), arrived: 1, loaded: 2, missed: 0 }]);
    assert_eq!(bench.shard.live_entries().len(), 0);
    assert_eq!(bench.shard.host_used(), 2);
}

#[test]
fn a_load_that_fails_after_its_reader_has_left_frees_the_entry() {
    let mut bench = Bench::with_disk(2, 2, 4);
    let chain = links(1, 1);
    let entries = bench.live_on_disk(&chain);
    bench.on(Event::Promote { ticket: Ticket(9), entries: &entries });
    bench.on(Event::Release { entries: &entries });
    bench.on(Event::Loaded { entry: entries[0], end: CopyEnd::Failed });
    assert_eq!((bench.shard.entries(), bench.shard.ghost(&key(&chain[0]))), (0, None));
}

#[test]
fn of_two_live_blocks_that_are_on_the_disk_the_deeper_one_goes_there() {
    let mut bench = Bench::with_disk(1, 1, 4);
    let chain = links(1, 3);
    // Block 0 goes to the host, as block 1 needs its slot; both get their records.
    let entries = bench.run(1, &chain[..2]);
    for link in &chain[..2] {
        bench.stored(link, CopyEnd::Done);
    }
    assert_eq!((bench.copies(entries[0])[1], bench.copies(entries[1])[0]), (RESIDENT, RESIDENT));
    let actions = bench.room(1, 1);
    assert_eq!(actions[0], Action::Drop { entry: entries[1], key: key(&chain[1]), tier: Tier::Device });
    assert_eq!((actions.len(), bench.copies(entries[0])), (2, [NONE, RESIDENT, RESIDENT]));
    // Block 2 has no record: it needs the host slot more than block 0 does, which has one.
    let last = bench.commit(1, &chain[2]);
    bench.stored(&chain[2], CopyEnd::Full);
    let actions = bench.room(2, 1);
    assert_eq!(dropped(&actions, Tier::Host), [key(&chain[0])]);
    assert_eq!(actions.last(), Some(&Action::Demote { entry: last, key: key(&chain[2]) }));
}

#[test]
fn a_copy_stays_when_no_entry_is_left_for_blocks_below() {
    let mut bench = Bench::with_disk(2, 0, 1);
    let chain = links(1, 2);
    let entries = bench.run(1, &chain);
    for link in &chain {
        bench.stored(link, CopyEnd::Done);
    }
    assert!(matches!(bench.room(2, 2).last(), Some(Action::Refused { .. })));
    assert_eq!(bench.copies(entries[1]), [NONE, NONE, RESIDENT]);
    assert_eq!(bench.copies(entries[0]), [RESIDENT, NONE, RESIDENT]);
}

/// A deletion, or a failed check, that meets a block on its way up: it does not stay there, and whoever waits for it is told.
#[test]
fn a_copy_that_is_condemned_on_its_way_does_not_stay() {
    for (host_slots, tier) in [(0, Tier::Device), (2, Tier::Host)] {
        for end in [CopyEnd::Done, CopyEnd::Failed] {
            let mut bench = Bench::with_disk(2, host_slots, 4);
            let chain = links(1, 1);
            let entry = bench.live_on_disk(&chain)[0];
            bench.on(Event::Promote { ticket: Ticket(9), entries: &[entry] });
            let lost = |tier| Event::Lost { entry, tier, reason: MissReason::NeverStored };
            assert_eq!(bench.on(lost(tier)), [], "it has not come yet");
            assert_eq!(bench.on(lost(Tier::Disk)), [Action::Unpin { key: key(&chain[0]) }]);
            let actions = bench.on(match tier {
                Tier::Device => Event::Onboarded { entry, end },
                _ => Event::Loaded { entry, end },
            });
            let discard = Action::Discard { key: key(&chain[0]), tier };
            let promoted = Action::Promoted { ticket: Ticket(9), arrived: 0, loaded: 0, missed: 1 };
            let expected = if end == CopyEnd::Done { vec![discard, promoted] } else { vec![promoted] };
            assert_eq!((actions, bench.copies(entry)), (expected, [NONE; 3]), "{tier:?}, {end:?}");
            assert_eq!(bench.shard.entry(entry).unwrap().loss, Some(MissReason::NeverStored));
        }
    }
}
