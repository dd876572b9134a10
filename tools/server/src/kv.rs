//! `catamaran kv`: reading and writing keys of a running cluster.

use crate::args::{Connect, KvArgs, KvCommand};
use crate::print::{self, Spelling};
use anyhow::{Context, Result};
use catamaran::client::{Client, RemoteClient};
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::types::KeyRange;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;

/// A client of the servers named.
pub fn client(connect: &Connect) -> Result<Client> {
    Ok(RemoteClient::new(&connect.connect, None, connect.timeout)?.client())
}

/// The first key that does not begin with `prefix`; empty if there is none.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// Runs the command; exit code 1 when a key was not found.
pub fn run(args: &KvArgs) -> Result<ExitCode> {
    let spelling = if args.hex { Spelling::Hex } else { Spelling::Text };
    let output = args.output;
    let client = client(&args.connect)?.blocking();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match &args.command {
        KvCommand::Get { key } => {
            let bytes = spelling.parse(key)?;
            match client.get(bytes.clone()).context("get")? {
                Some(value) => print::value(&mut out, output, spelling, &bytes, &value)
                    .context(print::UNWRITTEN)?,
                None => {
                    eprintln!("not found: {}", key.display());
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        KvCommand::Put { key, value } => {
            let key = spelling.parse(key)?;
            let value = match value == "-" {
                true => {
                    let mut bytes = Vec::new();
                    std::io::stdin().lock().read_to_end(&mut bytes)?;
                    bytes
                }
                false => spelling.parse(value)?,
            };
            client.put(key, value).context("put")?;
        }
        KvCommand::Delete { key } => client.delete(spelling.parse(key)?).context("delete")?,
        KvCommand::Scan { from, to, prefix, limit, reverse } => {
            let bound = |text: &Option<OsString>| match text {
                Some(text) => spelling.parse(text),
                None => Ok(Vec::new()),
            };
            let range = match prefix {
                Some(prefix) => {
                    let start = spelling.parse(prefix)?;
                    let end = after_prefix(&start);
                    KeyRange::new(start, end)
                }
                None => KeyRange::new(bound(from)?, bound(to)?),
            };
            let direction = if *reverse { Direction::Reverse } else { Direction::Forward };
            let rows = client.scan(range, direction, ReadLevel::Linearizable);
            for row in rows.take(usize::try_from(*limit)?) {
                let (key, value) = row.context("scan")?;
                print::item(&mut out, output, spelling, &key, &value).context(print::UNWRITTEN)?;
            }
        }
    }
    out.flush().context(print::UNWRITTEN)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        assert_eq!(after_prefix(b"ab"), b"ac");
        assert_eq!(after_prefix(b"a\xff\xff"), b"b");
        assert_eq!(after_prefix(b"\xff"), b"");
        assert_eq!(after_prefix(b""), b"");
    }
}
