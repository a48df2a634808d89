//! Generates the Rust code of the wire messages with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "portcullis/access/v1/access.proto",
        "portcullis/agent/v1/agent.proto",
        "portcullis/audit/v1/audit.proto",
        "portcullis/enrolment/v1/enrolment.proto",
        "portcullis/identity/v1/identity.proto",
        "portcullis/policy/v1/policy.proto",
        "portcullis/report/v1/report.proto",
        "portcullis/run/v1/run.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let methods: Vec<String> = descriptors
        .file
        .iter()
        .flat_map(|file| &file.service)
        .flat_map(|service| {
            service.method.iter().map(|method| format!("{}.{}\n", service.name(), method.name()))
        })
        .collect();
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("methods"), methods.concat())?;
    tonic_prost_build::configure().include_file("wire.rs").compile_fds(descriptors)?;
    Ok(())
}
