//! An engine's blocks in a lossy form: gathered out of its memory by the layout that it states, encoded on their way to the daemon, and back.
//!
//! Nothing here looks at values to find out where keys and values are. The engine states it, and what it states is checked for all that can be
//! checked: that every element of a block is in one place, and every place has one. Two layouts that differ have namespaces of their own.
//!
//! Copies in such a namespace are never exact: an engine that knows nothing of forms computes blocks from what it loaded, and stores those too, so
//! any of them may come after a lossy one.

mod coder;

use cache_core::form::{Form, Provenance};
use cache_core::payload::{BlockShape, Plane, Side};

pub(super) use coder::Coder;

use super::PluginError;

/// Where the keys or the values of a layer are in an engine's block, in elements of 16 bits: that of a head, token and channel is number
/// `first + head * heads + token * tokens + channel * channels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strides {
    /// The first one's.
    pub first: u32,
    /// From a head to the next.
    pub heads: u32,
    /// From a token to the next.
    pub tokens: u32,
    /// From a channel to the next.
    pub channels: u32,
}

impl Strides {
    fn at(&self, head: u32, token: u32, channel: u32) -> u64 {
        let along = |stride: u32, number: u32| u64::from(stride) * u64::from(number);
        u64::from(self.first) + along(self.heads, head) + along(self.tokens, token) + along(self.channels, channel)
    }
}

/// The form that an engine's blocks are stored in, and where their elements, which are bf16, are in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lossy {
    /// `i8h`, `kc4vt4` or a map of them.
    pub form: Form,
    /// Tokens of a block of the engine's: those of a stored block, or one of several that make one.
    pub tokens: u32,
    /// Where its keys are.
    pub keys: Strides,
    /// Where its values are.
    pub values: Strides,
}

impl Lossy {
    /// The shape of stored blocks whose layers have `layer_bytes` bytes in the engine's memory. Errors: [`PluginError::Usage`] with the first thing
    /// that is not as it must be.
    pub(super) fn shape(&self, raw: &BlockShape, layer_bytes: u32) -> Result<BlockShape, PluginError> {
        let BlockShape { layers, kv_heads, head_dim, block_tokens, .. } = *raw;
        let form = self.form.in_model(layers).map_err(|error| PluginError::usage(error.to_string()))?;
        if form.is_lossless() || form == Form::Raw32 {
            return Err(PluginError::usage(format!("{form} is no lossy form: i8h, kc4vt4 and maps of them are")));
        }
        if !head_dim.is_multiple_of(8) || !block_tokens.is_multiple_of(8) {
            let reason = format!("{form} needs multiples of 8, not {head_dim} channels and {block_tokens} tokens");
            return Err(PluginError::usage(reason));
        }
        if self.tokens == 0 || !block_tokens.is_multiple_of(self.tokens) {
            let reason = format!("stored blocks of {block_tokens} tokens are not made of blocks of {}", self.tokens);
            return Err(PluginError::usage(reason));
        }
        let expected = raw.layer_bytes(Plane::Code, 0);
        if u64::from(layer_bytes) != expected {
            let reason =
                format!("layer_bytes is {layer_bytes}, but keys and values of a layer take {expected} in bf16");
            return Err(PluginError::usage(reason));
        }
        self.expect_each_once(kv_heads, head_dim)?;
        Ok(raw.with_form(form))
    }

    /// Every element of an engine's block has a place, and every place an element.
    fn expect_each_once(&self, kv_heads: u32, head_dim: u32) -> Result<(), PluginError> {
        let sides = [("keys", &self.keys), ("values", &self.values)];
        let mut is_taken = vec![false; 2 * (kv_heads * self.tokens * head_dim) as usize];
        for (name, strides) in sides {
            for head in 0..kv_heads {
                for token in 0..self.tokens {
                    for channel in 0..head_dim {
                        let place = strides.at(head, token, channel);
                        let which =
                            || format!("the layout has {name} of head {head}, token {token}, channel {channel}");
                        let elements = is_taken.len();
                        let taken = usize::try_from(place).ok().and_then(|place| is_taken.get_mut(place));
                        let taken = taken.ok_or_else(|| {
                            PluginError::usage(format!("{} at {place} of {elements} elements", which()))
                        })?;
                        if std::mem::replace(taken, true) {
                            return Err(PluginError::usage(format!("{} at {place}, where another is", which())));
                        }
                    }
                }
            }
        }
        // As many places as elements, none of them twice.
        Ok(())
    }

