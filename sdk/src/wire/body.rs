//! How fields stand in a body: one after the other without gaps, numbers little-endian, lists and texts behind their length.
//!
//! Nothing is allocated for a number that a peer states: lists and texts are borrowed from the body, and what is owned (a manifest) grows
//! with the bytes that are there.

use std::ops::Deref;

use cache_core::form::{FormMapId, Lineage, Provenance};
use cache_core::hash::{BlockHash, Namespace, TenantId, WeightsId};
use cache_core::key::GroupId;
use cache_core::units::{Generation, SlotIndex};
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

use super::error::WireError;

/// Items of one list: of the keys of a lookup, the leases of a release.
pub const BATCH_MAX: usize = 1024;

/// A body, or a part of one.
pub trait Body<'a>: Sized {
    /// Appends it to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads it where `input` stands. Errors: a [`WireError`] that names the field.
    fn read(input: &mut Input<'a>) -> Result<Self, WireError>;

    /// Reads a body that is this and nothing else.
    fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Input::new(body);
        let value = Self::read(&mut input)?;
        input.finish()?;
        Ok(value)
    }
}

/// What is left of a body, and the field that is read now.
#[derive(Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
    field: &'static str,
}

impl<'a> Input<'a> {
    fn new(body: &'a [u8]) -> Input<'a> {
        Input { rest: body, field: "body" }
    }

    /// Names the field that comes next, for errors.
    pub(super) fn at(&mut self, field: &'static str) -> &mut Input<'a> {
        self.field = field;
        self
    }

    /// The next `bytes` bytes.
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(WireError::Truncated { field: self.field })?;
        self.rest = rest;
        Ok(taken)
    }

    /// All bytes that are left.
    pub(super) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// That a count or length of the present field is within its limit.
    pub(super) fn at_most(&self, found: u64, most: u64) -> Result<usize, WireError> {
        if found <= most { Ok(found as usize) } else { Err(WireError::TooMany { field: self.field, found, most }) }
    }

    /// The error of a number that stands for nothing.
    pub(super) fn value(&self) -> WireError {
        WireError::Value { field: self.field }
    }

    /// The present field's bytes as text.
    pub(super) fn text(&self, bytes: &'a [u8]) -> Result<&'a str, WireError> {
        str::from_utf8(bytes).map_err(|_| WireError::Text { field: self.field })
    }

    fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(WireError::Trailing { bytes }),
        }
    }
}

impl<'a, const N: usize> Body<'a> for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn read(input: &mut Input<'a>) -> Result<[u8; N], WireError> {
        let bytes = input.take(N)?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Body<'_> for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                self.to_le_bytes().encode(out);
            }

            fn read(input: &mut Input<'_>) -> Result<$number, WireError> {
                Ok(<$number>::from_le_bytes(Body::read(input)?))
            }
        }
    )*};
}

numbers!(u16, u32, u64);

macro_rules! wrapped {
    ($($name:ident),*) => {$(
        impl Body<'_> for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }

            fn read(input: &mut Input<'_>) -> Result<$name, WireError> {
                Ok($name(Body::read(input)?))
            }
        }
    )*};
}

pub(super) use wrapped;

wrapped!(BlockHash, FormMapId, Generation, GroupId, Lineage, Namespace, Provenance, SlotIndex, TenantId, WeightsId);

/// Makes a struct whose body is its fields in their order.
macro_rules! body {
    (
        $(#[$doc:meta])*
        pub struct $name:ident $(<$life:lifetime>)? { $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name $(<$life>)? {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl<'a> $crate::wire::Body<'a> for $name $(<$life>)? {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::wire::Body::encode(&self.$field, out);)*
            }

            fn read(
                input: &mut $crate::wire::body::Input<'a>,
            ) -> Result<Self, $crate::wire::WireError> {
                Ok($name {
                    $($field: $crate::wire::Body::read(input.at(concat!(stringify!($name), ".", stringify!($field))))?,)*
                })
            }
        }
    };
}

pub(super) use body;

/// A body of no bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Empty;

impl Body<'_> for Empty {
    fn encode(&self, _out: &mut Vec<u8>) {}

    fn read(_input: &mut Input<'_>) -> Result<Empty, WireError> {
        Ok(Empty)
    }
}

