//! Bugs that the checks must catch.

/// A deliberate mistake in the driver, in a client, or in what the shard is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// A client that hangs up keeps its leases.
    LeaseKeptAtHangUp,
    /// A client that hangs up keeps its reservations.
    ReservationKeptAtHangUp,
    /// The copy that is evicted is one that somebody reads.
    LeasedEvicted,
    /// Who waits is told of the deadline one nanosecond late.
    DeadlineLate,
    /// Who waits hears nothing before the deadline.
    ForgottenWake,
    /// The shard may use one slot more than the budget has.
    BudgetOffByOne,
    /// A place from an earlier lease is read without a look at its generation.
    StaleServed,
    /// What the disk brings is committed unverified, damaged or not.
    Unverified,
    /// The slot of a vanished reader is used again at once.
    NoRest,
    /// A pin is not ended when its time is over.
    PinForever,
    /// A record is not kept although a live block needs it.
    ForgottenPin,
    /// A load that was under way when its namespace was deleted brings the block back.
    DeletedComesBack,
    /// The quota does not count what is reserved.
    QuotaBlind,
}

impl Bug {
    /// Those of a daemon, each with words that its failure must contain.
    pub const OF_DAEMON: [(Bug, &'static str); 13] = [
        (Bug::LeaseKeptAtHangUp, "readers"),
        (Bug::ReservationKeptAtHangUp, "open"),
        (Bug::LeasedEvicted, "is read"),
        (Bug::DeadlineLate, "late"),
        (Bug::ForgottenWake, "heard nothing"),
        (Bug::BudgetOffByOne, "slots"),
        (Bug::StaleServed, "bytes"),
        (Bug::Unverified, "bytes"),
        (Bug::NoRest, "vanished"),
        (Bug::PinForever, "late"),
        (Bug::ForgottenPin, "pinned"),
        (Bug::DeletedComesBack, "deleted"),
        (Bug::QuotaBlind, "quota"),
    ];

    /// Those of an engine.
    pub const OF_ENGINE: [(Bug, &'static str); 7] = [
        (Bug::LeaseKeptAtHangUp, "readers"),
        (Bug::LeasedEvicted, "is read"),
        (Bug::DeadlineLate, "late"),
        (Bug::BudgetOffByOne, "slots"),
        (Bug::StaleServed, "bytes"),
        (Bug::Unverified, "bytes"),
        (Bug::ForgottenPin, "pinned"),
    ];
}
