//! Bytes for people, JSON and pipes.

use crate::args::Output;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::ffi::OsStr;
use std::io::Write;

/// What went wrong when the answer was there and could not be printed.
pub const UNWRITTEN: &str = "cannot write to standard output";

/// What the command line says makes no sense: exit code 2, as for what its parser refuses.
#[derive(Debug)]
pub struct Mistake(String);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits as bytes.
pub fn unhex(text: &str) -> Result<Vec<u8>, Mistake> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => {
            Ok(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
        }
        _ => Err(Mistake(format!("{text:?} is not hexadecimal (pairs of 0-9, a-f)"))),
    }
}

/// Printable text as it is, anything else escaped.
pub fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// How keys and values are spelt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spelling {
    /// As text.
    Text,
    /// As hexadecimal digits.
    Hex,
}

impl Spelling {
    /// Bytes from the command line.
    pub fn parse(self, text: &OsStr) -> Result<Vec<u8>, Mistake> {
        let Some(text) = text.to_str() else {
            return Err(Mistake(format!(
                "{text:?} is not UTF-8: give such keys and values in hexadecimal, with --hex"
            )));
        };
        match self {
            Spelling::Text => Ok(text.as_bytes().to_vec()),
            Spelling::Hex => unhex(text),
        }
    }

    fn show(self, bytes: &[u8]) -> String {
        match self {
            Spelling::Text => readable(bytes),
            Spelling::Hex => hex(bytes),
        }
    }

    fn json(self, name: &str, bytes: &[u8], into: &mut Map<String, Value>) {
        match (self, std::str::from_utf8(bytes)) {
            (Spelling::Text, Ok(text)) => into.insert(name.to_owned(), text.into()),
            _ => into.insert(format!("{name}_hex"), hex(bytes).into()),
        };
    }
}

/// Prints a text to standard output.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(UNWRITTEN)
}

/// Prints the value that was asked for.
pub fn value(
    out: &mut dyn Write,
    output: Output,
    spelling: Spelling,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    match (output, spelling) {
        (Output::Table, _) => writeln!(out, "{}", spelling.show(value))?,
        (Output::Raw, Spelling::Text) => out.write_all(value)?,
        (Output::Raw, Spelling::Hex) => writeln!(out, "{}", hex(value))?,
        (Output::Json, _) => item(out, output, spelling, key, value)?,
    }
    Ok(())
}

/// Prints one item of a scan.
pub fn item(
    out: &mut dyn Write,
    output: Output,
    spelling: Spelling,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    match (output, spelling) {
        (Output::Table, _) => {
            writeln!(out, "{}  {}", spelling.show(key), spelling.show(value))?;
        }
        (Output::Raw, Spelling::Hex) => writeln!(out, "{}\t{}", hex(key), hex(value))?,
        (Output::Raw, Spelling::Text) => {
            out.write_all(key)?;
            out.write_all(b"\t")?;
            out.write_all(value)?;
            out.write_all(b"\n")?;
        }
        (Output::Json, _) => {
            let mut object = Map::new();
            spelling.json("key", key, &mut object);
            spelling.json("value", value, &mut object);
            writeln!(out, "{}", Value::Object(object))?;
        }
    }
    Ok(())
}

/// Lays rows out in columns; the first row is the head.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count()).max())
        .map(|width| width.unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(output: Output, spelling: Spelling, key: &[u8], value: &[u8]) -> String {
        let mut out = Vec::new();
        item(&mut out, output, spelling, key, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_can_be_printed_and_typed() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)).unwrap(), all);
        assert!(unhex("abc").is_err() && unhex("zz").is_err());
        assert_eq!(readable("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(readable(b"a\n\xff"), "a\\n\\xff");
        assert_eq!(printed(Output::Table, Spelling::Hex, b"a", b"b"), "61  62\n");
        assert_eq!(printed(Output::Raw, Spelling::Text, b"a", b"b"), "a\tb\n");
        let json = printed(Output::Json, Spelling::Text, b"a", b"\xff");
        assert_eq!(json, "{\"key\":\"a\",\"value_hex\":\"ff\"}\n");
    }

    #[test]
    fn columns_line_up() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(columns(&[row("a", "b"), row("ccc", "")]), "a    b\nccc\n");
    }
}
