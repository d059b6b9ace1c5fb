//! The live page, in one piece: markup, style and script from the files beside this one, and the policy that lets a browser run exactly
//! these.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const MARKUP: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub(crate) static PAGE: LazyLock<String> =
    LazyLock::new(|| MARKUP.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT));

/// Nothing from anywhere else: the one style and script by their digests, figures from this endpoint, an empty icon from a `data:` address.
pub(crate) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; connect-src 'self'; img-src data:; script-src {}; style-src {}; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        digest(SCRIPT),
        digest(STYLE)
    )
});
