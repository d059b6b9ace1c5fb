//! What the server counts as it works: plain atomics, added to from any thread and read without stopping anyone.
//!
//! Figures that a tier keeps itself (use, the disk's reads and writes) are not counted again here: [`Counters::snapshot`] takes them as
//! they are now.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cache_core::form::Form;
use cache_core::hex::Hex;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use disk_tier::{DiskState, DiskTier};

use crate::stats::histogram::{BOUNDS_US, Histogram};
use crate::stats::process::Process;
use crate::stats::snapshot::{
    Ages, Amount, ByName, Client, Clients, DiskUse, Latencies, Leases, Name, Saved, Snapshot, State, Stores,
    TierAmounts, TierUse, Tiers, VERSION,
};

/// Defines an enumeration of fixed names, each counted by its place.
macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($(#[$what:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind { $($(#[$what])* $variant,)* }

        impl $kind {
            /// Names in JSON and metrics, in the order of the variants.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            /// Name in JSON and metrics.
            pub fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }
    };
}

names! {
    /// Operations whose duration is counted.
    Operation {
        /// A batch of keys looked up.
        Lookup = "lookup",
        /// Found blocks leased.
        Acquire = "acquire",
        /// Leases ended.
        Release = "release",
        /// Slots asked for.
        Reserve = "reserve",
        /// Filled slots verified and made visible.
        Commit = "commit",
        /// Waiting for a block that another client is storing.
        Await = "await",
        /// Blocks called up ahead of their use.
        Prefetch = "prefetch",
        /// A block read from the disk into the arena.
        Load = "load",
        /// A block written from the arena to the disk.
        Write = "write",
    }
}

names! {
    /// Why an offered block was not taken.
    StoreRefusal {
        /// The tenant has its bytes.
        Quota = "quota",
        /// No room, and nothing that may go.
        Full = "full",
        /// What the client wrote does not verify.
        FailedCheck = "failed_check",
        /// Another client is storing it.
        Pending = "pending_elsewhere",
        /// The daemon ends.
        Draining = "draining",
    }
}

names! {
    /// What a client did that the protocol forbids.
    ProtocolError {
        /// No frame of ours, or one that contradicts itself.
        BadFrame = "bad_frame",
        /// A version that we do not speak.
        BadVersion = "bad_version",
        /// A length over the limit.
        TooLarge = "too_large",
        /// A call before it introduced itself.
        NoHello = "no_hello",
        /// A namespace that it did not open.
        UnknownNamespace = "unknown_namespace",
        /// A lease that it does not hold: forged, released before, or another's.
        UnknownLease = "unknown_lease",
        /// A reservation that it does not hold.
        UnknownReservation = "unknown_reservation",
    }
}

names! {
    /// Why a connection was refused or ended by the daemon.
    Rejection {
        /// A user that may not connect.
        User = "user",
        /// As many as may be are connected.
        Limit = "limit",
        /// It did not introduce itself, or finish a frame, in time.
        Slow = "slow",
        /// It did not read its answers.
        NotReading = "not_reading",
        /// It was silent for too long.
        Idle = "idle",
        /// It broke the protocol.
        Protocol = "protocol",
    }
}

names! {
    /// Why the daemon ended a lease.
    Reclaim {
        /// Its holder hung up.
        HangUp = "hang_up",
        /// Its time was over.
        Expired = "expired",
        /// Its namespace or tenant was deleted.
        Deleted = "deleted",
    }
}

/// Forms by which savings are told apart; maps of layers count as one.
const FORMS: [&str; 7] = ["raw16", "raw32", "sx12", "i8h", "kc4vt4", "opaque", "map"];
const TIERS: [Tier; 2] = [Tier::Host, Tier::Disk];

/// A counter that only grows.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Amounts {
    blocks: Count,
    tokens: Count,
    bytes: Count,
}

impl Amounts {
    fn add(&self, amount: Amount) {
        self.blocks.add(amount.blocks);
        self.tokens.add(amount.tokens);
        self.bytes.add(amount.bytes);
    }

    fn read(&self) -> Amount {
        Amount { blocks: self.blocks.read(), tokens: self.tokens.read(), bytes: self.bytes.read() }
    }
}

/// What has happened since the daemon was started.
#[derive(Debug, Default)]
pub struct Counters {
    requested: Amounts,
    hits: [Amounts; TIERS.len()],
    misses: [Count; MissReason::ALL.len()],
    accepted: Amounts,
    present: Amounts,
    refused: [Count; StoreRefusal::NAMES.len()],
    loads: Amounts,
    host_evictions: Amounts,
    form_bytes: [Count; FORMS.len()],
    latency: [Histogram; Operation::NAMES.len()],
    rejected: [Count; Rejection::NAMES.len()],
    leases_lost: Count,
    reclaimed: [Count; Reclaim::NAMES.len()],
    host_integrity_failures: Count,
    protocol_errors: [Count; ProtocolError::NAMES.len()],
    copied_bytes: Count,
    scrubbed_bytes: Count,
}

