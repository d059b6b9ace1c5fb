//! Sizes as people write them: a number with KiB, MiB or GiB.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl Size {
    /// The same number of bytes to the byte, for settings that are read back: `1536MiB`, where [`fmt::Display`] rounds to a decimal.
    /// Bytes below a whole KiB are dropped.
    pub fn exact(self) -> String {
        let (unit, factor) = UNITS
            .iter()
            .rev()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&UNITS[0]);
        format!("{}{unit}", self.0 / factor)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("`{text}` is not a size; give a number with KiB, MiB or GiB, such as 512MiB");
        let (number, factor) =
            UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).ok_or_else(wrong)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Size).ok_or_else(wrong);
        }
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = value * factor as f64;
        if value.is_finite() && value >= 0.0 && bytes < 2f64.powi(60) { Ok(Size(bytes as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS.iter().rev().find(|(_, factor)| self.0 >= *factor).unwrap_or(&UNITS[0]);
        let value = self.0 as f64 / *factor as f64;
        if value.fract() == 0.0 { write!(f, "{value}{unit}") } else { write!(f, "{value:.1}{unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        for (text, bytes) in [("16MiB", 16 << 20), ("1GiB", 1 << 30), ("1.5KiB", 1536), ("0KiB", 0)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes));
        }
        assert_eq!(Size(16 << 20).to_string(), "16MiB");
        for text in ["", "16", "16MB", "-1MiB", "xMiB", "MiB", "99999999999GiB", "nanKiB", "1e300GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_exact_size_reads_back_as_itself() {
        for bytes in [0, 1 << 10, 1536 << 20, 3 << 30, (1 << 30) + (1 << 10)] {
            assert_eq!(Size(bytes).exact().parse::<Size>().unwrap(), Size(bytes));
        }
    }
}