    /// What makes copies of this form and layout meet, and no others.
    pub(super) fn name(&self, form: Form) -> String {
        let part = |side: &Strides| format!("{}+{}h+{}t+{}c", side.first, side.heads, side.tokens, side.channels);
        format!(
            "stored as {form} from blocks of {} tokens: k={};v={}",
            self.tokens,
            part(&self.keys),
            part(&self.values)
        )
    }

    fn strides(&self, side: Side) -> &Strides {
        match side {
            Side::Key => &self.keys,
            Side::Value => &self.values,
        }
    }
}

/// The provenance of all copies that engines store in lossy forms: anything before one may have been lossy. One is enough: forms and layouts have
/// namespaces of their own.
pub(super) const TAINTED: Provenance = Provenance(0x6c6f_7373_795f_6b76);

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const RAW: BlockShape =
        BlockShape { layers: 2, kv_heads: 2, head_dim: 16, block_tokens: 24, form: Form::Raw16 };

    /// Tokens by heads by channels, keys before values: how GPU kernels have it.
    pub(super) fn token_major(form: Form, tokens: u32, kv_heads: u32, head_dim: u32) -> Lossy {
        let keys = Strides { first: 0, heads: head_dim, tokens: kv_heads * head_dim, channels: 1 };
        Lossy { form, tokens, keys, values: Strides { first: tokens * kv_heads * head_dim, ..keys } }
    }

    /// Heads of a key and a value part, keys by channel: how vLLM's kernels for CPUs have it.
    pub(super) fn by_channel(form: Form, tokens: u32, head_dim: u32) -> Lossy {
        let part = tokens * head_dim;
        let keys = Strides { first: 0, heads: 2 * part, tokens: 1, channels: tokens };
        Lossy { form, tokens, keys, values: Strides { first: part, heads: 2 * part, tokens: head_dim, channels: 1 } }
    }

    pub(super) fn bytes() -> u32 {
        RAW.layer_bytes(Plane::Code, 0) as u32
    }

    #[test]
    fn layouts_that_are_none_are_told() {
        let good = token_major(Form::I8h, 8, 2, 16);
        assert_eq!(good.shape(&RAW, bytes()).unwrap(), RAW.with_form(Form::I8h));
        type Change = fn(&mut Lossy);
        let changes: [(Change, &str); 8] = [
            (|l| l.keys.tokens = 16, "keys of head 1, token 0, channel 0 at 16, where another is"),
            (|l| l.values.first = 0, "values of head 0, token 0, channel 0 at 0, where another is"),
            (|l| l.values.first += 1, "values of head 1, token 7, channel 15 at 512 of 512 elements"),
            (|l| l.values.heads = u32::MAX, "at 4294967551 of 512 elements"),
            (|l| l.tokens = 7, "stored blocks of 24 tokens are not made of blocks of 7"),
            (|l| l.tokens = 0, "stored blocks of 24 tokens are not made of blocks of 0"),
            (|l| l.form = Form::Raw16, "raw16 is no lossy form"),
            (|l| l.form = "kc4vt4:k8=5".parse().unwrap(), "names layer 5"),
        ];
        for (change, expected) in changes {
            let mut lossy = good;
            change(&mut lossy);
            let error = lossy.shape(&RAW, bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(good.shape(&RAW, bytes() + 2).unwrap_err().to_string().contains("layer_bytes is 3074"));
        let odd = BlockShape { head_dim: 12, ..RAW };
        assert!(good.shape(&odd, bytes()).unwrap_err().to_string().contains("12 channels"));
    }
}
