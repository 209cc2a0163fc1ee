//! Durations and sizes as people write them in a case: `10s`, `500ms`, `256M`.

use std::time::Duration;

/// Why a duration or a size was refused; the text names what was read and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// Reads a whole number followed by `ms`, `s` or `m`, such as `10s`.
///
/// # Errors
///
/// No number, another unit, or a value beyond 64 bits of milliseconds.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let wrong =
        || UnitError(format!("`{text}` is no duration: write a number and ms, s or m, like 10s"));
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(wrong)
}

/// Writes a duration the way [`duration`] reads it, rounded down to the millisecond.
pub fn show_duration(d: Duration) -> String {
    let millis = d.as_millis();
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

/// Reads a whole number of bytes followed by `K`, `M` or `G` (powers of 1024), such as `256M`.
///
/// # Errors
///
/// No number, no such unit, or a value beyond 64 bits.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let wrong =
        || UnitError(format!("`{text}` is no size: write a number and K, M or G, like 256M"));
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_back() {
        for (text, millis) in [("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(show_duration(Duration::from_millis(10_000)), "10s");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        for bad in ["", "10", "s", "10 s", "-1s", "1h", "1.5s", "18446744073709551615m"] {
            let error = duration(bad).unwrap_err().to_string();
            assert!(error.contains("is no duration"), "{bad}: {error}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("4K", 4096), ("256M", 256 << 20), ("4G", 4 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "256", "M", "256m", "256MB", "-1M", "99999999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
