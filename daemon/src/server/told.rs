//! What operators are told: figures, and why blocks were not there.

use super::*;

impl Server {
    /// Remembers what became of a named request's blocks.
    pub(crate) fn note(&self, request: &str, asked: &Asked<'_>, leased: &[Leased], miss: Option<MissReason>) {
        let first = asked.links.first().map_or(0, |link| link.depth);
        let mut stories: Vec<BlockStory> =
            leased.iter().zip(first..).map(|(leased, position)| BlockStory::hit(position, leased.tier)).collect();
        if let Some(reason) = miss {
            let link = &asked.links[leased.len()];
            stories.push(self.story(link.depth, reason, asked.parts.class.0, &asked.parts.key(link.hash)));
        }
        lock(&self.requests).note(request, stories);
    }

    /// A block that a named request had found turned out not to be what it should.
    pub(crate) fn correct(&self, request: &str, position: u32, reason: MissReason) {
        if !request.is_empty() {
            lock(&self.requests).note(request, vec![BlockStory::miss(position, reason)]);
        }
    }

    fn story(&self, position: u32, reason: MissReason, class: ClassId, key: &CopyKey) -> BlockStory {
        let story = BlockStory::miss(position, reason);
        let story = match (reason, self.cache.gone(class, key)) {
            (MissReason::NeverStored | MissReason::Namespace, gone) => {
                BlockStory { ago_ms: gone.forgotten_ms, ..story }
            }
            // It was never there: what is remembered is when it was refused.
            (MissReason::Quota, gone) => BlockStory { ago_ms: gone.ghost.map(|(_, ago_ms)| ago_ms), ..story },
            (_, gone) => match gone.ghost {
                Some((tier, ago_ms)) => story.gone(tier, ago_ms),
                // What the arena does not remember went from the disk.
                None if reason == MissReason::Evicted => {
                    BlockStory { evicted_from: Some(Tier::Disk.name().into()), ago_ms: gone.dropped_ms, ..story }
                }
                None => story,
            },
        };
        let field = lock(&self.namespaces).differs(&key.namespace).filter(|_| reason == MissReason::Namespace);
        BlockStory { field: field.map(str::to_owned), ..story }
    }

    pub(crate) fn explain_block_json(&self, class: ClassId, key: &CopyKey) -> String {
        let story = match self.cache.find(class, key) {
            Ok(tier) => BlockStory::hit(0, tier),
            Err(reason) => {
                let reason = self.reason(&key.namespace, Some(reason)).unwrap_or(reason);
                self.story(0, reason, class, key)
            }
        };
        serde_json::to_string(&story).expect("a story is plain data")
    }

    pub(crate) fn explain_json(&self, request: &str) -> Option<String> {
        self.explain(request).map(|told| serde_json::to_string(&told).expect("an explanation is plain data"))
    }

    pub(crate) fn stats_json(&self) -> String {
        serde_json::to_string(&self.snapshot()).expect("a snapshot is plain data")
    }
}

impl Source for Server {
    fn snapshot(&self) -> Snapshot {
        let (used, moved) = (self.cache.used(), self.cache.take_moved());
        self.counters.evicted(moved.evicted);
        self.counters.loaded(moved.loaded);
        self.counters.copied(moved.copied_bytes);
        (0..moved.damaged).for_each(|_| self.counters.integrity_failure());
        let disk = self.cache.disk().map(Disk::of);
        let state = match (self.is_ending(), self.cache.disk().map(DiskTier::state)) {
            (true, _) => State::Draining,
            (false, Some(DiskState::Recovering { .. })) => State::Recovering,
            (false, _) => State::Ready,
        };
        self.counters.snapshot(Gauges {
            daemon: self.id,
            uptime: self.started.elapsed(),
            state,
            host: TierUse::new(used.bytes, self.config.host_mem_bytes, used.blocks),
            disk,
            clients: lock(&self.connected).values().cloned().collect(),
            clients_max: u64::from(self.config.clients_max),
            leased_bytes: used.leased_bytes,
            ages: self.cache.ages(),
            process: Process::here(),
        })
    }

    fn explain(&self, request: &str) -> Option<Explanation> {
        lock(&self.requests).find(request)
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.is_ending() {
            reasons.push("the daemon is about to end".to_owned());
        }
        match self.cache.disk().map(DiskTier::state) {
            Some(DiskState::Recovering { done_segments, segments }) => {
                reasons.push(format!("the disk's index is being read: {done_segments} of {segments} segments"));
            }
            Some(DiskState::Offline { reason }) => reasons.push(format!("the disk is offline: {reason}")),
            _ => {}
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}
