//! Numbers and words for people, and their safe place in HTML.

use std::fmt;

/// Text that HTML shows as it is: the five special characters are replaced and control characters
/// that no document may hold are left out. Fit for element content and quoted attributes.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => write!(f, "{character}")?,
                control if control.is_control() => f.write_str("\u{fffd}")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

/// `1.5 KiB`, `12.3 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `950 ms`, `12.3 s`, `4 min 05 s`, `2 h 30 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".into();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1e3);
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

/// An integer with thin groups of three digits: `1 234 567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `1 round`, `2 rounds`.
pub fn plural(number: impl Into<u64>, word: &str) -> String {
    let number = number.into();
    format!("{} {word}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A loss: three decimals.
pub fn loss(value: f64) -> String {
    format!("{value:.3}")
}

/// A share: `61.3 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1}\u{202f}%", share * 100.0)
}

/// How much `after` differs from `before`, with its sign: `−12.5 %`.
pub fn change(before: f64, after: f64) -> String {
    if before == 0.0 {
        return "–".into();
    }
    let change = (after - before) / before * 100.0;
    let sign = if change < -0.05 {
        "−"
    } else if change > 0.05 {
        "+"
    } else {
        "±"
    };
    format!("{sign}{:.1}\u{202f}%", change.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "</script><img src=x onerror='alert(\"1\")'>&\u{0}\u{1b}";
        let shown = Escaped(hostile).to_string();
        assert!(!shown.contains(['<', '>', '\'', '"', '\0', '\u{1b}']), "{shown}");
        assert!(shown.starts_with("&lt;/script&gt;"));
        assert!(shown.contains("&amp;"));
    }

    #[test]
    fn sizes_times_and_counts_read_well() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(duration(0.25), "250 ms");
        assert_eq!(duration(59.99), "1 min 00 s");
        assert_eq!(duration(245.0), "4 min 05 s");
        assert_eq!(duration(9000.0), "2 h 30 min");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(plural(1_u32, "round"), "1 round");
        assert_eq!(plural(2_u32, "round"), "2 rounds");
        assert_eq!(change(2.0, 1.5), "−25.0\u{202f}%");
        assert_eq!(change(2.0, 2.0), "±0.0\u{202f}%");
    }
}