#[derive(TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum ZeroByte {
    #[default]
    Zero = 0,
}

/// Bytes that must be zero.
#[derive(TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Zero<const N: usize>([ZeroByte; N]);

impl<const N: usize> Zero<N> {
    /// `N` of them.
    pub const BYTES: Zero<N> = Zero([ZeroByte::Zero; N]);
}

impl<const N: usize> Body<'_> for Zero<N> {
    fn encode(&self, out: &mut Vec<u8>) {
        [0; N].encode(out);
    }

    fn read(input: &mut Input<'_>) -> Result<Zero<N>, WireError> {
        if <[u8; N]>::read(input)? == [0; N] { Ok(Zero::BYTES) } else { Err(input.value()) }
    }
}

/// At most [`BATCH_MAX`] items as they lie in the body: a count of 4 bytes, then the items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a, T>(&'a [T]);

impl<'a, T> Batch<'a, T> {
    /// Errors: [`WireError::TooMany`].
    pub fn new(items: &'a [T]) -> Result<Batch<'a, T>, WireError> {
        if items.len() <= BATCH_MAX {
            Ok(Batch(items))
        } else {
            Err(WireError::TooMany { field: "batch", found: items.len() as u64, most: BATCH_MAX as u64 })
        }
    }

    /// The items, for as long as the body lives.
    pub fn items(&self) -> &'a [T] {
        self.0
    }
}

impl<T> Deref for Batch<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0
    }
}

impl<'a, T: TryFromBytes + IntoBytes + Immutable + KnownLayout + 'a> Body<'a> for Batch<'a, T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32).encode(out);
        out.extend_from_slice(self.0.as_bytes());
    }

    fn read(input: &mut Input<'a>) -> Result<Batch<'a, T>, WireError> {
        let count = u64::from(u32::read(input)?);
        let count = input.at_most(count, BATCH_MAX as u64)?;
        let bytes = input.take(count * size_of::<T>())?;
        <[T]>::try_ref_from_bytes(bytes).map(Batch).map_err(|_| input.value())
    }
}

/// At most `MOST` bytes of text without control characters, behind a length of 4 bytes: names, which are logged and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Text<'a, const MOST: usize>(&'a str);

impl<'a, const MOST: usize> Text<'a, MOST> {
    /// Errors: [`WireError::TooMany`], [`WireError::Text`].
    pub fn new(text: &'a str) -> Result<Text<'a, MOST>, WireError> {
        Text::checked(text, "text")
    }

    fn checked(text: &'a str, field: &'static str) -> Result<Text<'a, MOST>, WireError> {
        if text.len() > MOST {
            return Err(WireError::TooMany { field, found: text.len() as u64, most: MOST as u64 });
        }
        if text.chars().any(char::is_control) { Err(WireError::Text { field }) } else { Ok(Text(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl<'a, const MOST: usize> Body<'a> for Text<'a, MOST> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32).encode(out);
        out.extend_from_slice(self.0.as_bytes());
    }

    fn read(input: &mut Input<'a>) -> Result<Text<'a, MOST>, WireError> {
        let bytes = u64::from(u32::read(input)?);
        let bytes = input.at_most(bytes, MOST as u64)?;
        let bytes = input.take(bytes)?;
        Text::checked(input.text(bytes)?, input.field)
    }
}

/// A body that is UTF-8 text from end to end: JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Json<'a>(pub &'a str);

impl<'a> Body<'a> for Json<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }

    fn read(input: &mut Input<'a>) -> Result<Json<'a>, WireError> {
        let bytes = input.take_rest();
        input.text(bytes).map(Json)
    }
}
