//! Who may name what in Rust code. Comments and strings do not count: the code is read as tokens.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{Tree, Violation};

/// A name that only some places may use.
struct Rule {
    /// Where the rule holds: a package's folder, a module (its file and its folder).
    within: &'static [&'static str],
    except: &'static [&'static str],
    /// Paths from their first segment, as `std::fs`.
    names: &'static [&'static str],
    /// Paths that are allowed although they start with one of `names`.
    but: &'static [&'static str],
    advice: &'static str,
}

const EVERYWHERE: &[&str] =
    &["agent", "agent-ebpf", "cli", "control-plane", "policy", "proto", "tests", "xtask"];
const PURE: &[&str] = &["agent/src/rules", "control-plane/src/rules", "policy/src"];
const VERDICT: &str = "agent-ebpf/src/verdict";
const ABI: &str = "agent-ebpf/src/abi";

const RULES: &[Rule] = &[
    Rule {
        within: EVERYWHERE,
        // The last one: what the bypass suite tries and no safe crate offers.
        except: &["agent-ebpf", "agent/src/kernel", "tests/src/raw"],
        names: &["unsafe"],
        but: &[],
        advice: "`unsafe` lives in agent-ebpf, agent/src/kernel and tests/src/raw.rs only: find a safe wrapper (nix, \
                 rustix)",
    },
    Rule {
        within: EVERYWHERE,
        except: &["agent-ebpf", "agent/src/kernel"],
        names: &["aya", "aya_log", "aya_obj"],
        but: &[],
        advice: "only agent/src/kernel calls aya: give it a function that does this",
    },
    Rule {
        within: &["agent"],
        except: &["agent/src/session"],
        names: &["tonic"],
        but: &[],
        advice: "only agent/src/session calls tonic: give it a function that does this",
    },
    Rule {
        within: PURE,
        except: &[],
        names: &["async", "await", "tokio", "tokio_stream", "futures", "tonic", "aya", "sqlx"],
        but: &[],
        advice: "rules are pure: take plain data, return plain data, let the caller do it",
    },
    Rule {
        within: PURE,
        except: &[],
        names: &["std::fs", "std::net", "std::env", "std::process", "std::thread", "nix", "procfs"],
        // Addresses are plain data; what opens sockets stands beside them.
        but: &[
            "std::net::IpAddr",
            "std::net::Ipv4Addr",
            "std::net::Ipv6Addr",
            "std::net::SocketAddr",
            "std::net::AddrParseError",
        ],
        advice: "rules are pure: pass in what was read, return what should be done",
    },
    Rule {
        within: &[VERDICT, ABI],
        except: &[],
        names: &["aya_ebpf", "aya_log_ebpf"],
        but: &[],
        advice: "this code runs in unit tests too: helpers belong to context.rs, maps.rs and record.rs",
    },
];

/// Places that must not be empty: a rule about a folder that was renamed would pass in silence.
const GUARDED: &[&str] = &[
    "agent/src/kernel",
    "agent/src/session",
    "agent/src/rules",
    "control-plane/src/rules",
    "policy/src",
    VERDICT,
    ABI,
];

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations: Vec<_> = GUARDED
        .iter()
        .filter(|place| !tree.keys().any(|path| is_in(path, place)))
        .map(|place| {
            let rule =
                "tidy guards this place and finds no file: follow the move in xtask/src/tidy/imports.rs";
            Violation::new(place, 1, rule)
        })
        .collect();
    let rust = tree.iter().filter(|(path, _)| path.ends_with(".rs"));
    violations.extend(rust.flat_map(|(path, text)| check_file(path, text)));
    violations
}

fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let tokens = match text.parse::<TokenStream>() {
        Ok(tokens) => tokens,
        Err(error) => {
            let line = error.span().start().line;
            return vec![Violation::new(path, line, "not Rust: a bracket or a string is not closed")];
        }
    };
    let mut mentions = Vec::new();
    collect(tokens, &[], &mut mentions);

    let mut violations = Vec::new();
    for Mention { name, line } in mentions {
        let applies = |rule: &&Rule| {
            rule.within.iter().any(|place| is_in(path, place))
                && !rule.except.iter().any(|place| is_in(path, place))
                && rule.names.iter().any(|banned| starts_with(&name, banned))
                && !rule.but.iter().any(|allowed| starts_with(&name, allowed))
        };
        for rule in RULES.iter().filter(applies) {
            violations.push(Violation::new(path, line, format!("`{name}`: {}", rule.advice)));
        }
        if PURE.iter().any(|place| is_in(path, place)) && reads_clock(&name) {
            let rule = format!("`{name}`: rules are pure: take `now` as an argument");
            violations.push(Violation::new(path, line, rule));
        }
    }
    violations
}

/// Whether a file belongs to a package or module: `a/src/b` owns `a/src/b.rs` and `a/src/b/…`.
fn is_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Whether a path is `start`, or something below it.
fn starts_with(name: &str, start: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// `SystemTime::now`, `Instant::now`, whatever the type is called; and ids made from the clock.
fn reads_clock(name: &str) -> bool {
    name.ends_with("::now") || name.ends_with("::now_v7")
}

/// A path as the code spells it, a nested `use` spelled out: `std::fs`, `unsafe`, `Instant::now`.
#[derive(Debug, PartialEq, Eq)]
struct Mention {
    name: String,
    line: usize,
}

fn collect(tokens: TokenStream, prefix: &[String], mentions: &mut Vec<Mention>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let ident = match token {
            TokenTree::Ident(ident) => ident,
            TokenTree::Group(group) => {
                collect(group.stream(), &[], mentions);
                continue;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => continue,
        };
        let line = ident.span().start().line;
        let ident = ident.to_string();
        // What follows a keyword is a path of its own: `use ::aya`.
        if is_keyword(&ident) {
            mentions.push(Mention { name: ident, line });
            continue;
        }
        let mut path = prefix.to_vec();
        path.push(ident);
        let mut nested = false;
        while let Some(next) = after_colons(&mut tokens) {
            match next {
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    collect(group.stream(), &path, mentions);
                    nested = true;
                    break;
                }
                // `::*` and `::<…>` end what is a name.
                _ => break,
            }
        }
        if !nested {
            mentions.push(Mention { name: path.join("::"), line });
        }
    }
}

/// The keywords that no path contains.
fn is_keyword(ident: &str) -> bool {
    matches!(
        ident,
        "as" | "async"
            | "await"
            | "break"
            | "const"
            | "continue"
            | "dyn"
            | "else"
            | "enum"
            | "extern"
            | "fn"
            | "for"
            | "if"
            | "impl"
            | "in"
            | "let"
            | "loop"
            | "match"
            | "mod"
            | "move"
            | "mut"
            | "pub"
            | "ref"
            | "return"
            | "static"
            | "struct"
            | "trait"
            | "type"
            | "unsafe"
            | "use"
            | "where"
            | "while"
    )
}

