//! `catamaran-rivals-heap`: opens a log under an allocator that counts and prints the bytes it holds.

use cap::Cap;
use catamaran_rivals::probe::Ask;
use clap::Parser;
use std::alloc::System;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    ask: Ask,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let before = HEAP.allocated();
    let engine = cli.ask.open()?;
    println!("{}", HEAP.allocated().saturating_sub(before));
    drop(engine);
    Ok(())
}
