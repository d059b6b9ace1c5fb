//! The stored forms in SIMD: [`Simd`] gives the bytes of `cache_core::codec::Scalar`, only faster.
//!
//! # Safety
//! Every safe method here checks lengths with the reference's own `check` before a kernel turns slices into pointers, and
//! runs only an instruction set that [`Simd::new`] found on this processor.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod extremes;
#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "rows index several arrays at once; plain loops unroll")]
mod i8h;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "rows index several arrays at once; plain loops unroll")]
mod rows4;
#[cfg(target_arch = "x86_64")]
mod sx12;

pub mod bench;
pub mod bench_attention;

use cache_core::codec::sx12::Window;
use cache_core::codec::{Codec, Damaged, Grid, Scalar, StaysRaw, i8h as i8h_reference, kc4vt4, sx12 as sx12_reference};
use cache_core::payload::Side;

use super::isa::Isa;

/// Encoders and decoders in one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Simd {
    isa: Isa,
}

impl Simd {
    /// The codecs in `isa`. Panics when this processor does not have it.
    pub fn new(isa: Isa) -> Simd {
        assert!(isa <= Isa::detect(), "this processor has no {}", isa.name());
        Simd { isa }
    }

    /// The codecs in the best instruction set of this processor.
    pub fn detect() -> Simd {
        Simd::new(Isa::detect())
    }

    /// Its instruction set.
    pub fn isa(self) -> Isa {
        self.isa
    }
}

/// Runs a kernel in the codec's set, or `$scalar`.
macro_rules! run {
    ($self:expr, $kernel:expr, $scalar:expr) => {
        match $self.isa {
            // SAFETY: `Simd::new` found the set; lengths were checked by the caller, as the kernel's module states.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { <lanes::Avx2 as lanes::Lanes>::run($kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { <lanes::Avx512 as lanes::Lanes>::run($kernel) },
            _ => $scalar,
        }
    };
}

/// The reference names a value that is not finite before a header out of range, wherever they are.
fn settle(outcome: Result<(), StaysRaw>, values: &[u16]) -> Result<(), StaysRaw> {
    if outcome == Err(StaysRaw::HeaderRange) && values.iter().any(|value| value & 0x7f80 == 0x7f80) {
        return Err(StaysRaw::NonFinite);
    }
    outcome
}

impl Codec for Simd {
    fn encode_sx12(&self, values: &[u16], codes: &mut [u8], escapes: &mut [u8]) -> Result<Window, StaysRaw> {
        sx12_reference::check(values.len(), codes.len());
        match self.isa {
            // SAFETY: `Simd::new` found the set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { sx12::encode_avx2(values, codes, escapes) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { sx12::encode_avx512(values, codes, escapes) },
            _ => Scalar.encode_sx12(values, codes, escapes),
        }
    }

    fn decode_sx12(&self, window: Window, codes: &[u8], escapes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
        sx12_reference::check(values.len(), codes.len());
        sx12_reference::check_window(window, escapes)?;
        match self.isa {
            // SAFETY: `Simd::new` found the set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { sx12::decode_avx2(window, codes, escapes, values) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { sx12::decode_avx512(window, codes, escapes, values) },
            _ => Scalar.decode_sx12(window, codes, escapes, values),
        }
    }

    fn encode_i8h(
        &self,
        side: Side,
        grid: Grid,
        values: &[u16],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), StaysRaw> {
        i8h_reference::check(side, grid, values.len(), scales.len(), codes.len());
        let outcome = run!(
            self,
            i8h::Encode { side, grid, values, scales, codes },
            Scalar.encode_i8h(side, grid, values, scales, codes)
        );
        settle(outcome, values)
    }

    fn decode_i8h(
        &self,
        side: Side,
        grid: Grid,
        scales: &[u8],
        codes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        i8h_reference::check(side, grid, values.len(), scales.len(), codes.len());
        i8h_reference::check_scales(scales)?;
        run!(
            self,
            i8h::Decode { side, grid, scales, codes, values },
            return Scalar.decode_i8h(side, grid, scales, codes, values)
        );
        Ok(())
    }

    fn encode_rows4(&self, grid: Grid, values: &[u16], header: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
        kc4vt4::check(grid, values.len(), header.len(), codes.len());
        let outcome =
            run!(self, rows4::Encode { grid, values, header, codes }, Scalar.encode_rows4(grid, values, header, codes));
        settle(outcome, values)
    }

    fn decode_rows4(&self, grid: Grid, header: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
        kc4vt4::check(grid, values.len(), header.len(), codes.len());
        kc4vt4::check_header(header)?;
        run!(
            self,
            rows4::Decode { grid, header, codes, values },
            return Scalar.decode_rows4(grid, header, codes, values)
        );
        Ok(())
    }
}
