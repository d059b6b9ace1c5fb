//! Blocks that the `cuda` device encodes straight into pinned host memory: the bytes of an encoding on the device, over the link once.

#[path = "cuda_double/contract.rs"]
#[allow(dead_code, reason = "tests of the device use the rest")]
mod contract;
#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of the double use the rest")]
mod double;

use std::sync::Arc;

use cache_core::codec::suite::{Random, fill};
use cache_core::codec::{Grid, i8h};
use cache_core::payload::Side;
use contract::{Arena, fetch, finish};
use double::Double;
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{Closed, ClosedPlace, Codes, Encode, FITS, STAYS_RAW};
use gpu_tier::attention::{Attention, Element, Geometry, SectionPlace};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::{Device, DeviceBuffer, ExtentId, HostRange, Stream};

const GEOMETRY: Geometry =
    Geometry { heads: 4, kv_heads: 2, head_dim: 64, block_tokens: 64, element: Element::Bf16, scale: 1.0 };
const BLOCKS: u64 = 3;
const CLOSED: [Closed; 3] = [Closed::I8H, Closed::KC4VT4, Closed { keys: Codes::Rows4, values: Codes::Int8 }];
const ENCODERS: [&str; 2] = ["kvtier_i8h_encode", "kvtier_kc4vt4_encode"];

fn open() -> CudaDevice {
    let config = CudaConfig { ordinal: 0, budget_bytes: 16 << 20, kernels: KernelSource::Embedded };
    CudaDevice::open(config).unwrap()
}

/// Bytes of a block's header, scale and code sections (`docs/forms.md`).
fn plane_bytes(closed: Closed) -> [u64; 3] {
    let (mut planes, heads) = ([0; 3], u64::from(GEOMETRY.kv_heads));
    for (side, form) in [(Side::Key, closed.keys), (Side::Value, closed.values)] {
        let grid = Grid::new(side, GEOMETRY.head_dim, GEOMETRY.block_tokens);
        let elements = grid.elements() as u64;
        let (scales, codes) = match form {
            Codes::Int8 => (2 * i8h::tokens(side, grid) as u64, elements),
            Codes::Rows4 => (4 * grid.rows as u64, elements / 2),
        };
        planes[usize::from(side == Side::Value || form == Codes::Int8)] += heads * scales;
        planes[2] += heads * codes;
    }
    planes
}

/// The places of a block's sections, one behind the other.
fn places(closed: Closed, block: u64, place: impl Fn(u64, u64) -> SectionPlace) -> ClosedPlace {
    let sizes = plane_bytes(closed);
    let start = block * sizes.iter().sum::<u64>();
    let header = (sizes[0] > 0).then(|| place(start, sizes[0]));
    ClosedPlace {
        header,
        scale: place(start + sizes[0], sizes[1]),
        codes: place(start + sizes[0] + sizes[1], sizes[2]),
    }
}

/// Exact blocks on a device, verdicts, and a pinned extent beside device memory for their closed sections.
struct Rig<'d> {
    device: &'d CudaDevice,
    closed: Closed,
    exact: DeviceBuffer,
    verdicts: DeviceBuffer,
    on_device: DeviceBuffer,
    arena: Arc<Arena>,
    extent: ExtentId,
}

impl Rig<'_> {
    fn new(device: &CudaDevice, closed: Closed) -> Rig<'_> {
        let mut random = Random(31);
        let mut values = vec![0u16; (BLOCKS * GEOMETRY.section_bytes()) as usize / 2];
        let grid = Grid::new(Side::Value, GEOMETRY.head_dim, GEOMETRY.block_tokens);
        values.chunks_exact_mut(grid.elements()).for_each(|side| fill(&mut random, 0, grid, side));
        // The last block has a NaN.
        *values.last_mut().unwrap() = 0x7fc0;
        let exact = device.allocate(2 * values.len() as u64).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        device.upload(Stream::Compute, &bytes, exact.range()).unwrap();
        let stored = BLOCKS * plane_bytes(closed).iter().sum::<u64>();
        let arena = Arena::new(stored.next_multiple_of(4096) as usize);
        let extent = device.register(arena.clone()).unwrap();
        let [verdicts, on_device] = [4 * BLOCKS, stored].map(|bytes| device.allocate(bytes).unwrap());
        Rig { device, closed, exact, verdicts, on_device, arena, extent }
    }

    fn encode(&self, place: impl Fn(u64, u64) -> SectionPlace) -> Result<(), DeviceError> {
        let section = GEOMETRY.section_bytes();
        let job = |block: u64| Encode {
            exact: SectionPlace::Device(self.exact.range().slice(block * section, section)),
            into: places(self.closed, block, &place),
            verdict: self.verdicts.range().slice(4 * block, 4),
        };
        let jobs: Vec<Encode> = (0..BLOCKS).map(job).collect();
        self.device.encode(Stream::Compute, &GEOMETRY, self.closed, &jobs)
    }

    fn host(&self, offset: u64, bytes: u64) -> SectionPlace {
        SectionPlace::Host(HostRange { extent: self.extent, offset, bytes })
    }

    fn verdicts(&self) -> Vec<u32> {
        let bytes = fetch(self.device, Stream::Compute, self.verdicts.range());
        bytes.chunks_exact(4).map(|x| u32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect()
    }
}

