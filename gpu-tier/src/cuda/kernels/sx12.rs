//! Launchers of `kernels/sx12.cu`: codes of each part, then the escapes of each layer; and back.

use super::super::address::DevicePtr;
use super::table::{Table, records};
use super::{Launcher, Parameter};
use crate::error::DeviceError;

pub(super) const ENCODE: &str = "kvtier_sx12_encode";
pub(super) const ESCAPES: &str = "kvtier_sx12_escapes";
pub(super) const DECODE: &str = "kvtier_sx12_decode";

const THREADS: u32 = 128;
const RECORD_BYTES: usize = 64;

/// One side of one KV head of a layer; those of a layer follow each other in memory.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Part {
    /// bf16, at a multiple of 16 bytes.
    pub(in super::super) values: DevicePtr,
    /// 1.5 bytes an element, at a multiple of 16 bytes.
    pub(in super::super) codes: DevicePtr,
    /// The layer's windows.
    pub(in super::super) windows: DevicePtr,
    /// The layer's escape area.
    pub(in super::super) escapes: DevicePtr,
    /// u32, a multiple of 4.
    pub(in super::super) verdict: DevicePtr,
    /// A multiple of 32.
    pub(in super::super) elements: u32,
    /// Which of the layer's parts, and how many it has.
    pub(in super::super) part: u32,
    pub(in super::super) parts: u32,
    /// Bytes of the escape area.
    pub(in super::super) area: u32,
}

fn launch(launcher: Launcher<'_>, name: &'static str, parts: &[Part], outcomes: &[u32]) -> Result<(), DeviceError> {
    for parts in parts.chunks(records(RECORD_BYTES)) {
        let mut table = Table::default();
        for part in parts {
            table.address(part.values).address(part.codes).address(part.windows).address(part.escapes);
            table.address(part.verdict).word(part.elements).word(part.part).word(part.parts).word(part.area).long(0);
        }
        let count = u32::try_from(parts.len()).expect("a table's records");
        let parameters: Vec<Parameter> = outcomes.iter().map(|outcome| Parameter::Word(*outcome)).collect();
        launcher.launch(name, (count, 1), THREADS, table.bytes(), &parameters)?;
    }
    Ok(())
}

/// Encodes all parts of some layers; a verdict becomes `too_many` when the layer's escapes do not fit.
pub(in super::super) fn encode(launcher: Launcher<'_>, parts: &[Part], too_many: u32) -> Result<(), DeviceError> {
    // A layer's escapes follow each other: where a part's begin is known when all have been counted.
    launch(launcher, ENCODE, parts, &[too_many])?;
    launch(launcher, ESCAPES, parts, &[too_many])
}

/// Decodes parts; a verdict becomes `bad_escapes` or `bad_header` for what no encoder writes.
pub(in super::super) fn decode(
    launcher: Launcher<'_>,
    parts: &[Part],
    bad_escapes: u32,
    bad_header: u32,
) -> Result<(), DeviceError> {
    launch(launcher, DECODE, parts, &[bad_escapes, bad_header])
}
