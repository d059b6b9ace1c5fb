//! Launchers of `kernels/i8h.cu`: `kvtier_i8h_encode(parts, non_finite, out_of_range)`, `kvtier_i8h_decode(parts, damaged)`.

use super::Launcher;
use super::grid::{Part, launch};
use crate::error::DeviceError;

pub(super) const ENCODE: &str = "kvtier_i8h_encode";
pub(super) const DECODE: &str = "kvtier_i8h_decode";

/// Encodes parts; a verdict becomes `non_finite` or, if it is less so far, `out_of_range`.
pub(in super::super) fn encode(
    launcher: Launcher<'_>,
    parts: &[Part],
    non_finite: u32,
    out_of_range: u32,
) -> Result<(), DeviceError> {
    launch(launcher, ENCODE, parts, &[non_finite, out_of_range])
}

/// Decodes parts to bf16; a verdict becomes `damaged` for scales that no encoder writes.
pub(in super::super) fn decode(launcher: Launcher<'_>, parts: &[Part], damaged: u32) -> Result<(), DeviceError> {
    launch(launcher, DECODE, parts, &[damaged])
}
