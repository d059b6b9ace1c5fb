//! Random steps on a tier of slots beside a plain model: what the tier says must be what the model says.

use std::collections::{HashMap, HashSet};

use super::{REST_MILLIS, Random, SlotRig, delete, read, within_budget};
use crate::store::{Lease, Lend, Lookup, Resident, Slot, Store, StoreError};
use crate::units::Now;

/// Blocks that the steps are about: a few more than the slots, so that the tier is often full.
const BLOCKS: u64 = 11;
/// Slots of the tier.
pub const SLOTS: u32 = 6;

struct Held {
    lease: Lease,
    number: u32,
    current: bool,
}

struct Model<'a, R: SlotRig> {
    rig: &'a R,
    now: Now,
    /// Committed blocks.
    stored: HashSet<u32>,
    reserved: HashMap<u32, Slot>,
    leases: Vec<Held>,
    /// When each resting slot is due.
    resting: Vec<Now>,
}

/// Runs `steps` steps on a fresh tier of [`SLOTS`] slots. Prints the seed.
pub fn run<R: SlotRig>(rig: &R, seed: u64, steps: u32) {
    println!("model seed {seed}");
    let mut random = Random::new(seed);
    let mut model = Model {
        rig,
        now: Now(0),
        stored: HashSet::new(),
        reserved: HashMap::new(),
        leases: Vec::new(),
        resting: Vec::new(),
    };
    for _ in 0..steps {
        model.step(&mut random);
        model.check();
    }
    model.leases.clear();
    model.reserved.clear();
    for number in model.stored {
        rig.tier().remove(&rig.block(number).0.key).unwrap();
    }
    rig.advance(model.now.after_millis(REST_MILLIS));
    assert_eq!(rig.tier().capacity().used_slots, 0, "nothing is held, so nothing is used");
}

impl<R: SlotRig> Model<'_, R> {
    fn step(&mut self, random: &mut Random) {
        let number = random.below(BLOCKS) as u32;
        match random.below(100) {
            0..25 => self.reserve(number),
            25..45 => self.finish(number, random.below(4)),
            45..60 => self.lookup(number),
            60..72 => {
                if !self.leases.is_empty() {
                    let held = self.leases.swap_remove(random.below(self.leases.len() as u64) as usize);
                    drop(held.lease);
                }
            }
            72..80 => self.remove(number, random.below(2) == 0),
            80..88 => self.revoke(number),
            88..94 => self.read(number),
            _ => {
                self.now = self.now.after_millis(random.below(REST_MILLIS));
                self.rig.advance(self.now);
                self.resting.retain(|due| *due > self.now);
            }
        }
    }

    fn used(&self) -> usize {
        self.stored.len() + self.reserved.len() + self.resting.len()
    }

    fn leases_of(&self, number: u32) -> u32 {
        self.leases.iter().filter(|held| held.current && held.number == number).count() as u32
    }

    fn reserve(&mut self, number: u32) {
        match self.rig.tier().reserve(self.rig.block(number).0.key) {
            Ok(slot) => {
                assert!(!self.stored.contains(&number) && !self.reserved.contains_key(&number));
                assert!(self.used() < SLOTS as usize);
                self.reserved.insert(number, slot);
            }
            Err(StoreError::Present) => assert!(self.stored.contains(&number)),
            Err(StoreError::PendingElsewhere) => assert!(self.reserved.contains_key(&number)),
            Err(StoreError::Full { slots }) => assert_eq!((self.used(), slots), (SLOTS as usize, u64::from(SLOTS))),
            Err(error) => panic!("reserve: {error}"),
        }
    }

    /// Commits a reservation, gives it up, or tries to commit it with a damaged byte.
    fn finish(&mut self, number: u32, how: u64) {
        let Some(mut slot) = self.reserved.remove(&number) else {
            return;
        };
        let (sealed, mut image) = self.rig.block(number);
        match how {
            0 => drop(slot),
            1 => {
                let last = self.rig.shape().code_section(self.rig.shape().layers - 1);
                image.as_mut_slice()[(last.offset + last.bytes - 1) as usize] ^= 1;
                self.rig.fill(&mut slot, image.as_slice());
                drop(slot.commit(&sealed).expect_err("damaged bytes became visible"));
            }
            _ => {
                self.rig.fill(&mut slot, image.as_slice());
                slot.commit(&sealed).expect("whole bytes of the reserved key");
                self.stored.insert(number);
            }
        }
    }

    fn lookup(&mut self, number: u32) {
        match self.rig.tier().lookup(&self.rig.block(number).0.key) {
            Lookup::Hit(lease) => {
                assert!(self.stored.contains(&number));
                self.leases.push(Held { lease, number, current: true });
            }
            Lookup::Pending => assert!(self.reserved.contains_key(&number)),
            Lookup::Miss(_) => assert!(!self.stored.contains(&number) && !self.reserved.contains_key(&number)),
        }
    }

    fn remove(&mut self, number: u32, as_operation: bool) {
        let key = self.rig.block(number).0.key;
        let result = if as_operation { delete(self.rig, key).map(drop) } else { self.rig.tier().remove(&key) };
        match (self.stored.contains(&number), self.leases_of(number)) {
            (true, leases) if leases > 0 => assert_eq!(result, Err(StoreError::Leased { leases })),
            _ => {
                assert_eq!(result, Ok(()));
                self.stored.remove(&number);
            }
        }
    }

    fn revoke(&mut self, number: u32) {
        self.rig.tier().revoke(&self.rig.block(number).0.key);
        let leases = self.leases_of(number);
        if self.stored.remove(&number) {
            if leases > 0 {
                self.resting.push(self.now.after_millis(REST_MILLIS));
            }
            for held in self.leases.iter_mut().filter(|held| held.number == number) {
                held.current = false;
            }
        }
    }

    fn read(&self, number: u32) {
        let (sealed, image) = self.rig.block(number);
        match read(self.rig, sealed.key) {
            Ok(found) => assert!(self.stored.contains(&number) && found.as_slice() == image.as_slice()),
            Err(_) => assert!(!self.stored.contains(&number)),
        }
    }

    fn check(&self) {
        let capacity = self.rig.tier().capacity();
        within_budget(self.rig);
        assert_eq!(capacity.used_slots, self.used() as u64);
        for held in &self.leases {
            assert_eq!(self.rig.tier().is_current(&held.lease), held.current, "block {}", held.number);
            if held.current {
                let found = self.rig.fetch(&held.lease);
                assert!(
                    found.as_slice() == self.rig.block(held.number).1.as_slice(),
                    "block {} as it was written",
                    held.number
                );
            }
        }
    }
}
