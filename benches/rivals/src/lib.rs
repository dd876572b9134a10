//! Measures catamaran's log beside raft-engine and raft-log: the same work, the same payload, the same
//! threads, in turn within one run. The rivals are built only with the feature `rivals`:
//!
//! ```text
//! cargo run --release -p catamaran-rivals --features rivals -- run --json rivals.json
//! cargo run --release -p catamaran-rivals -- table rivals.json
//! cargo bench -p catamaran-rivals --features rivals
//! ```
//!
//! | room | what |
//! |---|---|
//! | `engine` | what is measured: one trait, an adapter for each log |
//! | `work` | the rows of writing: what is written, by how many, how far ahead |
//! | `drive`, `turns` | threads that do a row's work against an engine for a while; engines in turn |
//! | `space` | a large log on disk: opening it, its heap, reading it cold, purging it |
//! | `probe` | the parts of `space` that want a process of their own |
//! | `conform` | the conformance suite over ours and the rivals |
//! | `machine` | page cache, bytes read, limits |
//! | `report`, `table`, `target` | medians and spreads, JSON; Markdown; what is to be reached |
//!
//! Every engine is driven through its public API as its documentation says. Where a rival has a
//! choice (compression, recycled files), each choice is a column of its own.

pub mod conform;
pub mod drive;
pub mod engine;
pub mod machine;
pub mod probe;
pub mod report;
pub mod space;
pub mod table;
pub mod target;
pub mod turns;
pub mod work;
