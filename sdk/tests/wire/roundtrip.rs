//! Any message comes back as it was sent, and nothing less or more is one.

use cache_core::form::{Form, FormMapId};
use cache_core::hash::{BlockHash, WeightsId};
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};
use cache_core::miss::MissReason;
use kvtier_sdk::wire::*;
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::byteorder::little_endian::{U32, U64};

use crate::header;
use crate::samples::Parts;

fn group() -> impl Strategy<Value = LayerGroup> {
    let kind = prop_oneof![
        Just(GroupKind::Full),
        any::<u32>().prop_map(|tokens| GroupKind::Window { tokens }),
        any::<u64>().prop_map(|snapshot_bytes| GroupKind::Recurrent { snapshot_bytes }),
        any::<u32>().prop_map(|width| GroupKind::Latent { width }),
        ".{0,20}".prop_map(|name| GroupKind::Side { name }),
    ];
    (kind, vec(any::<u32>(), 1..40), 1u32..16, 1u32..16).prop_map(|(kind, layers, kv_heads, eights)| LayerGroup {
        kind,
        layers,
        kv_heads,
        head_dim: 8 * eights,
    })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let ranks = any::<(u32, u32, u32, u32)>()
        .prop_map(|(rank, size, stage, stages)| HeadSlice { tensor_parallel: (rank, size), pipeline: (stage, stages) });
    (
        any::<[u8; 32]>(),
        [".{0,20}", ".{0,9}", ".{0,9}", ".{0,9}", ".{0,9}"],
        1u32..16,
        vec(group(), 1..4),
        ranks,
        any::<(u32, u32)>(),
    )
        .prop_map(
            |(weights, [architecture, dtype, scaling, adapter, numerics], eights, groups, head_slice, rope)| {
                let rope = RopeIdentity { dimensions: rope.0, base_bits: rope.1, scaling };
                let weights = WeightsId(weights);
                let block_tokens = 8 * eights;
                Manifest { weights, architecture, dtype, block_tokens, groups, head_slice, rope, adapter, numerics }
            },
        )
}

fn hit() -> impl Strategy<Value = Hit> {
    (any::<[u64; 4]>(), any::<[u32; 3]>(), tier()).prop_map(|(long, short, tier)| Hit {
        lease: LeaseId(U64::new(long[0])),
        offset: U64::new(long[1]),
        generation: U64::new(long[2]),
        provenance: U64::new(long[3]),
        slot: U32::new(short[0]),
        extent: U32::new(short[1]),
        form: U32::new(short[2]),
        tier,
        reserved: Zero::BYTES,
    })
}

fn tier() -> impl Strategy<Value = TierCode> {
    prop::sample::select(vec![TierCode::Device, TierCode::Host, TierCode::Disk, TierCode::Remote])
}

fn answer() -> impl Strategy<Value = Reserved> {
    let codes = vec![ReserveCode::Reserved, ReserveCode::Present, ReserveCode::PendingElsewhere, ReserveCode::Full];
    (any::<(u64, u64)>(), prop::sample::select(codes)).prop_map(|((reservation, offset), answer)| Reserved {
        reservation: ReservationId(U64::new(reservation)),
        staging_offset: U64::new(offset),
        answer,
        reserved: Zero::BYTES,
    })
}

fn parts() -> impl Strategy<Value = Parts> {
    let forms = ["raw16", "raw32", "sx12", "i8h", "kc4vt4", "kc4vt4:k8=0", "kc4vt4:k8=all", "kc4vt4:v8=0-1+3"];
    let forms: Vec<Form> = forms.iter().map(|name| name.parse().unwrap()).collect();
    let commits = vec![CommitCode::Inserted, CommitCode::Present, CommitCode::FailedCheck, CommitCode::Unknown];
    let accept = prop::option::of(1u32..).prop_map(|form| match form {
        None => AcceptId::Exact,
        Some(form) => AcceptId::AtLeast(FormMapId(form)),
    });
    let lists = (
        vec(any::<[u8; 32]>().prop_map(BlockHash), 0..40),
        vec(any::<u64>(), 0..40),
        vec(tier(), 0..40),
        vec(prop::sample::select(commits), 0..40),
        vec(hit(), 0..20),
        vec(answer(), 0..20),
    );
    let names = ("[^\\p{Cc}]{0,16}", ".{0,100}", prop::option::of(prop::sample::select(MissReason::ALL.to_vec())));
    let depth = prop_oneof![Just(0), 0..u32::MAX - 40];
    (lists, names, accept, manifest(), prop::sample::select(forms), depth, any::<([u8; 32], [u64; 6])>()).prop_map(
        |((hashes, ids, tiers, commits, hits, answers), (name, json, miss), accept, manifest, form, depth, own)| {
            Parts {
                hashes,
                depth,
                ids: own.0,
                numbers: own.1,
                name,
                json,
                miss,
                accept,
                manifest,
                form,
                leases: ids.iter().map(|id| LeaseId(U64::new(*id))).collect(),
                reservations: ids.iter().map(|id| ReservationId(U64::new(*id))).collect(),
                tiers,
                commits,
                hits,
                answers,
            }
        },
    )
}

/// JSON bodies are text that may end anywhere.
fn may_end_anywhere(header: &FrameHeader) -> bool {
    header.is_reply && [Kind::Stats.number(), Kind::Explain.number()].contains(&header.kind)
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_read_and_nothing_less_or_more(parts in parts()) {
        let (requests, replies, frames) = (parts.requests(), parts.replies(), parts.frames());
        for (frame, request) in frames.iter().zip(&requests) {
            let (header, body) = header(frame);
            prop_assert_eq!(&Request::parse(&header, body).unwrap(), request);
        }
        for (frame, reply) in frames[requests.len()..].iter().zip(&replies) {
            let (header, body) = header(frame);
            prop_assert_eq!(&Reply::parse(&header, body).unwrap().unwrap(), reply);
        }
        for frame in &frames[..frames.len() - 1] {
            let (header, body) = header(frame);
            let is_read = |body: &[u8]| match header.is_reply {
                true => Reply::parse(&header, body).is_ok(),
                false => Request::parse(&header, body).is_ok(),
            };
            if !may_end_anywhere(&header) {
                // Every end of a short body, some of a long one.
                for end in (0..body.len()).step_by(1 + body.len() / 64) {
                    prop_assert!(!is_read(&body[..end]), "{:?} cut at {}", header, end);
                }
                prop_assert!(!is_read(&[body, &[0]].concat()), "{:?} with a byte more", header);
            }
        }
    }
}
