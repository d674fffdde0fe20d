//! Values of flags, read and checked.

/// A count of 1 or more.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    count(text, 1)
}

/// A count of 2 or more.
pub fn at_least_two(text: &str) -> Result<usize, String> {
    count(text, 2)
}

fn count(text: &str, least: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= least => Ok(number),
        Ok(_) => Err(format!("use at least {least}")),
        Err(error) => Err(format!("{error}")),
    }
}

fn number(text: &str, fits: impl Fn(f64) -> bool, need: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if fits(number) { Ok(number) } else { Err(format!("use {need}")) }
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x > 0.0, "a number above 0")
}

/// 0 or more.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x >= 0.0, "0 or more")
}

/// A number above 0, up to 1.
pub fn share(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "a number above 0, up to 1")
}

/// 0 up to, but not including, 1.
pub fn below_one(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "0 up to, but not including, 1")
}

/// 0 up to, but not including, one half.
pub fn below_half(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..0.5).contains(&x), "0 up to, but not including, 0.5")
}

/// Reads a size in bytes: `512MiB`, `2GiB`, `300MB`, `1000000`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit: u64 = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        other => return Err(format!("unknown unit {other:?}: use KiB, MiB or GiB")),
    };
    let number = number(digits, |x| x.is_finite() && x > 0.0, "a number above 0, as in 512MiB")?;
    Ok((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, size) in
            [("512MiB", 512 << 20), ("1.5 GiB", 3 << 29), ("300MB", 300_000_000), ("1024", 1024)]
        {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "MiB", "-1GiB", "5 parsecs", "nan", "0"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
