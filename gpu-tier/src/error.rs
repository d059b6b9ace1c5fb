//! What a device can fail with.

use crate::device::{DeviceRange, ExtentId};

/// Errors of a device. Text reads after "failed to".
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// The budget would be exceeded.
    #[error("allocate {requested_bytes} bytes of device memory: {used_bytes} of {budget_bytes} are in use")]
    Full {
        /// What was asked for.
        requested_bytes: u64,
        /// What is allocated.
        used_bytes: u64,
        /// The limit.
        budget_bytes: u64,
    },
    /// A range outside a live allocation.
    #[error("use device range {range:?}: it lies outside a live allocation")]
    Range {
        /// The range.
        range: DeviceRange,
    },
    /// A host range outside a registered extent.
    #[error("use host extent {extent:?} at {offset}+{bytes}: it lies outside a registered extent")]
    HostRange {
        /// The extent.
        extent: ExtentId,
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// A host extent that is only read was to be written.
    #[error("write to host extent {extent:?}: it is mapped read-only")]
    ReadOnly {
        /// The extent.
        extent: ExtentId,
    },
    /// A job whose parts do not fit together.
    #[error("run {what}: {problem}")]
    Shape {
        /// The operation.
        what: &'static str,
        /// What does not fit.
        problem: String,
    },
    /// Attention was asked to read the host arena on a device that only reads its own memory.
    #[error("attend block section {section}: it is not in device memory and the device is strict")]
    NotResident {
        /// Index of the section in the job.
        section: usize,
    },
    /// There is no driver or no device.
    #[error("open a {kind} device: {reason}")]
    Unavailable {
        /// Device kind.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// The driver reported an error.
    #[error("run {what} on the device: {reason}")]
    Driver {
        /// The operation.
        what: &'static str,
        /// The driver's own words.
        reason: String,
    },
    /// The device failed before; nothing works until it is opened again.
    #[error("use a device that has failed before")]
    Lost,
}
