//! Blocks that a connection leases, and blocks that it hands over.

use super::*;

impl Session {
    pub(super) fn acquire(
        &mut self,
        asked: &Asked<'_>,
        until: Instant,
        id: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        self.bring_back(asked, until);
        let is_over = is_over(&self.server, &self.stream);
        let patience = Patience { until, is_over: &is_over };
        let (mut leased, mut miss) = self.server.cache.acquire(&mut self.holdings, asked, patience);
        if self.server.config().verify == Verify::Always {
            let is_wrong = |leased: &cache::Leased| {
                self.server.cache.verify(asked.parts.class.0, SlotIndex(leased.slot), Generation(leased.generation))
            };
            if let Some(wrong) = leased.iter().position(is_wrong) {
                let rest: Vec<u64> = leased.split_off(wrong).iter().map(|leased| leased.lease).collect();
                self.server.cache.release(&mut self.holdings, &rest);
                self.server.counters.integrity_failure();
                miss = Some(MissReason::FailedCheck);
            }
        }
        if !leased.is_empty() {
            self.server.found(&asked.parts.namespace);
        }
        let miss = self.server.reason(&asked.parts.namespace, miss);
        let hits: Vec<Hit> = leased.iter().map(hit).collect();
        self.count_found(asked, &leased, miss);
        if !self.tag.is_empty() {
            self.server.note(&self.tag, asked, &leased, miss);
        }
        Ok(Reply::Acquire(AcquireReply { miss, hits: Batch::new(&hits)? }).encode_frame(id, out)?)
    }

    /// Waits for a block that somebody writes, which may take hours: leases end meanwhile.
    pub(super) fn await_block(&mut self, class: ClassId, key: &CopyKey, until: Instant) -> Option<MissReason> {
        loop {
            let due = self.holdings.due(self.server.lease_ttl());
            let (miss, has_ended) = {
                let is_over = is_over(&self.server, &self.stream);
                let patience = Patience { until: due.map_or(until, |due| due.min(until)), is_over: &is_over };
                let miss = self.server.cache.await_block(class, key, patience);
                (miss, miss != Some(MissReason::Deadline) || Instant::now() >= until || is_over())
            };
            if has_ended {
                return miss;
            }
            self.end_leases();
        }
    }

    /// Brings back what the daemon before this one has left of a run.
    pub(super) fn bring_back(&self, asked: &Asked<'_>, until: Instant) {
        let is_over = is_over(&self.server, &self.stream);
        self.server.bring_back(asked, Patience { until, is_over: &is_over });
    }

    pub(super) fn count_found(&self, asked: &Asked<'_>, leased: &[cache::Leased], miss: Option<MissReason>) {
        let counters = &self.server.counters;
        let amount = |blocks: u64| Amount::of(blocks, &asked.shape);
        counters.requested(amount(asked.links.len() as u64));
        for tier in [cache_core::units::Tier::Host, cache_core::units::Tier::Disk] {
            counters.hit(tier, amount(leased.iter().filter(|leased| leased.tier == tier).count() as u64));
        }
        if let Some(reason) = miss {
            counters.missed(reason, (asked.links.len() - leased.len()) as u64);
        }
    }

    pub(super) fn reserve(
        &mut self,
        parts: &KeyParts,
        lineage: cache_core::form::Lineage,
        run: &Run<'_>,
        id: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let (shape, class) = (self.shape(parts)?, parts.class.0);
        if self.server.is_ending() {
            self.server.counters.refused(StoreRefusal::Draining, run.hashes().len() as u64);
            return refused(Status::Draining, "the daemon is about to end");
        }
        self.server.lists(&parts.namespace).or_else(|sentence| refused(Status::Full, sentence))?;
        let slot_bytes = shape.slot_bytes();
        let mut answers = Vec::with_capacity(run.hashes().len());
        for link in run.links() {
            let sealed = Sealed { key: parts.key(link.hash), lineage, link };
            answers.push(self.reserve_one(sealed, class, slot_bytes));
        }
        Ok(Reply::Reserve(ReserveReply { answers: Batch::new(&answers)? }).encode_frame(id, out)?)
    }

    pub(super) fn reserve_one(&mut self, sealed: Sealed, class: ClassId, slot_bytes: u64) -> Reserved {
        let nothing = |answer| Reserved {
            reservation: ReservationId(0.into()),
            staging_offset: 0.into(),
            answer,
            reserved: Zero::BYTES,
        };
        let counters = &self.server.counters;
        let staging = self.staging.as_mut().filter(|_| self.holdings.reservations() < RESERVATIONS_MAX);
        let Some(offset) = staging.and_then(|staging| staging.take(slot_bytes)) else {
            counters.refused(StoreRefusal::Full, 1);
            return nothing(ReserveCode::Full);
        };
        let owner = self.owner();
        let answer = match self.server.cache.reserve(&mut self.holdings, owner, sealed, class, offset) {
            cache::Reserved::Granted { reservation } => {
                return Reserved {
                    reservation: ReservationId(reservation.into()),
                    staging_offset: offset.into(),
                    ..nothing(ReserveCode::Reserved)
                };
            }
            cache::Reserved::Present => {
                counters.present(self.server.amount(class, 1));
                ReserveCode::Present
            }
            cache::Reserved::PendingElsewhere => {
                counters.refused(StoreRefusal::Pending, 1);
                ReserveCode::PendingElsewhere
            }
            cache::Reserved::Full => {
                counters.refused(StoreRefusal::Full, 1);
                ReserveCode::Full
            }
            cache::Reserved::Quota => {
                counters.refused(StoreRefusal::Quota, 1);
                ReserveCode::Full
            }
        };
        self.give_back(offset);
        nothing(answer)
    }

    pub(super) fn commit(&mut self, reservation: ReservationId) -> CommitCode {
        let owner = self.owner();
        let staging = self.staging.as_ref().expect("a connection that was introduced has staging memory").memory();
        let (committed, offset) = self.server.cache.commit(&mut self.holdings, owner, staging, reservation.0.get());
        let counters = &self.server.counters;
        let code = match committed {
            Committed::Inserted { class, namespace } => {
                self.server.inserted(class, &namespace);
                CommitCode::Inserted
            }
            Committed::Present { class } => {
                counters.present(self.server.amount(class, 1));
                CommitCode::Present
            }
            Committed::FailedCheck => {
                counters.refused(StoreRefusal::FailedCheck, 1);
                CommitCode::FailedCheck
            }
            Committed::Full => {
                counters.refused(StoreRefusal::Full, 1);
                CommitCode::Full
            }
            Committed::Unknown => {
                counters.protocol_error(ProtocolError::UnknownReservation);
                CommitCode::Unknown
            }
        };
        offset.into_iter().for_each(|offset| self.give_back(offset));
        code
    }

    pub(super) fn give_back(&mut self, offset: u64) {
        if let Some(staging) = &mut self.staging {
            staging.give_back(offset);
        }
    }
}

fn hit(leased: &cache::Leased) -> Hit {
    Hit {
        lease: LeaseId(leased.lease.into()),
        offset: leased.offset.into(),
        generation: leased.generation.into(),
        provenance: leased.key.provenance.0.into(),
        slot: leased.slot.into(),
        extent: leased.extent.into(),
        form: leased.key.form.0.into(),
        tier: leased.tier.into(),
        reserved: Zero::BYTES,
    }
}
