//! People who sign in: the real programs against a real provider, npm `oidc-provider`, over https. Each story is numbered steps
//! that a person would recognise. Needs neither root nor a kernel of ours; skipped by name where the provider is not installed.

mod browser;
mod chromium;
mod console;
mod office;
mod stories;

fn main() {
    tests::runner::main_unless(office::cannot_be_opened(), stories::TESTS, console::TESTS);
}
