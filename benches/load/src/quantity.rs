//! Durations and sizes as people write them: `10s`, `500ms`, `2m`, `64MiB`, `4k`.

use std::time::Duration;

fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let number: f64 =
        number.parse().map_err(|_| format!("{text:?} does not start with a number"))?;
    Ok((number, unit.trim()))
}

/// Parses `10s`, `500ms`, `1.5m`, `2h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit {other:?}: use us, ms, s, m or h")),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// Parses `64MiB`, `4k`, `512`: bytes, `k`, `M` and `G` being powers of 1,024 as `KiB`, `MiB`, `GiB` are.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let unit_bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        other => return Err(format!("unknown unit {other:?}: use B, KiB, MiB, GiB or TiB")),
    };
    let bytes = number * unit_bytes as f64;
    if bytes >= u64::MAX as f64 {
        return Err(format!("{text:?} is too large"));
    }
    Ok(bytes as u64)
}

/// Parses a count: `1000000`, `10M`, `2.5k`; the letters are powers of 1,000.
pub fn count(text: &str) -> Result<u64, String> {
    let (number, unit) =
        split(&text.replace('_', "")).map(|(number, unit)| (number, unit.to_ascii_lowercase()))?;
    let times = match unit.as_str() {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        other => return Err(format!("unknown unit {other:?}: use k, M or G")),
    };
    let count = number * times;
    if count >= u64::MAX as f64 || count.fract() != 0.0 {
        return Err(format!("{text:?} is not a whole number in range"));
    }
    Ok(count as u64)
}

/// `12345678` as `12,345,678`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a unit that suits them.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// Microseconds with a unit that suits them.
pub fn human_micros(micros: f64) -> String {
    match micros {
        m if m < 1e3 => format!("{m:.0} us"),
        m if m < 1e6 => format!("{:.2} ms", m / 1e3),
        m => format!("{:.2} s", m / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(count("2.5M"), Ok(2_500_000));
        assert!(duration("10 parsecs").is_err() && size("x").is_err() && count("0.5").is_err());
        assert_eq!(grouped(1234567), "1,234,567");
        assert_eq!(human_bytes(3 << 19), "1.5 MiB");
        assert_eq!(human_micros(1500.0), "1.50 ms");
    }
}
