//! Memory size: its notation and its limits.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use super::value::{ValueError, split_number};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

pub(super) const EXPECTED: &str = "a size from 1M to 1T such as \"512M\" or \"4GiB\" \
     (K, M, G and T are powers of 1024; no unit means bytes)";

const EXPECTED_BYTES: &str =
    "a size such as \"512M\" or \"4GiB\" (K, M, G and T are powers of 1024; no unit means bytes)";

/// A size of guest RAM in bytes: 1 MiB to 1 TiB, a multiple of 4 KiB.
///
/// Written as a whole number with a unit: `K`, `KB` or `KiB`, and so on with `M`, `G`, `T`, in any case, always
/// powers of 1024. Without a unit the number counts bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// The smallest size, 1 MiB.
    pub const MIN: Self = Self(MIB);
    /// The largest size, 1 TiB: KVM allocates some 0.2 % of a slot for its own tables when the slot is made.
    pub const MAX: Self = Self(TIB);
    /// The size of a guest whose configuration names none, 128 MiB.
    pub const DEFAULT: Self = Self(128 * MIB);

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Checks `bytes` against the limits; `written` is the value as the user wrote it.
    fn checked(bytes: Option<u64>, written: &str) -> Result<Self, ValueError> {
        let value = || written.to_owned();
        match bytes {
            Some(bytes) if bytes < Self::MIN.0 => {
                Err(ValueError::BelowMinimum { value: value(), minimum: "1 MiB (1M)" })
            }
            Some(bytes) if bytes <= Self::MAX.0 && bytes % (4 * KIB) != 0 => {
                Err(ValueError::NotMultiple { value: value(), unit: "4 KiB (4K)" })
            }
            Some(bytes) if bytes <= Self::MAX.0 => Ok(Self(bytes)),
            _ => Err(ValueError::AboveLimit { value: value(), limit: "1 TiB (1024G)" }),
        }
    }
}

/// Takes a number of bytes.
impl TryFrom<u64> for MemorySize {
    type Error = ValueError;

    fn try_from(bytes: u64) -> Result<Self, ValueError> {
        Self::checked(Some(bytes), &bytes.to_string())
    }
}

impl FromStr for MemorySize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let value = || text.to_owned();
        let (digits, unit) = split_number(text, EXPECTED)?;
        let Some(factor) = factor(unit) else {
            return Err(ValueError::UnknownUnit {
                value: value(),
                unit: unit.to_owned(),
                expected: EXPECTED,
            });
        };
        // Only digits: `parse` can fail by overflow alone, which is above the limit too.
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
        Self::checked(bytes, text)
    }
}

/// A number of bytes of any size, with or without a unit.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = split_number(text, EXPECTED).ok()?;
    digits.parse::<u64>().ok()?.checked_mul(factor(unit)?)
}

/// Reads a size that is not that of RAM.
///
/// # Errors
///
/// [`ValueError`] if the text is anything else.
pub fn parse_bytes(text: &str) -> Result<u64, ValueError> {
    let malformed = || ValueError::Malformed { value: text.to_owned(), expected: EXPECTED_BYTES };
    bytes(text).ok_or_else(malformed)
}

fn factor(unit: &str) -> Option<u64> {
    match unit.to_ascii_uppercase().as_str() {
        "" => Some(1),
        "K" | "KB" | "KIB" => Some(KIB),
        "M" | "MB" | "MIB" => Some(MIB),
        "G" | "GB" | "GIB" => Some(GIB),
        "T" | "TB" | "TIB" => Some(TIB),
        _ => None,
    }
}

/// Writes the size in the largest unit that divides it.
impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")];
        match units.iter().find(|(factor, _)| self.0.is_multiple_of(*factor)) {
            Some((factor, unit)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Gives the text that [`FromStr`] reads.
impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Takes a string as [`FromStr`] does, or an integer number of bytes.
impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = MemorySize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<MemorySize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, bytes: i64) -> Result<MemorySize, E> {
                bytes.to_string().parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        text.parse::<MemorySize>().unwrap_err().to_string()
    }

    #[test]
    fn every_unit_is_a_power_of_1024_in_any_case() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("262144K", 256 << 20),
            ("262144kb", 256 << 20),
            ("262144KiB", 256 << 20),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("512MiB", 512 << 20),
            ("1G", 1 << 30),
            ("4GiB", 4 << 30),
            ("4gB", 4 << 30),
            ("1T", 1 << 40),
            ("1TiB", 1 << 40),
            ("1tb", 1 << 40),
            ("0001M", 1 << 20),
        ] {
            assert_eq!(text.parse::<MemorySize>().map(MemorySize::bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn fault_c2_sizes_outside_the_range_name_the_limit() {
        let above = "is above the limit of 1 TiB (1024G)";
        for text in [
            "16777216M",
            "17592186044416M",
            "9223372036854775808",
            "18446744073709551616",
            "18446744073709551615T",
            "1099511631872",
            "99999999999999999999999999999999999999999",
        ] {
            assert_eq!(message(text), format!("{text} {above}"));
        }
        for text in ["0", "1", "0M", "1023K", "1048575"] {
            assert_eq!(message(text), format!("{text} is below the minimum of 1 MiB (1M)"));
        }
        for text in ["-5", "-5M", "-0"] {
            assert_eq!(message(text), format!("{text} is negative; expected {EXPECTED}"));
        }
    }

    #[test]
    fn the_texts_of_the_limits_are_the_limits() {
        assert_eq!("1024G".parse(), Ok(MemorySize::MAX));
        assert_eq!("1M".parse(), Ok(MemorySize::MIN));
        assert_eq!(MemorySize::DEFAULT.to_string(), "128M");
        assert!(EXPECTED.contains(&format!("from {} to {}", MemorySize::MIN, MemorySize::MAX)));
    }

    #[test]
    fn what_is_no_size_says_why_and_what_is() {
        for (text, start) in [
            ("", "\"\" is empty"),
            ("1.5G", "1.5G is a fraction"),
            ("1,5G", "1,5G is a fraction"),
            ("512X", "512X has the unknown unit X"),
            ("512 M", "\"512 M\" has the unknown unit \" M\""),
            ("512MM", "512MM has the unknown unit MM"),
            ("1e3", "1e3 has the unknown unit e3"),
            ("0x100000", "0x100000 has the unknown unit x100000"),
            ("M", "M is not a size"),
            ("-", "- is not a size"),
            ("+5M", "+5M is not a size"),
            ("--cpus", "--cpus is not a size"),
            ("512Ｍ", "512Ｍ has the unknown unit Ｍ"),
            ("١M", "١M is not a size"),
        ] {
            let error = message(text);
            assert!(error.starts_with(start) && error.contains("from 1M to 1T"), "{error}");
        }
        assert_eq!(message("1048577"), "1048577 is not a multiple of 4 KiB (4K)");
    }

    #[test]
    fn bytes_are_checked_like_text() {
        assert_eq!(MemorySize::try_from(1 << 20), Ok(MemorySize::MIN));
        assert!(MemorySize::try_from((1 << 40) + 4096).is_err());
    }

    proptest! {
        #[test]
        fn what_display_writes_is_read_back(pages in 256_u64..=1 << 28) {
            let size = MemorySize::try_from(pages * 4096).unwrap();
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            if let Ok(size) = text.parse::<MemorySize>() {
                prop_assert!(size >= MemorySize::MIN && size <= MemorySize::MAX);
            }
        }
    }
}
