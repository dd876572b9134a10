//! One file for each verb (`groups` and `state` share one, as do `summary` and `segments`).
//! Each opens what it needs, builds a page, prints it, and says how it ended. `follow` is
//! the part of `tail` that does not end by itself.

pub mod diff;
pub mod entries;
pub mod follow;
pub mod groups;
pub mod overview;
pub mod padding;
pub mod repair;
pub mod stats;
pub mod tail;
pub mod verify;

use crate::cli::{Format, Keys};
use std::io::Write;

/// What every verb is given beside its arguments.
pub struct Context<'a> {
    pub format: Format,
    pub keys: Keys,
    pub out: &'a mut dyn Write,
}
