//! Encoding as an operation of the device: the bytes and verdicts of the scalar reference, whatever the instruction set, the
//! team and the place of the exact section.

mod common;

use std::sync::Arc;

use cache_core::buffer::Buffer;
use cache_core::codec::image::{LayerMut, encode_layer};
use cache_core::codec::suite::{KINDS, Random, fill};
use cache_core::codec::{Codec, Grid, Scalar, StaysRaw, i8h};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane, Side};
use common::{Extent, get, open, put};
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{Closed, ClosedPlace, Codes, Encode, FITS, STAYS_RAW};
use gpu_tier::attention::{Attention, Element, Geometry, SectionPlace};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::{CpuDevice, Link};
use gpu_tier::device::{Device, DeviceBuffer, HostRange, Stream};

/// The forms that attention reads, and the two ways to mix their sides.
const ALL_CLOSED: [Closed; 4] = [
    Closed::I8H,
    Closed::KC4VT4,
    Closed { keys: Codes::Rows4, values: Codes::Int8 },
    Closed { keys: Codes::Int8, values: Codes::Rows4 },
];

/// What no encoder has written.
const BLANK: u8 = 0xa5;
/// Bytes between two sections.
const GAP: u64 = 64;

fn geometry(kv_heads: u32, head_dim: u32, block_tokens: u32) -> Geometry {
    Geometry { heads: 2 * kv_heads, kv_heads, head_dim, block_tokens, element: Element::Bf16, scale: 1.0 }
}

/// The planes of one layer as the scalar reference writes them, part by part in the order of `docs/forms.md`.
fn reference(geometry: &Geometry, closed: Closed, exact: &[u16]) -> Result<[Vec<u8>; 3], StaysRaw> {
    let mut planes = [vec![], vec![], vec![]];
    let per_side = (geometry.head_dim * geometry.block_tokens) as usize;
    for (i, values) in exact.chunks_exact(per_side).enumerate() {
        let side = Side::ALL[i % 2];
        let grid = Grid::new(side, geometry.head_dim, geometry.block_tokens);
        let form = if side == Side::Key { closed.keys } else { closed.values };
        let (mut scales, mut codes);
        if form == Codes::Int8 {
            (scales, codes) = (vec![0; 2 * i8h::tokens(side, grid)], vec![0; per_side]);
            Scalar.encode_i8h(side, grid, values, &mut scales, &mut codes)?;
        } else {
            (scales, codes) = (vec![0; 4 * grid.rows], vec![0; per_side / 2]);
            Scalar.encode_rows4(grid, values, &mut scales, &mut codes)?;
        }
        let plane = if side == Side::Key && form == Codes::Rows4 { Plane::Header } else { Plane::Scale };
        planes[plane as usize].extend(scales);
        planes[Plane::Code as usize].extend(codes);
    }
    Ok(planes)
}

/// Exact sections of several blocks: each side of each head of its own kind. Block 0 always fits.
fn sections(geometry: &Geometry, blocks: usize, random: &mut Random) -> Vec<Vec<u16>> {
    let section = |block| {
        let mut values = vec![0; geometry.section_bytes() as usize / 2];
        for (i, side) in values.chunks_exact_mut((geometry.head_dim * geometry.block_tokens) as usize).enumerate() {
            let grid = Grid::new(Side::ALL[i % 2], geometry.head_dim, geometry.block_tokens);
            // Kinds 1, 2 and 9 hardly ever fit: enough of them, but not in every section.
            let awkward = [1, 2, 9].contains(&((block + i) % KINDS)) && block % 4 != 3;
            let kind = if block == 0 || awkward { 0 } else { (block + i) % KINDS };
            fill(random, kind, grid, side);
        }
        values
    };
    (0..blocks).map(section).collect()
}

