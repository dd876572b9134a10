//! Byte formats shared by several rooms: the bounded reader ([`bytes`]) and the commands that stand in
//! log entries ([`command`]).

pub mod command;
pub mod region;
