//! A little of what `cargo xtask fuzz` does, on every run of the tests and the same each time: what each decoder begins with, inputs
//! that once broke one, and mutations of both.

use std::fs;
use std::path::Path;

use fuzz::{TARGETS, Target};

const MUTATIONS: u64 = 4000;
/// Of policies: Cedar, not optimised, takes 20 ms to check the conditions of one.
const MUTATIONS_OF_POLICIES: u64 = 400;
const BYTES_MAX: usize = 4096;

/// xorshift64*: the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is above 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }
}

/// What fuzzers do: bits, bytes that mean something, parts twice, parts of others, parts left out.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const TELLING: [u8; 10] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'"', b'\n', b'-', b':'];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let to = at + random.below(bytes.len() - at + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
            2 if at < bytes.len() => bytes[at] = TELLING[random.below(TELLING.len())],
            3 => drop(bytes.drain(at..to)),
            4 => {
                let twice = bytes[at..to].to_vec();
                bytes.splice(at..at, twice);
            }
            _ => {
                let from = random.below(other.len() + 1);
                bytes.splice(at..to, other[from..].iter().copied());
            }
        }
    }
    bytes.truncate(BYTES_MAX);
}

#[track_caller]
fn check(name: &str) {
    check_by(name, MUTATIONS);
}

#[track_caller]
fn check_by(name: &str, mutations: u64) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("it is listed");
    let inputs = inputs(target);
    inputs.iter().for_each(|input| (target.run)(input));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..mutations {
        let mut bytes = inputs[random.below(inputs.len())].clone();
        let other = &inputs[random.below(inputs.len())];
        mutate(&mut bytes, other, &mut random);
        let told = std::panic::catch_unwind(|| (target.run)(&bytes));
        #[allow(clippy::print_stdout, reason = "for whoever reads the log of a run")]
        if let Err(panic) = told {
            let input: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("{name} with {}", input.join(""));
            std::panic::resume_unwind(panic);
        }
    }
}

/// With those that once broke it: files below `failures`.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)();
    let failures = Path::new(env!("CARGO_MANIFEST_DIR")).join("failures").join(target.name);
    for entry in fs::read_dir(failures).into_iter().flatten() {
        inputs.push(fs::read(entry.expect("listed").path()).expect("readable"));
    }
    assert!(!inputs.is_empty(), "{} has nothing to begin with", target.name);
    inputs
}

#[test]
fn messages() {
    check("messages");
}

#[test]
fn texts() {
    check("texts");
}

#[test]
fn configuration() {
    check("configuration");
}

#[test]
fn disk() {
    check("disk");
}

#[test]
fn tokens() {
    check("tokens");
}

#[test]
fn kubernetes() {
    check("kubernetes");
}

#[test]
fn policies() {
    check_by("policies", MUTATIONS_OF_POLICIES);
}

#[test]
fn each_has_a_test_here() {
    let here = ["messages", "texts", "configuration", "disk", "tokens", "kubernetes", "policies"];
    assert_eq!(TARGETS.map(|target| target.name), here);
}