/// What is now, and is not counted.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Names this run of the daemon.
    pub daemon: [u8; 16],
    /// Since it was started.
    pub uptime: Duration,
    /// What it is doing.
    pub state: State,
    /// The host arena's use.
    pub host: TierUse,
    /// The disk's; `None` without one.
    pub disk: Option<Disk>,
    /// Everyone who is connected.
    pub clients: Vec<Client>,
    /// Connections at once, at most.
    pub clients_max: u64,
    /// Bytes of the slots that leases hold. A slot with two leases counts once.
    pub leased_bytes: u64,
    /// How old copies in the arena get.
    pub ages: Ages,
    /// The daemon's process.
    pub process: Process,
}

/// What a disk tier tells of itself.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    usage: DiskUse,
    evictions: u64,
    evicted_bytes: u64,
    integrity_failures: u64,
}

impl Disk {
    /// Reads a tier's own figures.
    pub fn of(tier: &DiskTier) -> Disk {
        let (capacity, counters) = (tier.capacity(), tier.counters());
        let (state, reason) = match tier.state() {
            DiskState::Recovering { done_segments, segments } => {
                ("recovering", Some(format!("{done_segments} of {segments} segments are read")))
            }
            DiskState::Ready => ("ready", None),
            DiskState::Offline { reason } => ("offline", Some(reason)),
            DiskState::Closed => ("closed", None),
        };
        Disk {
            usage: DiskUse {
                usage: TierUse::new(capacity.allocated_bytes, capacity.budget_bytes, capacity.records),
                state: state.into(),
                reason,
                read_bytes: counters.read_bytes,
                written_bytes: counters.written_bytes,
                io_errors: counters.io_errors,
                io_inflight: tier.under_way() as u64,
            },
            evictions: counters.evicted,
            evicted_bytes: counters.evicted_bytes,
            integrity_failures: counters.failed_checks,
        }
    }
}

impl Counters {
    /// A client asked to lease so much.
    pub fn requested(&self, amount: Amount) {
        self.requested.add(amount);
    }

    /// So much of it was found in `tier`. Only host and disk are tiers of the daemon.
    pub fn hit(&self, tier: Tier, amount: Amount) {
        if let Some(place) = TIERS.iter().position(|known| *known == tier) {
            self.hits[place].add(amount);
        }
    }

    /// So many blocks of it were not there.
    pub fn missed(&self, reason: MissReason, blocks: u64) {
        let place = MissReason::ALL.iter().position(|known| *known == reason).expect("ALL names every reason");
        self.misses[place].add(blocks);
    }

    /// So much was taken in `form`; as 16-bit values it would have had `raw16_bytes`.
    pub fn accepted(&self, amount: Amount, form: Form, raw16_bytes: u64) {
        self.accepted.add(amount);
        self.form_bytes[form_place(form)].add(raw16_bytes.saturating_sub(amount.bytes));
    }

    /// So much was offered that was there already.
    pub fn present(&self, amount: Amount) {
        self.present.add(amount);
    }

    /// So many blocks were not taken.
    pub fn refused(&self, reason: StoreRefusal, blocks: u64) {
        self.refused[reason as usize].add(blocks);
    }

    /// So much was read from the disk into the arena.
    pub fn loaded(&self, amount: Amount) {
        self.loads.add(amount);
    }

    /// So much was dropped from the arena to make room.
    pub fn evicted(&self, amount: Amount) {
        self.host_evictions.add(amount);
    }

    /// An operation took so long.
    pub fn took(&self, operation: Operation, time: Duration) {
        self.latency[operation as usize].record(time);
    }

