//! Says what the library is made from besides Rust: the migrations, which it embeds.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
