//! Why a block was not there.

/// Reasons of a miss. Every miss has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MissReason {
    /// Never stored, or forgotten before the oldest ghost record.
    NeverStored,
    /// Stored once and evicted since (ghost records tell from where and when).
    Evicted,
    /// Known under another namespace.
    Namespace,
    /// A sum did not match: counted, quarantined, never served.
    FailedCheck,
    /// Only copies of other provenance are there.
    Provenance,
    /// The slot changed hands while it was read.
    LeaseLost,
    /// Not there in time.
    Deadline,
    /// Loading would have taken longer than computing.
    NotWorthIt,
    /// Refused by a quota.
    Quota,
    /// The tier is still reading its index.
    Recovering,
    /// The tier is offline.
    TierOffline,
}

impl MissReason {
    /// All reasons, in the order of the JSON output.
    pub const ALL: [MissReason; 11] = [
        MissReason::NeverStored,
        MissReason::Evicted,
        MissReason::Namespace,
        MissReason::FailedCheck,
        MissReason::Provenance,
        MissReason::LeaseLost,
        MissReason::Deadline,
        MissReason::NotWorthIt,
        MissReason::Quota,
        MissReason::Recovering,
        MissReason::TierOffline,
    ];

    /// Name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            MissReason::NeverStored => "never_stored",
            MissReason::Evicted => "evicted",
            MissReason::Namespace => "namespace",
            MissReason::FailedCheck => "failed_check",
            MissReason::Provenance => "provenance",
            MissReason::LeaseLost => "lease_lost",
            MissReason::Deadline => "deadline",
            MissReason::NotWorthIt => "not_worth_it",
            MissReason::Quota => "quota",
            MissReason::Recovering => "recovering",
            MissReason::TierOffline => "tier_offline",
        }
    }
}
