//! Generates the Rust side of `proto/*.proto` into `OUT_DIR` (pure Rust, no protoc needed).
#![expect(
    clippy::expect_used,
    reason = "a failing build script stops the build, which is the point"
)]

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    protobuf_codegen_pure::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/meta.proto"])
        .include("proto")
        .run()
        .expect("proto/meta.proto is well formed");
    // The generator writes inner attributes, which `include!` cannot take.
    let file = Path::new(&out).join("meta.rs");
    let code = std::fs::read_to_string(&file).expect("just generated");
    let code: String = code
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .flat_map(|line| [line, "\n"])
        .collect();
    std::fs::write(&file, code).expect("OUT_DIR is writable");
}
