//! (in progress)
use crate::args::Plan;
use crate::report::Report;
use anyhow::{Result, bail};
pub(super) fn run(_plan: &Plan) -> Result<Report> {
    bail!("in progress")
}
