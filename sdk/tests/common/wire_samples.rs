//! One request and one reply of every kind, made of given parts.

use cache_core::form::{Form, FormMapId, Lineage, Provenance};
use cache_core::hash::{BlockHash, Namespace, TenantId, WeightsId};
use cache_core::key::GroupId;
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::{Generation, SlotIndex};
use kvtier_sdk::wire::*;
use zerocopy::byteorder::little_endian::{U32, U64};

/// What messages are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub hashes: Vec<BlockHash>,
    pub depth: u32,
    pub ids: [u8; 32],
    pub numbers: [u64; 6],
    pub name: String,
    pub json: String,
    pub miss: Option<MissReason>,
    pub accept: AcceptId,
    pub manifest: Manifest,
    pub form: Form,
    pub leases: Vec<LeaseId>,
    pub reservations: Vec<ReservationId>,
    pub tiers: Vec<TierCode>,
    pub commits: Vec<CommitCode>,
    pub hits: Vec<Hit>,
    pub answers: Vec<Reserved>,
}

/// The parts of the golden frames.
pub fn sample() -> Parts {
    let number = |index: u64| U64::new(0x0102_0304_0506_0700 + index);
    let hit = |index: u64, tier| Hit {
        lease: LeaseId(number(index)),
        offset: U64::new(4096 + 2048 * index),
        generation: U64::new(2 * index),
        provenance: U64::new(9),
        slot: U32::new(index as u32),
        extent: U32::new(3),
        form: U32::new(5),
        tier,
        reserved: Zero::BYTES,
    };
    let answer = |reservation, staging_offset, answer| Reserved {
        reservation: ReservationId(U64::new(reservation)),
        staging_offset: U64::new(staging_offset),
        answer,
        reserved: Zero::BYTES,
    };
    Parts {
        hashes: [1, 2, 3].map(|byte| BlockHash([byte; 32])).to_vec(),
        depth: 7,
        ids: std::array::from_fn(|index| index as u8),
        numbers: [11, 12, 13, 14, 15, 16],
        name: "täst".to_owned(),
        json: "{\"version\":1}\n".to_owned(),
        miss: Some(MissReason::Provenance),
        accept: AcceptId::AtLeast(FormMapId::KC4VT4),
        manifest: Manifest {
            weights: WeightsId([7; 32]),
            architecture: "llama".to_owned(),
            dtype: "bf16".to_owned(),
            block_tokens: 64,
            groups: vec![
                LayerGroup { kind: GroupKind::Full, layers: vec![0, 2], kv_heads: 3, head_dim: 64 },
                LayerGroup { kind: GroupKind::Window { tokens: 512 }, layers: vec![1], kv_heads: 1, head_dim: 32 },
                LayerGroup {
                    kind: GroupKind::Recurrent { snapshot_bytes: 1 << 33 },
                    layers: vec![],
                    kv_heads: 0,
                    head_dim: 0,
                },
                LayerGroup { kind: GroupKind::Latent { width: 576 }, layers: vec![3], kv_heads: 1, head_dim: 576 },
                LayerGroup {
                    kind: GroupKind::Side { name: "indexer".to_owned() },
                    layers: vec![4],
                    kv_heads: 1,
                    head_dim: 8,
                },
            ],
            head_slice: HeadSlice { tensor_parallel: (1, 2), pipeline: (0, 1) },
            rope: RopeIdentity { dimensions: 64, base_bits: 0x47c3_5000, scaling: "yarn".to_owned() },
            adapter: String::new(),
            numerics: "test".to_owned(),
        },
        form: "kc4vt4:k8=1".parse().unwrap(),
        leases: [number(0), number(1)].map(LeaseId).to_vec(),
        reservations: [number(2), number(3), number(4)].map(ReservationId).to_vec(),
        tiers: vec![TierCode::Device, TierCode::Host, TierCode::Disk, TierCode::Remote],
        commits: vec![CommitCode::Inserted, CommitCode::Present, CommitCode::FailedCheck, CommitCode::Unknown],
        hits: vec![hit(1, TierCode::Host), hit(2, TierCode::Disk)],
        answers: vec![
            answer(77, 8192, ReserveCode::Reserved),
            answer(0, 0, ReserveCode::Present),
            answer(0, 0, ReserveCode::PendingElsewhere),
            answer(0, 0, ReserveCode::Full),
        ],
    }
}

impl Parts {
    fn number(&self, index: usize) -> u32 {
        self.numbers[index] as u32
    }

    fn key_parts(&self) -> KeyParts {
        KeyParts {
            namespace: Namespace(self.ids),
            provenance: Provenance(self.numbers[0]),
            class: ClassId(self.number(1)),
            group: GroupId(self.number(2)),
            form: FormMapId(self.number(3)),
        }
    }