fn bytes(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A device with exact sections and blank room for closed ones.
struct Rig {
    device: CpuDevice,
    geometry: Geometry,
    closed: Closed,
    jobs: Vec<Encode>,
    /// All closed sections and verdicts, with gaps.
    arena: DeviceBuffer,
    _exact: Vec<DeviceBuffer>,
}

impl Rig {
    fn new(device: CpuDevice, geometry: Geometry, closed: Closed, exact: &[Vec<u16>]) -> Rig {
        let exact: Vec<DeviceBuffer> = exact.iter().map(|values| put(&device, &bytes(values))).collect();
        let sizes = plane_bytes(&geometry, closed);
        let each = sizes.iter().sum::<u64>() + 4 * GAP + 4;
        let arena = put(&device, &vec![BLANK; (each * exact.len() as u64) as usize]);
        let jobs = exact.iter().enumerate().map(|(block, exact)| {
            let mut at = block as u64 * each;
            let mut take = |bytes: u64| {
                let range = arena.range().slice(at, bytes);
                at += bytes + GAP;
                range
            };
            let [header, scale, codes] = sizes.map(|bytes| (bytes > 0).then(|| SectionPlace::Device(take(bytes))));
            let into = ClosedPlace { header, scale: scale.unwrap(), codes: codes.unwrap() };
            Encode { exact: SectionPlace::Device(exact.range()), into, verdict: take(4) }
        });
        let jobs = jobs.collect();
        Rig { device, geometry, closed, jobs, arena, _exact: exact }
    }

    fn encode(&self) -> Result<(), DeviceError> {
        self.device.encode(Stream::Compute, &self.geometry, self.closed, &self.jobs)
    }

    /// Verdict and planes of a job.
    fn outcome(&self, job: &Encode) -> (u32, [Vec<u8>; 3]) {
        let read = |place: Option<SectionPlace>| match place {
            Some(SectionPlace::Device(range)) => get(&self.device, range),
            _ => Vec::new(),
        };
        let planes = [read(job.into.header), read(Some(job.into.scale)), read(Some(job.into.codes))];
        (u32::from_ne_bytes(get(&self.device, job.verdict).try_into().unwrap()), planes)
    }

    /// Compares every job with the reference. The number of sections that fit, or what differs.
    fn compare(&self, exact: &[Vec<u16>]) -> Result<usize, String> {
        let mut fit = 0;
        for (block, (job, exact)) in self.jobs.iter().zip(exact).enumerate() {
            let (verdict, planes) = self.outcome(job);
            match reference(&self.geometry, self.closed, exact) {
                Ok(expected) if verdict == FITS && planes == expected => fit += 1,
                Err(_) if verdict == STAYS_RAW => {}
                expected => return Err(format!("block {block}: verdict {verdict}, expected {:?}", expected.err())),
            }
        }
        let arena = get(&self.device, self.arena.range());
        let mut written = vec![false; arena.len()];
        for job in &self.jobs {
            let places = [job.into.header, Some(job.into.scale), Some(job.into.codes)].into_iter().flatten();
            for place in places.chain([SectionPlace::Device(job.verdict)]) {
                let SectionPlace::Device(range) = place else { continue };
                written[range.offset as usize..][..range.bytes as usize].fill(true);
            }
        }
        match arena.iter().zip(written).position(|(byte, written)| !written && *byte != BLANK) {
            Some(at) => Err(format!("byte {at} between the sections was written")),
            None => Ok(fit),
        }
    }
}

/// Bytes of one layer of each plane.
fn plane_bytes(geometry: &Geometry, closed: Closed) -> [u64; 3] {
    let zeros = vec![0; geometry.section_bytes() as usize / 2];
    reference(geometry, closed, &zeros).unwrap().map(|plane| plane.len() as u64)
}

#[test]
fn every_set_and_team_gives_the_bytes_of_the_reference() {
    let mut random = Random(0x0e4c_0de5);
    let (mut fit, mut refused) = (0, 0);
    for (kv_heads, head_dim, block_tokens) in
        [(3, 64, 64), (1, 64, 128), (2, 128, 64), (1, 128, 256), (8, 16, 64), (2, 80, 128)]
    {
        let geometry = geometry(kv_heads, head_dim, block_tokens);
        let exact = sections(&geometry, 9, &mut random);
        for closed in ALL_CLOSED {
            for isa in Isa::available() {
                for workers in [1, 3] {
                    let device = open(isa, workers, Link::InPlace, 64 << 20);
                    let rig = Rig::new(device, geometry, closed, &exact);
                    rig.encode().unwrap();
                    let found = rig.compare(&exact);
                    let found = found.unwrap_or_else(|problem| panic!("{geometry:?} {closed:?} {isa:?}: {problem}"));
                    fit += found;
                    refused += exact.len() - found;
                }
            }
        }
    }
    println!("{fit} sections fit, {refused} do not");
    assert!(fit > 0 && refused > 0);
}

#[test]
fn sections_are_those_of_a_slot_image() {
    let geometry = geometry(3, 64, 128);
    let exact = sections(&geometry, 1, &mut Random(7)).remove(0);
    let mut raw = Buffer::zeroed(geometry.section_bytes() as usize);
    raw.as_mut_slice().copy_from_slice(&bytes(&exact));
    for form in ["i8h", "kc4vt4", "kc4vt4:k8=0", "kc4vt4:v8=0"].map(|name| name.parse::<Form>().unwrap()) {
        let shape = BlockShape { layers: 1, kv_heads: 3, head_dim: 64, block_tokens: 128, form };
        let mut planes = Plane::ALL.map(|plane| vec![0; shape.layer_bytes(plane, 0) as usize]);
        let [header, scale, codes] = &mut planes;
        encode_layer(&Scalar, &shape, 0, raw.as_slice(), LayerMut { header, scale, codes }).unwrap();
        assert_eq!(reference(&geometry, Closed::of(form, 0).unwrap(), &exact), Ok(planes), "{}", form.name());
    }
}

/// The verdict is of the whole section, wherever the value is that does not fit, and is written anew each time.
#[test]
fn a_section_that_does_not_fit_is_told_and_its_neighbours_are_whole() {
    let geometry = geometry(3, 64, 64);
    let mut random = Random(11);
    let exact: Vec<Vec<u16>> = (0..4).map(|_| sections(&geometry, 1, &mut random).remove(0)).collect();
    let per_side = 64 * 64;
    for closed in ALL_CLOSED {
        for (value, at) in
            [(0x7f80, 0), (0xffc1, 6 * per_side - 1), (0x7f7f, 3 * per_side + 70), (0xff7f, 2 * per_side)]
        {
            let mut planted = exact.clone();
            planted[2][at] = value;
            let rig = Rig::new(open(Isa::detect(), 2, Link::InPlace, 64 << 20), geometry, closed, &planted);
            rig.encode().unwrap();
            assert_eq!(rig.compare(&planted), Ok(3), "{closed:?} {value:#x} at {at}");
            assert_eq!(rig.outcome(&rig.jobs[2]).0, STAYS_RAW);
            let SectionPlace::Device(range) = rig.jobs[2].exact else { unreachable!("put on the device") };
            rig.device.upload(Stream::Compute, &bytes(&exact[2]), range).unwrap();
            rig.encode().unwrap();
            assert_eq!(rig.compare(&exact), Ok(4), "{closed:?}");
        }
    }
}

#[test]
fn exact_sections_are_read_from_the_host_arena_in_place_only() {
    let geometry = geometry(2, 64, 64);
    let exact = sections(&geometry, 5, &mut Random(12));
    let section = geometry.section_bytes();
    for link in [Link::InPlace, Link::Strict { bytes_per_second: None }] {
        let mut rig = Rig::new(open(Isa::detect(), 2, link, 64 << 20), geometry, Closed::KC4VT4, &exact);
        let extent = Arc::new(Extent::new(1 << 20, link == Link::InPlace));
        let id = rig.device.register(extent.clone()).unwrap();
        for (i, (job, values)) in rig.jobs.iter_mut().zip(&exact).enumerate() {
            extent.write(i * section as usize, &bytes(values));
            job.exact = SectionPlace::Host(HostRange { extent: id, offset: i as u64 * section, bytes: section });
        }
        if link == Link::InPlace {
            rig.encode().unwrap();
            assert!(rig.compare(&exact).unwrap() > 0);
        } else {
            assert_eq!(rig.encode(), Err(DeviceError::NotResident { section: 0 }));
        }
    }
}

#[test]
fn wrong_jobs_are_refused_and_write_nothing() {
    let geometry = geometry(2, 64, 64);
    let exact = sections(&geometry, 2, &mut Random(13));
    let rig = Rig::new(open(Isa::detect(), 1, Link::InPlace, 64 << 20), geometry, Closed::KC4VT4, &exact);
    let [first, job] = rig.jobs[..] else { unreachable!("two jobs") };
    let into = job.into;
    let shorter = |place: SectionPlace| match place {
        SectionPlace::Device(range) => SectionPlace::Device(range.slice(0, range.bytes - 2)),
        host => host,
    };
    let odd = |place: SectionPlace| match place {
        SectionPlace::Device(mut range) => {
            range.offset += 1;
            SectionPlace::Device(range)
        }
        host => host,
    };
    let extent = Arc::new(Extent::new(1 << 20, true));
    let id = rig.device.register(extent).unwrap();
    let in_host = SectionPlace::Host(HostRange { extent: id, offset: 0, bytes: 2 * 64 * 64 });
    let jobs = [
        Encode { exact: shorter(job.exact), ..job },
        Encode { exact: odd(job.exact), ..job },
        Encode { exact: into.codes, ..job },
        Encode { exact: first.exact, ..job },
        Encode { into: ClosedPlace { header: None, ..into }, ..job },
        Encode { into: ClosedPlace { header: into.header.map(shorter), ..into }, ..job },
        Encode { into: ClosedPlace { scale: into.codes, ..into }, ..job },
        Encode { into: ClosedPlace { scale: odd(into.scale), ..into }, ..job },
        Encode { into: ClosedPlace { codes: shorter(into.codes), ..into }, ..job },
        Encode { into: ClosedPlace { codes: in_host, ..into }, ..job },
        Encode { into: first.into, ..job },
        Encode { verdict: first.verdict, ..job },
        Encode { verdict: job.verdict.slice(0, 2), ..job },
        Encode { verdict: rig.arena.range().slice(job.verdict.offset + 2, 4), ..job },
    ];
    let refused = |geometry: &Geometry, stream, closed, jobs: &[Encode]| {
        matches!(rig.device.encode(stream, geometry, closed, jobs), Err(DeviceError::Shape { .. }))
    };
    for wrong in jobs {
        assert!(refused(&geometry, Stream::Compute, Closed::KC4VT4, &[first, wrong]), "{wrong:?}");
    }
    let both = [first, job];
    assert!(refused(&geometry, Stream::CopyIn, Closed::KC4VT4, &both));
    assert!(refused(&geometry, Stream::Compute, Closed::I8H, &both));
    assert!(refused(&Geometry { block_tokens: 32, ..geometry }, Stream::Compute, Closed::KC4VT4, &[]));
    assert!(refused(&Geometry { element: Element::F32, ..geometry }, Stream::Compute, Closed::KC4VT4, &[]));
    assert!(refused(&Geometry { kv_heads: 4, ..geometry }, Stream::Compute, Closed::KC4VT4, &both));
    let mut far = job;
    far.verdict.offset += 1 << 30;
    let found = rig.device.encode(Stream::Compute, &geometry, Closed::KC4VT4, &[first, far]);
    assert_eq!(found, Err(DeviceError::Range { range: far.verdict }));
    assert!(get(&rig.device, rig.arena.range()).iter().all(|byte| *byte == BLANK), "a refused launch has written");
    rig.encode().unwrap();
}

/// The comparison must catch what a fault in the kernel looks like.
#[test]
fn the_comparison_catches_planted_faults() {
    let geometry = geometry(2, 64, 64);
    let exact = sections(&geometry, 3, &mut Random(14));
    let per_side = 64 * 64;
    let plant = |fault: &dyn Fn(&mut Vec<u16>)| {
        let mut planted = exact.clone();
        fault(&mut planted[0]);
        let rig = Rig::new(open(Isa::detect(), 1, Link::InPlace, 64 << 20), geometry, Closed::KC4VT4, &planted);
        rig.encode().unwrap();
        rig.compare(&exact)
    };
    assert!(plant(&|_| {}).is_ok());
    let heads: &dyn Fn(&mut Vec<u16>) = &|values| values.rotate_left(2 * per_side);
    let sides: &dyn Fn(&mut Vec<u16>) = &|values| values.rotate_left(per_side);
    let tokens: &dyn Fn(&mut Vec<u16>) = &|values| values.swap(3, 4);
    let lost: &dyn Fn(&mut Vec<u16>) = &|values| values[9] = 0x7f80;
    for (name, fault) in [("heads", heads), ("sides", sides), ("tokens", tokens), ("verdict", lost)] {
        assert!(plant(fault).is_err(), "{name}");
    }
    let rig = Rig::new(open(Isa::detect(), 1, Link::InPlace, 64 << 20), geometry, Closed::KC4VT4, &exact);
    rig.encode().unwrap();
    rig.device.upload(Stream::Compute, &[0], rig.arena.range().slice(rig.jobs[1].verdict.offset + 4, 1)).unwrap();
    assert!(rig.compare(&exact).is_err(), "a byte between the sections");
}
