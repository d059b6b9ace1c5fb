//! Which form keys and values have in which layer and tier, and what follows: the map of closed blocks, and the form of lossless ones.
//!
//! Device, host and disk hold the same copies: an image is encoded once and travels unchanged. So a policy that names different forms in
//! different tiers is refused: lossy copies are never encoded again, and which form a row reads must not depend on where a block lies.

use cache_core::form::{Form, FormError, Layers};
use cache_core::payload::Side;
use cache_core::units::Tier;

/// Forms that an engine can keep blocks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    lossless: Form,
    closed: Option<Form>,
}

/// Why an engine cannot keep blocks like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Another form in a lower tier than on the device.
    #[error(
        "keep the {} of layer {layer} as {device} on the device and as {below} in the {} tier: {}; name one form for all tiers",
        side_name(*.side), .tier.name(), why_not(*.device)
    )]
    Transcodes {
        /// The layer.
        layer: u32,
        /// Keys or values.
        side: Side,
        /// The lower tier.
        tier: Tier,
        /// The form on the device.
        device: Form,
        /// The form in the lower tier.
        below: Form,
    },
    /// A lossy entry beside another.
    #[error("keep {0} in one layer and {1} in another: maps mix i8h and kc4vt4 alone")]
    Uneven(Form, Form),
    /// A form that attention does not read.
    #[error("keep blocks as {0}: attention reads raw16, i8h, kc4vt4 and maps of the last two")]
    NotRead(Form),
    /// The map is not one of the model.
    #[error(transparent)]
    Form(#[from] FormError),
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Key => "keys",
        Side::Value => "values",
    }
}

/// Why a copy that is in this form on the device keeps it below.
fn why_not(device: Form) -> &'static str {
    match is_lossy(device) {
        true => "a lossy copy is not encoded again",
        false => "blocks move as they are, and what a row reads may not depend on where",
    }
}

impl Policy {
    /// The same form, or map, in every tier. Errors: [`PolicyError`].
    pub fn of(form: Form, layers: u32) -> Result<Policy, PolicyError> {
        let form = form.in_model(layers)?;
        Policy::new(layers, |layer, side, _| form.at(layer, side))
    }

    /// The uniform form of each (layer, side) in each tier, of a model of so many layers, at least one. Errors: [`PolicyError`].
    pub fn new(layers: u32, form: impl Fn(u32, Side, Tier) -> Form) -> Result<Policy, PolicyError> {
        let first = form(0, Side::Key, Tier::Device);
        let mut eights = [Layers::NONE; 2];
        let mut is_uniform = true;
        for (layer, side) in (0..layers).flat_map(|layer| Side::ALL.map(|side| (layer, side))) {
            let device = form(layer, side, Tier::Device);
            for tier in [Tier::Host, Tier::Disk] {
                let below = form(layer, side, tier);
                if below != device {
                    return Err(PolicyError::Transcodes { layer, side, tier, device, below });
                }
            }
            if device != first && !(is_lossy(device) && is_lossy(first)) {
                return Err(PolicyError::Uneven(first, device));
            }
            is_uniform &= device == first;
            if device == Form::I8h && layer < Layers::MOST {
                let of = &mut eights[usize::from(side == Side::Value)];
                *of = of.or(Layers::range(layer, layer));
            }
        }
        match first {
            Form::Raw16 | Form::Raw32 => Ok(Policy { lossless: first, closed: None }),
            Form::I8h | Form::Kc4vt4 => {
                let [keys, values] = eights;
                let map = match is_uniform {
                    true => first,
                    false if layers > Layers::MOST => return Err(FormError::TooManyLayers { layers }.into()),
                    false => Form::mixed(keys, values),
                };
                Ok(Policy { lossless: Form::Raw16, closed: Some(map) })
            }
            _ => Err(PolicyError::NotRead(first)),
        }
    }

    /// Form of lossless blocks, of open ones too; for now the same in every tier. `raw32` where it is measured with.
    pub fn lossless(&self) -> Form {
        self.lossless
    }

    /// Form of closed blocks, in every tier; `None` where none are closed.
    pub fn closed(&self) -> Option<Form> {
        self.closed
    }
}

fn is_lossy(form: Form) -> bool {
    matches!(form, Form::I8h | Form::Kc4vt4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(name: &str) -> Form {
        name.parse().unwrap()
    }

    #[test]
    fn a_form_for_all_tiers_gives_the_map_of_closed_blocks() {
        let map = form("kc4vt4:k8=0-3+29:v8=0");
        let entry = |layer, side, _| if map.at(layer, side) == Form::I8h { Form::I8h } else { Form::Kc4vt4 };
        assert_eq!(Policy::new(30, entry), Ok(Policy { lossless: Form::Raw16, closed: Some(map) }));
        for (name, layers, lossless, closed) in [
            ("raw16", 30, "raw16", None),
            ("raw32", 30, "raw32", None),
            ("i8h", 200, "raw16", Some("i8h")),
            ("kc4vt4", 30, "raw16", Some("kc4vt4")),
            ("kc4vt4:k8=0-29:v8=all", 30, "raw16", Some("i8h")),
            ("kc4vt4:v8=all", 4, "raw16", Some("kc4vt4:v8=0-3")),
        ] {
            let policy = Policy::of(form(name), layers).unwrap();
            assert_eq!((policy.lossless(), policy.closed()), (form(lossless), closed.map(form)), "{name}");
        }
    }

    #[test]
    fn policies_that_would_encode_a_copy_twice_are_refused() {
        let tiers = |device: Form, host: Form, disk: Form| {
            let of = move |layer, side, tier| match tier {
                Tier::Host if (layer, side) == (1, Side::Value) => host,
                Tier::Disk if (layer, side) == (1, Side::Value) => disk,
                _ => device,
            };
            Policy::new(2, of).unwrap_err()
        };
        let (layer, side) = (1, Side::Value);
        let transcodes = |tier, device, below| PolicyError::Transcodes { layer, side, tier, device, below };
        let (eight, four) = (Form::I8h, Form::Kc4vt4);
        assert_eq!(tiers(eight, eight, four), transcodes(Tier::Disk, eight, four));
        assert_eq!(tiers(four, eight, four), transcodes(Tier::Host, four, eight));
        let raw = Form::Raw16;
        assert_eq!(tiers(four, raw, four), transcodes(Tier::Host, four, raw));
        assert_eq!(tiers(raw, raw, four), transcodes(Tier::Disk, raw, four));
        assert_eq!(
            tiers(eight, eight, four).to_string(),
            "keep the values of layer 1 as i8h on the device and as kc4vt4 in the disk tier: a lossy copy is not encoded again; \
             name one form for all tiers"
        );
    }

    #[test]
    fn maps_that_no_engine_keeps_are_refused() {
        let split = |layer, _, _| if layer == 0 { Form::Raw16 } else { Form::I8h };
        assert_eq!(Policy::new(2, split), Err(PolicyError::Uneven(Form::Raw16, Form::I8h)));
        assert_eq!(Policy::of(Form::Sx12, 2), Err(PolicyError::NotRead(Form::Sx12)));
        let outside = PolicyError::Form(FormError::OutsideModel { layer: 29, layers: 29 });
        assert_eq!(Policy::of(form("kc4vt4:k8=0-3+29:v8=0"), 29), Err(outside));
        let wide = |layer, _, _| if layer == 128 { Form::I8h } else { Form::Kc4vt4 };
        assert_eq!(Policy::new(129, wide), Err(PolicyError::Form(FormError::TooManyLayers { layers: 129 })));
    }
}
