//! Writes the text of the tokenizer's golden test to standard output, for programs whose token ids are compared.
//!
//! `cargo run -p kvtier-engine --example mixed_text > mixed.txt`

use std::io::Write;

#[path = "../tests/common/mixed_text.rs"]
mod mixed_text;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(&mixed_text::mixed_text())
}
