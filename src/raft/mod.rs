//! (room being built)

pub mod wire;
