//! Generates the Rust code of the wire messages with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "portcullis/access/v1/access.proto",
        "portcullis/agent/v1/agent.proto",
        "portcullis/audit/v1/audit.proto",
        "portcullis/identity/v1/identity.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().include_file("wire.rs").compile_fds(descriptors)?;
    Ok(())
}