    /// A connection was refused or ended.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].add(1);
    }

    /// A client found its lease lost.
    pub fn lease_lost(&self) {
        self.leases_lost.add(1);
    }

    /// So many leases were ended by the daemon.
    pub fn reclaimed(&self, reason: Reclaim, leases: u64) {
        self.reclaimed[reason as usize].add(leases);
    }

    /// A copy in the arena did not verify: found by the scrubber, on a hit, or told by a client.
    pub fn integrity_failure(&self) {
        self.host_integrity_failures.add(1);
    }

    /// A client broke the protocol.
    pub fn protocol_error(&self, kind: ProtocolError) {
        self.protocol_errors[kind as usize].add(1);
    }

    /// So many bytes of blocks were copied to answer a call: out of the attic.
    pub fn copied(&self, bytes: u64) {
        self.copied_bytes.add(bytes);
    }

    /// The scrubber checked so many bytes.
    pub fn scrubbed(&self, bytes: u64) {
        self.scrubbed_bytes.add(bytes);
    }

    /// Everything in one piece.
    pub fn snapshot(&self, now: Gauges) -> Snapshot {
        let disk = now.disk.clone().unwrap_or_default();
        let sum = |of: fn(&Client) -> u64| now.clients.iter().map(of).sum();
        let (present, evicted) = (self.present.read(), self.host_evictions.read());
        Snapshot {
            version: VERSION,
            daemon: Hex(now.daemon).to_string(),
            uptime_ms: u64::try_from(now.uptime.as_millis()).unwrap_or(u64::MAX),
            state: now.state,
            requested: self.requested.read(),
            hits: TierAmounts { host: self.hits[0].read(), disk: self.hits[1].read() },
            misses: MissReason::ALL
                .iter()
                .zip(&self.misses)
                .map(|(reason, count)| (reason.name().into(), count.read()))
                .collect(),
            stores: Stores {
                accepted: self.accepted.read(),
                present,
                refused: by_name(StoreRefusal::NAMES, &self.refused),
            },
            loads: self.loads.read(),
            evictions: by_tier([evicted.blocks, disk.evictions]),
            evicted_bytes: by_tier([evicted.bytes, disk.evicted_bytes]),
            ages: now.ages,
            saved: Saved { sharing_bytes: present.bytes, form_bytes: by_name(&FORMS, &self.form_bytes) },
            latency: Latencies {
                bounds_us: BOUNDS_US.to_vec(),
                operations: Operation::NAMES
                    .iter()
                    .zip(&self.latency)
                    .map(|(name, held)| (Name::Borrowed(*name), held.read()))
                    .collect(),
            },
            leases: Leases {
                count: sum(|client| client.leases),
                bytes: now.leased_bytes,
                lost: self.leases_lost.read(),
                reclaimed: by_name(Reclaim::NAMES, &self.reclaimed),
            },
            reservations: sum(|client| client.reservations),
            clients: Clients {
                count: now.clients.len() as u64,
                limit: now.clients_max,
                rejected: by_name(Rejection::NAMES, &self.rejected),
                connected: now.clients,
            },
            integrity_failures: by_tier([self.host_integrity_failures.read(), disk.integrity_failures]),
            protocol_errors: by_name(ProtocolError::NAMES, &self.protocol_errors),
            copied_bytes: self.copied_bytes.read(),
            scrubbed_bytes: self.scrubbed_bytes.read(),
            process: now.process,
            tiers: Tiers { host: now.host, disk: now.disk.map(|disk| disk.usage) },
        }
    }
}

fn by_name(names: &'static [&'static str], counts: &[Count]) -> ByName {
    names.iter().zip(counts).map(|(name, count)| (Name::Borrowed(*name), count.read())).collect()
}

fn by_tier(counts: [u64; TIERS.len()]) -> ByName {
    TIERS.iter().zip(counts).map(|(tier, count)| (tier.name().into(), count)).collect()
}

fn form_place(form: Form) -> usize {
    // What follows the colon, a layout or layers, is no label.
    let name = form.name();
    let name = if matches!(form, Form::Opaque(_)) { "opaque" } else { &name };
    FORMS.iter().position(|known| *known == name).unwrap_or(FORMS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Amount = Amount { blocks: 1, tokens: 64, bytes: 1000 };

    #[test]
    fn savings_are_told_apart_by_form_and_maps_count_as_one() {
        let counters = Counters::default();
        counters.accepted(BLOCK, Form::Kc4vt4, 3500);
        counters.accepted(BLOCK, "kc4vt4:k8=0-3".parse().unwrap(), 2000);
        counters.accepted(BLOCK, Form::Raw16, 1000);
        counters.present(BLOCK);
        let saved = counters.snapshot(Gauges::default()).saved;
        assert_eq!(saved.sharing_bytes, 1000);
        let held: Vec<u64> = FORMS.iter().map(|form| saved.form_bytes[*form]).collect();
        assert_eq!(held, [0, 0, 0, 0, 2500, 0, 1000]);
    }

    #[test]
    fn every_name_is_there_from_the_start() {
        let snapshot = Counters::default().snapshot(Gauges::default());
        assert_eq!(snapshot.misses.len(), MissReason::ALL.len());
        assert_eq!(snapshot.latency.operations.len(), Operation::NAMES.len());
        assert_eq!(snapshot.evictions.keys().collect::<Vec<_>>(), ["disk", "host"]);
        assert_eq!(snapshot.stores.refused.len(), StoreRefusal::NAMES.len());
    }

    #[test]
    fn leases_and_reservations_are_those_of_the_clients() {
        let client = Client { name: "a".into(), pid: 1, leases: 3, reservations: 2, staging_bytes: 0 };
        let now = Gauges { clients: vec![client.clone(), client], ..Gauges::default() };
        let snapshot = Counters::default().snapshot(now);
        assert_eq!((snapshot.leases.count, snapshot.reservations, snapshot.clients.count), (6, 4, 2));
    }
}