/// The token after a `::`, both taken; or none, nothing taken.
fn after_colons(tokens: &mut std::iter::Peekable<proc_macro2::token_stream::IntoIter>) -> Option<TokenTree> {
    let mut ahead = tokens.clone();
    for _ in 0..2 {
        match ahead.next()? {
            TokenTree::Punct(punct) if punct.as_char() == ':' => {}
            _ => return None,
        }
    }
    let next = ahead.next()?;
    *tokens = ahead;
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::{super::told, *};

    fn names(code: &str) -> Vec<String> {
        let mut mentions = Vec::new();
        collect(code.parse().expect("it is Rust"), &[], &mut mentions);
        mentions.into_iter().map(|mention| mention.name).collect()
    }

    #[track_caller]
    fn refused(path: &str, line: &str) {
        let text = format!("//! Header.\n{line}\n");
        let told = check_file(path, &text);
        assert!(!told.is_empty(), "{path}: `{line}` should be refused");
        assert!(told.iter().all(|violation| violation.line == 2), "{told:?}");
    }

    #[track_caller]
    fn passes(path: &str, line: &str) {
        let told = check_file(path, line);
        assert_eq!(told, [], "{path}: `{line}` should pass");
    }

    #[test]
    fn nested_imports_are_spelled_out() {
        assert_eq!(
            names("use std::{fs, io::{self, Read as _}, net::*};"),
            ["use", "std::fs", "std::io::self", "std::io::Read", "as", "std::io::_", "std::net"]
        );
        assert_eq!(names("Vec::<u8>::new()"), ["Vec", "u8", "new"]);
    }

    #[test]
    fn unsafe_lives_in_three_places() {
        refused("cli/src/main.rs", "fn f() { unsafe { g() } }");
        refused("agent/src/observe.rs", "unsafe fn f() {}");
        refused("tests/kernel/main.rs", "unsafe impl Send for X {}");
        refused("tests/bypass/main.rs", "fn f() { unsafe { g() } }");
        passes("tests/src/raw.rs", "fn f() { unsafe { g() } }");
        passes("agent/src/kernel.rs", "unsafe fn f() {}");
        passes("agent/src/kernel/link.rs", "unsafe fn f() {}");
        passes("agent-ebpf/src/context.rs", "unsafe fn f() {}");
        passes("cli/src/main.rs", "// unsafe\nconst A: &str = \"unsafe\";");
    }

    #[test]
    fn a_module_is_not_its_namesake() {
        refused("agent/src/kernels.rs", "use aya::Ebpf;");
        refused("agent/src/session_log.rs", "use tonic::Status;");
    }

    #[test]
    fn only_the_kernel_module_calls_aya() {
        refused("agent/src/run.rs", "use aya::maps::HashMap;");
        refused("agent/src/run.rs", "fn f() { aya_log::EbpfLogger::init(); }");
        refused("tests/kernel/main.rs", "use ::aya::Ebpf;");
        passes("agent/src/kernel.rs", "use aya::maps::HashMap;");
        passes("agent-ebpf/src/abi.rs", "use aya::Pod;");
    }

    #[test]
    fn only_the_session_calls_tonic() {
        refused("agent/src/run.rs", "fn f(e: tonic::Status) {}");
        passes("agent/src/session.rs", "use tonic::Status;");
        passes("control-plane/src/rpc/agent.rs", "use tonic::Status;");
    }

    #[test]
    fn rules_are_pure() {
        for line in [
            "async fn f() {}",
            "fn f() { g().await }",
            "#[tokio::test] fn f() {}",
            "use std::{collections::HashMap, fs};",
            "use std::net::TcpStream;",
            "use std::net::*;",
            "fn f() { let _ = std::time::SystemTime::now(); }",
            "fn f() { let _ = Instant::now(); }",
            "fn f() { let _ = Uuid::now_v7(); }",
            "use sqlx::Row;",
            "use tonic::Code;",
            "fn f() { std::env::var(\"A\"); }",
        ] {
            refused("agent/src/rules/plan.rs", line);
            refused("control-plane/src/rules/policy.rs", line);
        }
        for line in [
            "use std::net::{IpAddr, Ipv6Addr};",
            "use core::net::SocketAddr;",
            "use std::collections::BTreeMap;",
            "fn f(now: Timestamp) -> bool { self.now < now }",
        ] {
            passes("agent/src/rules/plan.rs", line);
        }
        passes("agent/src/clock.rs", "fn f() { let _ = std::time::Instant::now(); }");
    }

    #[test]
    fn verdict_and_abi_know_no_helpers() {
        refused("agent-ebpf/src/verdict.rs", "use aya_ebpf::helpers::bpf_ktime_get_boot_ns;");
        refused("agent-ebpf/src/abi.rs", "use aya_ebpf::maps::HashMap;");
        passes("agent-ebpf/src/maps.rs", "use aya_ebpf::maps::HashMap;");
    }

    #[test]
    fn code_that_cannot_be_read_is_told() {
        refused("cli/src/main.rs", "fn f() { } }");
    }

    #[test]
    fn a_guarded_place_that_is_gone_is_told() {
        let told = told(check, &[("agent/src/kernel.rs", "//! Header.\n")]);
        assert_eq!(told.len(), GUARDED.len() - 1, "{told:?}");
        assert!(told[0].starts_with("agent/src/session:1: tidy guards this place"), "{told:?}");
    }
}
