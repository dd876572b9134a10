//! The way into running servers.

use anyhow::{Context, Result};
use catamaran::client::{Client, RemoteClient, wait};
use std::time::Duration;

/// A client of the nodes at these addresses, once one of them has answered.
pub fn connect(addresses: &[String], timeout: Duration) -> Result<Client> {
    let remote = RemoteClient::new(addresses, None, timeout)?;
    let client = remote.client();
    wait(client.with_timeout(timeout.min(Duration::from_secs(5))).status())
        .with_context(|| format!("no server answers at {}", addresses.join(", ")))?;
    Ok(client)
}