/// What encoders have stored, and copies without a launch to go with; with a real driver nothing is counted.
fn counted(double: &Double) -> (u64, u64) {
    if !double.has_counts() {
        return (0, 0);
    }
    let counters = double.counters();
    let stored = ENCODERS.iter().map(|kernel| double.kernel_counts(kernel).global_store_bytes).sum();
    (stored, counters.copies - counters.launches)
}

#[test]
fn a_block_crosses_the_link_once_as_its_stored_bytes() {
    let double = Double::take();
    double.set_jitter_us(50);
    for closed in CLOSED {
        let device = open();
        let rig = Rig::new(&device, closed);
        assert_eq!(device.is_pinned(rig.extent), Some(true));
        rig.encode(|offset, bytes| SectionPlace::Device(rig.on_device.range().slice(offset, bytes))).unwrap();
        let expected = fetch(&device, Stream::Compute, rig.on_device.range());
        assert_eq!((rig.verdicts(), device.traffic().copied_out_bytes), (vec![FITS, FITS, STAYS_RAW], 0));

        let before = counted(&double);
        rig.encode(|offset, bytes| rig.host(offset, bytes)).unwrap();
        finish(&device, Stream::Compute);
        let each = plane_bytes(closed).iter().sum::<u64>();
        // What threads stored, what the device counts, and no copy: tables of a launch for each kernel and for the verdicts go in.
        let stored = if double.has_counts() { BLOCKS * each } else { 0 };
        assert_eq!(counted(&double), (before.0 + stored, before.1));
        assert_eq!(device.traffic().copied_out_bytes, BLOCKS * each);
        let fitting = (2 * each) as usize;
        assert_eq!(rig.arena.read(0, fitting), expected[..fitting], "{closed:?}");
        assert_eq!(rig.verdicts(), [FITS, FITS, STAYS_RAW]);
        drop(rig);
        drop(device);
    }
    double.assert_nothing_left();
}

#[test]
fn host_targets_that_cannot_be_written_are_refused() {
    let Some(double) = Double::take_hooks() else { return };
    let device = open();
    let rig = Rig::new(&device, Closed::KC4VT4);
    let launches = double.counters().launches;
    let refused = |place: &dyn Fn(u64, u64) -> SectionPlace| match rig.encode(place) {
        Err(DeviceError::Shape { problem, .. }) => problem,
        Err(DeviceError::HostRange { .. }) => "range".to_owned(),
        other => panic!("{other:?}"),
    };
    assert!(refused(&|_, bytes| rig.host(0, bytes)).contains("overlap"));
    assert!(refused(&|offset, bytes| rig.host(offset + 8, bytes)).contains("aligned"));
    assert!(refused(&|offset, bytes| rig.host(offset, bytes - 16)).contains("expected"));
    assert_eq!(refused(&|offset, bytes| rig.host(offset + (1 << 20), bytes)), "range");
    let unknown = |offset, bytes| SectionPlace::Host(HostRange { extent: ExtentId(7), offset, bytes });
    assert_eq!(refused(&unknown), "range");
    assert_eq!(double.counters().launches, launches, "a refused launch was made");
    drop(rig);
    drop(device);

    double.refuse_registration();
    let device = open();
    let rig = Rig::new(&device, Closed::KC4VT4);
    let Err(DeviceError::Shape { problem, .. }) = rig.encode(|offset, bytes| rig.host(offset, bytes)) else {
        panic!("a kernel cannot write pageable memory");
    };
    assert!(problem.contains("pageable"), "{problem}");
    assert_eq!(device.traffic().copied_out_bytes, 0, "nothing was written");
    drop(rig);
    drop(device);
    double.assert_nothing_left();
}