    fn run(&self) -> Run<'_> {
        let parent = (self.depth > 0).then_some(BlockHash(self.ids));
        Run::new(self.depth, parent, &self.hashes).unwrap()
    }

    fn acquire(&self) -> Acquire<'_> {
        Acquire { parts: self.key_parts(), accept: self.accept, run: self.run() }
    }

    fn lookup(&self) -> Lookup<'_> {
        Lookup { parts: self.key_parts(), accept: self.accept, hashes: Batch::new(&self.hashes).unwrap() }
    }

    fn shape(&self) -> BlockShape {
        let group = &self.manifest.groups[0];
        let layers = group.layers.len() as u32;
        let form = self.form.in_model(layers).unwrap_or(Form::Raw16);
        let (kv_heads, head_dim, block_tokens) = (group.kv_heads, group.head_dim, self.manifest.block_tokens);
        BlockShape { layers, kv_heads, head_dim, block_tokens, form }
    }

    /// A request of every kind, both of `Explain`.
    pub fn requests(&self) -> Vec<Request<'_>> {
        let (class, extent) = (ClassId(self.number(0)), self.number(1));
        let name = Text::new(&self.name).unwrap();
        let (version_min, version_max) = (self.numbers[0] as u16, self.numbers[1] as u16);
        vec![
            Request::Hello(Hello { version_min, version_max, reserved: Zero::BYTES, client: name }),
            Request::OpenNamespace(Box::new(OpenNamespace {
                tenant: TenantId(self.ids),
                manifest: self.manifest.clone(),
                group: GroupId(0),
                shape: self.shape(),
            })),
            Request::MapExtent(MapExtent { class, extent }),
            Request::Lookup(self.lookup()),
            Request::Acquire(self.acquire()),
            Request::Release(Release { leases: Batch::new(&self.leases).unwrap() }),
            Request::Reserve(Reserve {
                parts: self.key_parts(),
                lineage: Lineage(FormMapId(self.number(4))),
                run: self.run(),
            }),
            Request::Commit(Commit { reservations: Batch::new(&self.reservations).unwrap() }),
            Request::Abort(Abort { reservations: Batch::new(&self.reservations).unwrap() }),
            Request::Await(Await { parts: self.key_parts(), hash: BlockHash(self.ids) }),
            Request::Prefetch(self.acquire()),
            Request::Pin(Pin {
                parts: self.key_parts(),
                accept: AcceptId::Exact,
                ttl_ms: self.numbers[5],
                run: self.run(),
            }),
            Request::Unpin(self.lookup()),
            Request::DeleteNamespace(DeleteNamespace { namespace: Namespace(self.ids) }),
            Request::DeleteTenant(DeleteTenant { tenant: TenantId(self.ids) }),
            Request::Stats(Empty),
            Request::Explain(Explain::Request(name)),
            Request::Explain(Explain::Block { parts: self.key_parts(), hash: BlockHash(self.ids) }),
            Request::Drain(Empty),
            Request::Report(Report {
                class,
                slot: SlotIndex(extent),
                generation: Generation(self.numbers[5]),
                reason: self.miss.unwrap_or(MissReason::LeaseLost),
            }),
            Request::Tag(Tag { request: name }),
            Request::Forgo(Forgo { parts: self.key_parts(), run: self.run() }),
            Request::Stage(Stage { least_bytes: self.numbers[3] }),
        ]
    }

    /// A reply of every kind.
    pub fn replies(&self) -> Vec<Reply<'_>> {
        let (one, two) = (self.number(0), self.number(1));
        let pages = |index: usize| 4096 * (self.numbers[index] % (1 << 20));
        let (words_offset, words_bytes) = (pages(0), pages(1));
        let slots_offset = words_offset + words_bytes + pages(2);
        vec![
            Reply::Hello(HelloReply {
                version: self.numbers[2] as u16,
                reserved: Zero::BYTES,
                default_deadline_ms: one,
                daemon_id: self.ids[..16].try_into().unwrap(),
                session: self.numbers[3],
                staging_bytes: self.numbers[4],
                reservations_max: two,
                lease_ttl_ms: self.number(5),
            }),
            Reply::OpenNamespace(OpenNamespaceReply {
                namespace: Namespace(self.ids),
                class: ClassId(one),
                extents: two,
                slot_bytes: self.numbers[2],
            }),
            Reply::MapExtent(MapExtentReply {
                bytes: slots_offset + pages(3),
                words_offset,
                words_bytes,
                slots_offset,
                first_slot: SlotIndex(one >> 1),
                slots: (words_bytes / 8) as u32,
            }),
            Reply::Lookup(LookupReply { miss: self.miss, tiers: Batch::new(&self.tiers).unwrap() }),
            Reply::Acquire(AcquireReply { miss: self.miss, hits: Batch::new(&self.hits).unwrap() }),
            Reply::Release(ReleaseReply { released: one, unknown: two }),
            Reply::Reserve(ReserveReply { answers: Batch::new(&self.answers).unwrap() }),
            Reply::Commit(CommitReply { answers: Batch::new(&self.commits).unwrap() }),
            Reply::Abort(AbortReply { aborted: one, unknown: two }),
            Reply::Await(AwaitReply { miss: self.miss }),
            Reply::Prefetch(PrefetchReply { accepted: one }),
            Reply::Pin(PinReply { pinned: one }),
            Reply::Unpin(UnpinReply { unpinned: one }),
            Reply::DeleteNamespace(Empty),
            Reply::DeleteTenant(DeleteTenantReply { namespaces: two }),
            Reply::Stats(Json(&self.json)),
            Reply::Explain(Json(&self.json)),
            Reply::Drain(Empty),
            Reply::Report(Empty),
            Reply::Tag(Empty),
            Reply::Forgo(Empty),
            Reply::Stage(StageReply { bytes: self.numbers[4] }),
        ]
    }

    /// The frames of all of them, and of a refusal. Request ids count from 1; requests have a deadline of 250 ms.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for request in self.requests() {
            let mut frame = Vec::new();
            request.encode_frame(frames.len() as u64 + 1, 250, &mut frame).unwrap();
            frames.push(frame);
        }
        for reply in self.replies() {
            let mut frame = Vec::new();
            reply.encode_frame(frames.len() as u64 + 1, &mut frame).unwrap();
            frames.push(frame);
        }
        let mut frame = Vec::new();
        Refusal::new(Status::Full, &self.name).encode_frame(7, frames.len() as u64 + 1, &mut frame);
        frames.push(frame);
        frames
    }
}
