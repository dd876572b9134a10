//! One node, a few keys: `cargo run --example quickstart [DIRECTORY]`.

use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::types::KeyRange;
use catamaran::{Batch, Node, NodeConfig, Result};

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "quickstart-data".to_owned());
    let node = Node::open(NodeConfig { regions: 4, ..NodeConfig::single(&dir) })?;
    let client = node.client().blocking();

    client.put("mast", "tall")?;
    let mut batch = Batch::new();
    batch.put(b"hull", b"twin")?;
    batch.compare_and_swap(b"mast", Some(b"tall"), Some(b"taller"))?;
    let swaps = client.write(batch)?;
    println!("swapped: {}", swaps[0].swapped);

    println!("mast = {:?}", client.get("mast")?);
    println!("and by the leader's lease: {:?}", client.get_at("mast", ReadLevel::Lease)?);
    for row in client.scan(KeyRange::all(), Direction::Reverse, ReadLevel::Linearizable) {
        let (key, value) = row?;
        println!("{key:?} = {value:?}");
    }
    for region in node.status()? {
        println!("{}: leads {}, applied {}", region.region.id, region.leads, region.applied);
    }
    node.shutdown()
}
